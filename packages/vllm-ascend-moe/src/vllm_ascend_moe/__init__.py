# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Expert maps and EPLB for vLLM on Ascend NPUs.

Importing this package loads neither torch nor vLLM nor torch_npu; `vllm_ascend_moe.eplb` loads torch.
"""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = ["__version__"]
