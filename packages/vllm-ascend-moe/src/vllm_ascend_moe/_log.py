# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The plugin's logger."""

from __future__ import annotations

import logging

# Below vLLM's own, because that is the one whose level and handler vLLM sets in every process.
logger = logging.getLogger("vllm.ascend_moe")
