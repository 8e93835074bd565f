# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Models: which of their layers are MoE, with how many experts, and how large an expert is.

A model is known by name (`MODELS`), or read from its Hugging Face ``config.json``.
"""

from __future__ import annotations

from expert_maps.models.counts import ModelCounts, layers_text
from expert_maps.models.known import MODELS
from expert_maps.models.lookup import model_counts
from expert_maps.models.reading import counts_from_config
from expert_maps.models.sizes import ExpertSize, expert_bytes, expert_size

__all__ = [
    "MODELS",
    "ExpertSize",
    "ModelCounts",
    "counts_from_config",
    "expert_bytes",
    "expert_size",
    "layers_text",
    "model_counts",
]
