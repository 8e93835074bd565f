# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Micro-benchmarks of every routing op of the MoE layer: on an NPU beside torch_npu's, elsewhere beside vLLM's."""
