# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""CANN's Python binding: vllm-ascend imports it for sleep mode, which is not emulated."""
