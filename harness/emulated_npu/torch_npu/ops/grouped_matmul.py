# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Products of groups of rows with a matrix each: the plugin's twin."""

from __future__ import annotations

from torch_npu._registry import NPU, given
from vllm_ascend_moe.npu_ops import ops as twins

given(NPU, "npu_grouped_matmul", ignored=("tuning_config",))(twins.npu_grouped_matmul.twin)
