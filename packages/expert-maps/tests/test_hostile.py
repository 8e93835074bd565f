# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Files that were damaged or made to harm: one error of the documented family, at a bounded cost."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from expert_maps import ExpertMapsError, generate_placement, read_load, read_placement
from expert_maps.errors import PlacementError
from expert_maps.files import unpack
from expert_maps.formats import vllm_ascend
from expert_maps.formats.arrays import parse_npy, parse_npz
from expert_maps.formats.safetensors import parse_safetensors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def by_message(value: object) -> str:
    """Name a case; contents hold times, and ids must be the same in every process."""
    return value if isinstance(value, str) else getattr(value, "__name__", "content")


PLACEMENT = generate_placement(num_experts=8, ep_size=2, num_redundant_experts=2, num_layers=2)
LOAD = np.arange(2 * 3 * 8).reshape(2, 3, 8)
GOLDEN = {
    "num_layers": 2,
    "num_logical_experts": 8,
    "slots_per_rank": PLACEMENT.slots_per_rank.tolist(),
    "physical_to_logical": PLACEMENT.physical_to_logical.tolist(),
}
# What a value of a JSON file may be replaced by.
STRANGERS: list[object] = [
    None, True, -1, 0, 1.5, 2**31, 2**63, 10**18, 10**300, "", "x\x1b[2J", "\ud800", [], [[]], {}, [[1], [2, 3]],
    [[[1]]], {"a": {}}, ["1"], [None],
]  # fmt: skip


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, LOAD)
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, a=LOAD, b=LOAD)
    return buffer.getvalue()


def safetensors() -> bytes:
    header = json.dumps({"0_3": {"dtype": "I64", "shape": [3, 8], "data_offsets": [0, 192]}}).encode()
    return len(header).to_bytes(8, "little") + header + LOAD[0].tobytes()


VALID: dict[str, tuple[str, bytes]] = {
    "npy": ("load.npy", npy()),
    "npz": ("load.npz", npz()),
    "json load": ("load.json", json.dumps({"logical_count": LOAD.tolist()}).encode()),
    "csv": ("load.csv", b"\n".join(",".join(map(str, row)).encode() for row in LOAD[0].tolist())),
    "golden": ("map.json", json.dumps(GOLDEN).encode()),
    "vllm-ascend": ("map.json", vllm_ascend.dumps(PLACEMENT).encode()),
}


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut, repeat, or overwrite some bytes."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(len(changed) + 1))
        # Headers are where damage matters, and they are short.
        place = place if rng.random() < 0.5 else min(place, int(rng.integers(130)))
        match rng.integers(5):
            case 0:
                del changed[place:]
            case 1:
                del changed[place : place + int(rng.integers(1, 9))]
            case 2:
                changed[place:place] = changed[place : place + int(rng.integers(1, 40))]
            case 3:
                changed[place : place + 1] = bytes([int(rng.integers(256))])
            case _:
                changed[place : place + 1] = bytes([rng.choice(list(b"[]{}\",:'()\\-0.eE\x00\x1b\xff"))])
    return bytes(changed)


def accept(read: Callable[[], object]) -> bool:
    """Whether it was read; an error must be of the family, of one line and safe to print."""
    try:
        read()
    except ExpertMapsError as error:
        text = error.summary if isinstance(error, PlacementError) else str(error)
        assert len(text) < 2000
        assert text.isprintable(), text
        return False
    return True


@pytest.mark.parametrize("kind", VALID)
def test_damaged_files_end_in_an_error_of_the_family(tmp_path: Path, kind: str) -> None:
    name, content = VALID[kind]
    path = tmp_path / name
    reader: Callable[..., object] = read_placement if name.startswith("map") else read_load
    path.write_bytes(content)
    assert accept(lambda: reader(path))
    rng = np.random.default_rng(list(kind.encode()))
    read = 0
    for _ in range(300):
        path.write_bytes(damaged(content, rng))
        read += accept(lambda: reader(path))
    assert read < 250  # most damage is noticed; a changed number is not


