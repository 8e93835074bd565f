# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What the plugin is on every platform; imports neither vLLM nor torch_npu."""
