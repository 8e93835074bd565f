# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The quantisation of ModelSlim, which MindIE and vllm-ascend serve: ``quantize`` in config.json, or a file beside it.

Sources: vllm-ascend 0.18 to 0.30, ``quantization/methods/w8a8_dynamic.py`` (int8 weights; a scale and an offset for each
output, in the model's type); MindIE's models (``quantize``); ModelSlim's ``quant_model_description*.json``, which names the
quantisation of every weight.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from expert_maps.errors import FormatError
from expert_maps.files import read_json
from expert_maps.models.shapes import plain_type, untold
from expert_maps.models.values import shown

if TYPE_CHECKING:
    from pathlib import Path

    from expert_maps.models.shapes import Shape
    from expert_maps.models.values import Config

W8A8_DYNAMIC = "W8A8_DYNAMIC"
"""ModelSlim's name of int8 weights whose activations are quantised token by token."""

DESCRIPTIONS = "quant_model_description*.json"
"""The files beside config.json that say it."""

_EXPERT_WEIGHT = re.compile(r"\.experts\.\d{1,9}\.[a-z0-9_]{1,40}\.weight\Z")


def modelslim_bytes(config: Config, shape: Shape, kind: str, said: str) -> tuple[int, str]:
    """Return the bytes of an expert as ModelSlim stores it for MindIE and vllm-ascend, and how its numbers are stored.

    Args:
        config: says the type of what is not quantised.
        shape: the projections.
        kind: ModelSlim's name of the quantisation.
        said: who says so, for messages.

    Raises:
        UntoldError: another one than is known here.
    """
    name, width = plain_type(config)
    if kind == "FLOAT":
        return shape.numbers * width, name
    if kind != W8A8_DYNAMIC or shape.biases:
        untold(f"{said}, which is not known here; known are {W8A8_DYNAMIC} and FLOAT")
    # vllm-ascend, quantization/methods/w8a8_dynamic.py: int8, scale and offset of each output in the model's type.
    rows = sum(outputs for outputs, _ in shape.projections)
    return shape.numbers + 2 * rows * width, f"int8 with a scale and an offset in {name} a row ({said})"


def described(path: Path) -> tuple[str, str]:
    """Return how ModelSlim has quantised all experts by its file beside config.json, and who says so.

    Raises:
        UntoldError: the file is no JSON object, or it says nothing of experts, or several quantisations.
    """
    try:
        value = read_json(path)
    except FormatError as error:  # the rest of the model is known without it
        untold(str(error))
    if not isinstance(value, dict):
        untold(f"{path.name} is no JSON object that names the quantisation of each weight")
    kinds = {shown(kind) for name, kind in value.items() if _EXPERT_WEIGHT.search(str(name))}
    if len(kinds) != 1:
        found = " and ".join(sorted(kinds)) or "nothing"
        untold(f"{path.name} says {found} of the experts' weights; expected one quantisation of all")
    kind = kinds.pop().strip("'")
    return kind, f"{path.name} says {kind} of the experts"