@pytest.mark.parametrize(
    ("parse", "content"),
    [
        (parse_npy, npy()),
        (parse_npz, npz()),
        (parse_safetensors, safetensors()),
        (unpack, gzip.compress(npy())),
    ],
    ids=by_message,
)
def test_damaged_arrays_end_in_an_error_of_the_family(
    parse: Callable[[bytes], object], content: bytes
) -> None:
    assert accept(lambda: parse(content))
    rng = np.random.default_rng(len(content))
    for _ in range(1000):
        changed = damaged(content, rng)
        accept(lambda: parse(changed))  # noqa: B023 - called at once


def replaced(document: Any, place: int, value: object) -> tuple[Any, int]:  # noqa: ANN401 - any JSON
    """Return the document with its place-th value, counted in depth first order, replaced."""
    if place == 0:
        return value, -1
    place -= 1
    if isinstance(document, dict):
        entries: list[tuple[Any, Any]] = list(document.items())
    else:
        entries = list(enumerate(document)) if isinstance(document, list) else []
    for key, entry in entries:
        changed, place = replaced(entry, place, value)
        if place < 0:
            copy = document.copy()
            copy[key] = changed
            return copy, -1
    return document, place


@pytest.mark.parametrize("kind", ["golden", "vllm-ascend", "json load"])
def test_values_of_any_type_end_in_an_error_of_the_family(tmp_path: Path, kind: str) -> None:
    name, content = VALID[kind]
    path = tmp_path / name
    reader: Callable[..., object] = read_placement if name.startswith("map") else read_load
    document = json.loads(content)
    for place in range(12):
        for value in STRANGERS:
            path.write_text(json.dumps(replaced(document, place, value)[0]))
            accept(lambda: reader(path))


# In a process of its own: the most memory that it had is only known of a whole process.
_MEASURE = """
import gzip, io, json, resource, sys, tempfile, time, zipfile
from pathlib import Path
from expert_maps import ExpertMapsError, files, read_placement
from expert_maps.formats.arrays import parse_npz

path = Path(sys.argv[1])

def golden(**changes):
    document = {"num_layers": 4096, "num_logical_experts": 2048, "slots_per_rank": [2047],
                "physical_to_logical": [[0] * 2047]}
    path.write_text(json.dumps(document | changes))
    read_placement(path)

def text(content):
    path.write_bytes(content)
    read_placement(path)

def npz():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("0.npy", bytes(2**26))
    packed = buffer.getvalue()
    # The one entry of the table of contents, nine times: 2**26 bytes each.
    first, end = packed.index(b"PK\\x01\\x02"), packed.index(b"PK\\x05\\x06")
    entry = packed[first:end]
    tail = bytearray(packed[end:])
    tail[8:10] = tail[10:12] = (9).to_bytes(2, "little")
    tail[12:16] = (9 * len(entry)).to_bytes(4, "little")
    parse_npz(packed[:first] + entry * 9 + bytes(tail))

cases = {
    "millions of violations": golden,
    "more ranks than any": lambda: golden(num_layers=128, num_logical_experts=64, slots_per_rank=[0, 2] * 32768,
                                          physical_to_logical=[[0] * 65536]),
    "counts beyond all": lambda: golden(num_layers=10**18),
    "a wrapped sum": lambda: golden(slots_per_rank=[2**63 - 1, 2**63 - 1, 2049]),
    "a long string among ids": lambda: golden(physical_to_logical=[[0] * 2046 + ["x" * 10**7]]),
    "lists": lambda: text(b'{"a":[' + b"[]," * 1_000_000 + b"0]}"),
    "more lists": lambda: text(b'{"a":[' + b"[]," * 10_000_000 + b"0]}"),
    "objects": lambda: text(b"[" + b'{"":0},' * 2_000_000 + b"0]"),
    "a zip bomb": npz,
    "a gzip bomb": lambda: files.unpack(gzip.compress(bytes(2**26), 1) * 9),
}
for name, read in cases.items():
    start = time.process_time()
    try:
        read()
        outcome = "read"
    except ExpertMapsError as error:
        outcome = str(error).splitlines()[0][-70:]
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([name, outcome, seconds, peak]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="another unit of memory")
def test_no_file_costs_more_than_a_gib_or_ten_seconds(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", _MEASURE, str(tmp_path / "map.json")]
    run = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(rows) == 10
    for name, outcome, seconds, peak in rows:
        assert outcome != "read", name
        assert seconds < 10, (name, seconds)
        assert peak < 2**30, (name, peak)
