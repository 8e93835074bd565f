# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What is served: the embedded models, others made of them, and maps for them."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from expert_maps import Placement, plan, write_placement
from expert_maps.models import counts_from_config
from harness.accuracy.int8 import quantise_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterable

TINY_MOE, TINY_DEEPSEEK = Path("accuracy/tiny-moe"), Path("accuracy/tiny-deepseek")
# MoE layers and experts of the embedded models.
SIZES = {TINY_MOE: (4, 16), TINY_DEEPSEEK: (3, 16)}
# A folder's name: the first of them with experts in int8, made where it is served.
QUANTISED = "tiny-moe-w8a8"
# Copies in the maps.
REDUNDANT = 4


def size_of(model: Path) -> tuple[int, int]:
    """Return how many MoE layers and experts a model has."""
    if model in SIZES:
        return SIZES[model]
    counts = counts_from_config(str(model), json.loads((model / "config.json").read_text(encoding="utf-8")))
    assert counts.num_layers is not None
    return counts.num_layers, counts.num_experts


def make(models: Iterable[Path]) -> list[Path]:
    """Make those models that are made of others, and return them."""
    made = sorted({model for model in models if model.name == QUANTISED})
    return [quantise_checkpoint(TINY_MOE, model) for model in made]


def write_map(path: Path, model: Path, ep_size: int = 2, redundant: int = REDUNDANT) -> Placement:
    """Plan a map that differs in each layer, for a load that was drawn, and write it."""
    layers, experts = SIZES[model]
    draw = np.random.default_rng(zlib.crc32(model.name.encode()))
    load = draw.lognormal(sigma=1.2, size=(layers, experts))
    placement = plan(load, num_physical_experts=experts + redundant, ep_size=ep_size).placement
    rows = placement.physical_to_logical
    assert len(np.unique(rows, axis=0)) == layers, "rows of a map are alike"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_placement(placement, path)
    return placement


def write_twice(path: Path, model: Path) -> Path:
    """Write a map for two ranks on which each has two of its experts twice."""
    layers, experts = SIZES[model]
    halves = np.array_split(np.arange(experts), 2)
    ranks = [[*half.tolist(), *half[:2].tolist()] for half in halves]
    placement = Placement.from_rank_lists(
        [ranks] * layers, num_logical_experts=experts, allow_duplicates=True
    )
    write_placement(placement, path)
    return path


def write_broken(folder: Path, model: Path) -> Path:
    """Lay out a checkpoint whose weights end in the middle."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in model.iterdir():
        target = folder / source.name
        target.unlink(missing_ok=True)
        if source.suffix == ".safetensors":
            content = source.read_bytes()
            target.write_bytes(content[: len(content) // 2])
        else:
            target.symlink_to(source.absolute())
    return folder
