# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Expert maps and EPLB for vLLM on Ascend NPUs, and wherever else vLLM runs.

Importing this package loads neither torch nor vLLM nor torch_npu; `vllm_ascend_moe.eplb` loads torch.
"""

from __future__ import annotations

import importlib.util

__version__ = "0.1.0"

__all__ = ["__version__", "register"]


def register() -> None:
    """Enter vLLM: the entry point in `vllm.general_plugins`, called in every process, perhaps several times.

    It only sets vLLM up to be watched until its configuration is known: until then nothing is changed, and
    nothing ever is where the plugin is inactive (see `vllm_ascend_moe.activation`). Without vLLM it does
    nothing, and imports nothing.
    """
    if importlib.util.find_spec("vllm") is None:
        from vllm_ascend_moe._log import logger

        logger.info("vllm-ascend-moe %s inactive: vLLM is not installed", __version__)
        return
    from vllm_ascend_moe.upstream import watch

    watch()
