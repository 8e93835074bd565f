# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""One number of a map file changed, in every format and at every place: it is an error, a warning, or another map."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from expert_maps import ExpertMapsError, FormatError, Placement
from expert_maps.files import Source
from expert_maps.formats import inspect_map, vllm
from expert_maps.formats.mapfile import MapFile
from expert_maps.formats.safetensors import dump_safetensors
from expert_maps.formats.writing import ENDINGS, encode

PLACEMENT = Placement([[0, 1, 2, 3, 0, 4], [4, 3, 1, 2, 0, 1]], 2)
MAP = MapFile(PLACEMENT, "golden", "", layers=(1, 3), num_hidden_layers=5, model="tiny")
DAS = {"version": 2, "model_maps": {"m": {"physical_to_logical_map": PLACEMENT.physical_to_logical.tolist()}}}
TEXTS: dict[str, str] = {"vllm-plugin-das": json.dumps(DAS)}
for _form, _endings in ENDINGS.items():
    if _endings[0] in {".json", ".yaml"}:
        TEXTS[_form] = encode(MAP, _form, _endings[0]).content.decode()


def read(text: str | bytes, **said: object) -> MapFile:
    content = text if isinstance(text, bytes) else text.encode()
    return inspect_map(Source("map", content), ep_size=2, **said)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", TEXTS)
def test_no_number_changes_unnoticed(form: str) -> None:
    text = TEXTS[form]
    said = {"layers": "1,3"} if form == "sglang" else {}
    good = read(text, **said)
    assert good.placement == PLACEMENT
    places = list(re.finditer(r"-?\d+", text))
    assert len(places) > 12
    # SGLang's rows of dense layers, whose experts are never used.
    dense = [row.span() for row in re.finditer(r"\[[\d, ]+\]", text)] if form == "sglang" else []
    unused = [span for index, span in enumerate(dense) if index not in {1, 3}]
    for place in places:
        for change in (1, -1, 10**6):
            changed = text[: place.start()] + str(int(place[0]) + change) + text[place.end() :]
            try:
                found = read(changed, **said)
            except ExpertMapsError:
                continue
            is_unused = any(begin <= place.start() < end for begin, end in unused)
            is_known = 0 <= int(place[0]) + change < PLACEMENT.num_logical_experts
            assert found != good or (is_unused and is_known), f"{place[0]} at {place.start()}: {change:+}"


def test_a_slot_that_no_number_can_name_is_no_padding() -> None:
    arrays = vllm.arrays(PLACEMENT)
    copies = arrays["logical_to_physical_map"]
    copies[0, 4, 1] = np.iinfo(np.int64).max
    with pytest.raises(FormatError, match=r"expert 4 is \[5, 9223372036854775807\]; expected \[5\]"):
        read(dump_safetensors(arrays))


@pytest.mark.parametrize(
    ("form", "key"),
    [
        ("golden", "log2phy"),
        ("vllm", "logical_replica_count"),
        ("deepseek", "logcnt"),
        ("expert-maps", "expert_maps"),
        ("vllm-plugin-das", "version"),
    ],
)
def test_a_key_with_a_slip_of_the_pen_is_named(form: str, key: str) -> None:
    found = read(TEXTS[form].replace(f'"{key}"', f'"{key}\\u001b"'))
    assert found.warnings == (f"not known, and not looked at: '{key}\\x1b'",)


def test_rows_of_dense_layers_that_sglang_cannot_read_are_named() -> None:
    rows = [[0, 1, 9, -1], [0, 1, 2, 3], [3, 3, 3, 3]]
    text = json.dumps({"physical_to_logical_map": rows})
    found = read(text, layers="1")
    assert found.warnings == (
        "the rows of the dense layers 0 hold experts that do not exist: SGLang reads all rows, and may fail",
    )
