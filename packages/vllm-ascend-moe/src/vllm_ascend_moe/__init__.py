# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Expert maps and EPLB for vLLM on Ascend NPUs, and wherever else vLLM runs.

Importing this package loads neither torch nor vLLM nor torch_npu; `vllm_ascend_moe.eplb` loads torch.
"""

from __future__ import annotations

import importlib.util

from vllm_ascend_moe._version import __version__

__all__ = ["__version__", "register"]


def register() -> None:
    """Enter vLLM: the entry point in `vllm.general_plugins`, called in every process, perhaps several times.

    It only sets vLLM up to be watched until its configuration is known: until then nothing is changed, and
    nothing ever is where the plugin is inactive (see `vllm_ascend_moe.core.activation`). Without vLLM it does
    nothing, and imports nothing.
    """
    if importlib.util.find_spec("vllm") is None:
        from vllm_ascend_moe._log import logger

        logger.info("vllm-ascend-moe %s inactive: vLLM is not installed", __version__)
        return
    from vllm_ascend_moe.hooks.entry import watch

    watch()
