# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Kernels for linear attention: imported by vllm-ascend, called for models that have it."""
