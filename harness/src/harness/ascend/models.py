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
from expert_maps.files import write_text
from expert_maps.models import counts_from_config
from harness.accuracy.int8 import copy_without_weights, quantise, quantise_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

TINY_MOE, TINY_DEEPSEEK = Path("accuracy/tiny-moe"), Path("accuracy/tiny-deepseek")
# MoE layers and experts of the embedded models.
SIZES = {TINY_MOE: (4, 16), TINY_DEEPSEEK: (3, 16)}
# A folder's name: the first of them with experts in int8, made where it is served.
QUANTISED = "tiny-moe-w8a8"
# The same numbers as ModelSlim writes them, which quantises for NPUs.
MODELSLIM = "tiny-moe-modelslim"
# Another: the second with a layer that predicts the token after next (MTP), which drafts.
DRAFTING = "tiny-deepseek-mtp"
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
    wanted = sorted(set(models))
    make_by_name = {
        QUANTISED: lambda model: quantise_checkpoint(TINY_MOE, model),
        MODELSLIM: lambda model: write_modelslim(model, TINY_MOE),
        DRAFTING: lambda model: write_drafting(model, TINY_DEEPSEEK),
    }
    return [make_by_name[model.name](model) for model in wanted if model.name in make_by_name]


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


def write_modelslim(folder: Path, source: Path) -> Path:
    """Write a checkpoint whose experts are int8 as ModelSlim writes it: W8A8_DYNAMIC, a scale and an offset a row.

    A file beside the weights names the quantisation of each tensor. ModelSlim's offsets are zero where weights are
    symmetric, and no kernel of W8A8_DYNAMIC reads them; here an expert's are its own, so that a slot which holds
    another's is seen.
    """
    import torch
    from safetensors.torch import load_file, save_file

    copy_without_weights(source, folder)
    tensors: dict[str, torch.Tensor] = {}
    description = {"model_quant_type": "W8A8_DYNAMIC", "version": "1.0.0"}
    for name, tensor in load_file(source / "model.safetensors").items():
        if ".experts." not in name:
            tensors[name], description[name] = tensor, "FLOAT"
            continue
        quantised, scale = quantise(tensor)
        offset = torch.full_like(scale, 1 + int(name.split(".experts.")[1].split(".")[0]))
        stem = name.removesuffix(".weight")
        for part, value in (("weight", quantised), ("weight_scale", scale), ("weight_offset", offset)):
            tensors[f"{stem}.{part}"], description[f"{stem}.{part}"] = value, "W8A8_DYNAMIC"
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_text(folder / "quant_model_description.json", json.dumps(description, indent=1) + "\n")
    return folder


def write_drafting(folder: Path, model: Path) -> Path:
    """Write a checkpoint with one layer more, which predicts the token after next: its last MoE layer once more.

    Such a draft is right now and then; where it is not, the model itself answers as it does without. So texts are those of
    the model, and a draft layer with experts of its own has been served.

    Args:
        folder: is made; files of an earlier one are replaced.
        model: in one file, of an architecture whose drafts stand behind its layers.

    Returns:
        The folder.
    """
    import torch
    from safetensors.torch import load_file, save_file

    copy_without_weights(model, folder)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    num_layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    tensors = load_file(model / "model.safetensors")
    last, draft = f"model.layers.{num_layers - 1}.", f"model.layers.{num_layers}."
    added = {draft + name.removeprefix(last): tensors[name] for name in tensors if name.startswith(last)}
    added |= {
        draft + "embed_tokens.weight": tensors["model.embed_tokens.weight"],
        draft + "enorm.weight": torch.ones_like(tensors["model.norm.weight"]),
        draft + "hnorm.weight": tensors["model.norm.weight"],
        # Mostly what the model has made of the text so far.
        draft + "eh_proj.weight": torch.cat([0.1 * torch.eye(hidden), torch.eye(hidden)], dim=1),
        draft + "shared_head.norm.weight": tensors["model.norm.weight"],
        draft + "shared_head.head.weight": tensors["lm_head.weight"],
    }
    dtype = tensors["model.norm.weight"].dtype
    eh_proj = draft + "eh_proj.weight"
    added[eh_proj] = added[eh_proj].to(dtype)
    save_file(
        {name: tensor.clone() for name, tensor in (tensors | added).items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    config["num_nextn_predict_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return folder


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
