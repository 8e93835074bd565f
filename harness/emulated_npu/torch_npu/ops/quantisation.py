# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""int8 with scales."""

from __future__ import annotations

from torch_npu._registry import NPU, given
from vllm_ascend_moe import ops as twins

given(NPU, "npu_dynamic_quant")(twins.npu_dynamic_quant.twin)
