# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Check every call that the plugin makes against torch_npu's own wheels, without installing one."""
