# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Functions of vLLM and vllm-ascend that others are put around: which, how, and where the plugin enters."""
