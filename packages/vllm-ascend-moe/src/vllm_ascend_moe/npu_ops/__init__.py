# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The MoE layer of torch_npu's ops: ops with their twins, kernels and limits, and the layer built of them."""
