# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's experts in int8 (W8A8, compressed-tensors), so that there are scales that can go stale."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from expert_maps.files import read_json, write_text

if TYPE_CHECKING:
    from pathlib import Path

    import torch

_LARGEST = 127
_WEIGHTS = "model.safetensors"
# What stays as it is: attention, routers, dense layers, shared experts.
_KEPT = ("self_attn.*", r"mlp\.gate$", r"mlp\.(gate|up|down|gate_up)_proj$", "shared_experts.*")
_NUMBERS: dict[str, Any] = {"num_bits": 8, "type": "int", "symmetric": True}


def quantise(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise a matrix with a scale for each output channel, to nearest.

    Args:
        weight: [out, in].

    Returns:
        int8 [out, in], and bfloat16 [out, 1]. Divided by the scale as it is stored, so that its rounding costs nothing.
    """
    import torch

    scale = (weight.float().abs().amax(dim=1, keepdim=True) / _LARGEST).to(torch.bfloat16)
    # A channel of zeros has no scale.
    divisor = torch.where(scale > 0, scale.float(), 1.0)
    return (weight.float() / divisor).round().clamp(-_LARGEST, _LARGEST).to(torch.int8), scale


def copy_without_weights(source: Path, folder: Path) -> None:
    """Copy a checkpoint's configuration, tokenizer and questions.

    Args:
        source: a checkpoint.
        folder: is made; files of an earlier one are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and path.suffix in {".json", ".jinja", ".jsonl"}:
            shutil.copyfile(path, folder / path.name)


def quantise_checkpoint(source: Path, folder: Path) -> Path:
    """Write a checkpoint whose experts are int8 and the rest bfloat16.

    Args:
        source: a checkpoint in one file, a matrix for each expert.
        folder: is made; files of an earlier one are replaced.

    Returns:
        The folder.
    """
    import torch
    from safetensors.torch import load_file, save_file

    copy_without_weights(source, folder)
    tensors = {}
    for name, tensor in load_file(source / _WEIGHTS).items():
        if ".experts." in name:
            tensors[name], tensors[f"{name}_scale"] = quantise(tensor)
        else:
            tensors[name] = tensor.to(torch.bfloat16)
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    group = {
        "targets": ["Linear"],
        "weights": {**_NUMBERS, "strategy": "channel", "dynamic": False},
        "input_activations": {**_NUMBERS, "strategy": "token", "dynamic": True},
    }
    config = read_json(source / "config.json")
    assert isinstance(config, dict)
    config["torch_dtype"] = config["dtype"] = "bfloat16"
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", *(f"re:.*{name}" for name in _KEPT)],
    }
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    return folder
