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
from cli_runs import assert_one_line_error, run

from expert_maps import ExpertMapsError, generate_placement, read_load
from expert_maps.errors import PlacementError
from expert_maps.files import unpack
from expert_maps.formats import (
    deepseek,
    golden,
    inspect_map,
    native,
    omni,
    sglang,
    tensorrt_llm,
    vllm,
    vllm_ascend,
)
from expert_maps.formats.arrays import parse_npy, parse_npz
from expert_maps.formats.safetensors import dump_safetensors, parse_safetensors
from expert_maps.formats.weights import read_weights
from expert_maps.models import model_counts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def by_message(value: object) -> str:
    """Name a case; contents hold times, and ids must be the same in every process."""
    return value if isinstance(value, str) else getattr(value, "__name__", "content")


PLACEMENT = generate_placement(num_experts=8, ep_size=2, num_redundant_experts=2, num_layers=2)
LOAD = np.arange(2 * 3 * 8).reshape(2, 3, 8)
ROWS = LOAD[0].tolist()
SHARES = np.where(PLACEMENT.logical_to_physical >= 0, 1.0, 0.0)
SHARES /= SHARES.sum(axis=2, keepdims=True)
TRACE = [[[token % 8, (token + 3) % 8]] for token in range(9)]
# What a value of a JSON file may be replaced by.
STRANGERS: list[object] = [
    None, True, -1, 0, 1.5, float("nan"), 2**31, 2**63, 10**18, 10**300, 10**999, "", "x\x1b[2J\n", "\ud800", "1", [],
    [[]], {}, [[1], [2, 3]], [[[1]]], {"a": {}}, {"1": {"1": 1}}, ["1"], [None], [10**20], 65536,
]  # fmt: skip


def npy(array: np.ndarray[Any, Any] = LOAD) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(**arrays: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict[str, Any](arrays or {"a": LOAD, "b": LOAD}))
    return buffer.getvalue()


def safetensors() -> bytes:
    return dump_safetensors({"0_3": LOAD[0, 0], "0_4": LOAD[0, 1]})


def tokens(count: int) -> dict[str, object]:
    return {str(layer): {str(index): 1 for index in range(count)} for layer in range(3)}


def as_load(path: Path) -> object:
    # What a form needs to be told.
    is_trace, is_ids = path.name == "trace.json", b"expert_id" in path.read_bytes()
    return read_load(
        path,
        num_experts=8 if is_trace or is_ids else None,
        num_layers=3 if path.name == "decode_0.csv" else None,
        window=4 if is_trace else None,
    )


def as_map(path: Path) -> object:
    return inspect_map(path, ep_size=2)


def as_model(path: Path) -> object:
    return model_counts(path)


def as_weights(path: Path) -> object:
    return read_weights(path, PLACEMENT)


# Every form in JSON: the name of its file, its reader, and what it holds.
DOCUMENTS: dict[str, tuple[str, Callable[[Path], object], object]] = {
    "load": ("load.json", as_load, {"load": LOAD.tolist(), "layers": [3, 4, 5]}),
    "SGLang load": ("load.json", as_load, {"rank": 0, "logical_count": LOAD.tolist()}),
    "vLLM load": ("load.json", as_load, {"expert_load_window": LOAD.tolist()}),
    "vllm-ascend load": ("load.json", as_load, {"moe_load": LOAD.tolist()}),
    "MindSpeed load": ("load.json", as_load, tokens(8)),
    "ESFT load": ("load.json", as_load, {"token_scores": tokens(8), "gate_scores": {}}),
    "TensorRT-LLM load": ("load.json", as_load, {f"100_{layer}": ROWS[layer] for layer in range(3)}),
    "trace": ("trace.json", as_load, {"routed_experts": TRACE}),
    "vllm-ascend": ("map.json", as_map, json.loads(vllm_ascend.dumps(PLACEMENT))),
    "expert-maps": ("map.json", as_map, json.loads(native.dumps(PLACEMENT, model="m", layers=[3, 4]))),
    "golden": ("map.json", as_map, golden.document_of(PLACEMENT)),
    "SGLang": ("map.json", as_map, {sglang.KEY: PLACEMENT.physical_to_logical.tolist()}),
    "TensorRT-LLM": ("map.json", as_map, {"num_slots": 10, tensorrt_llm.KEY: {"3": [*range(8), 0, 1]}}),
    "vLLM": ("map.json", as_map, {key: value.tolist() for key, value in vllm.arrays(PLACEMENT).items()}),
    "DeepSeek": ("map.json", as_map, [value.tolist() for value in deepseek.arrays(PLACEMENT).values()]),
    "das": ("map.json", as_map, {"version": 2, "model_maps": {"m": {sglang.KEY: [[*range(8)]]}}}),
    "config": (
        "config.json",
        as_model,
        {
            "model_type": "deepseek_v3", "num_hidden_layers": 6, "n_routed_experts": 8, "first_k_dense_replace": 3,
            "moe_layer_freq": 1, "num_experts_per_tok": 2, "n_group": 2, "n_shared_experts": 1, "hidden_size": 8,
            "moe_intermediate_size": 4,
            "quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 2]},
        },
    ),
    "nested config": (
        "config.json",
        as_model,
        {
            "thinker_config": {"text_config": {
                "num_hidden_layers": 3, "num_experts": 8, "mlp_only_layers": [1], "hidden_size": 8,
                "moe_intermediate_size": 4,
            }},
            "quantization_config": {
                "quant_method": "compressed-tensors", "ignore": ["lm_head"],
                "config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 2}}},
            },
        },
    ),
    "weights": (
        "weights.json",
        as_weights,
        {"version": 1, "digest": PLACEMENT.digest, "weights": SHARES.tolist()},
    ),
}  # fmt: skip

VALID: dict[str, tuple[str, Callable[[Path], object], bytes]] = {
    "npy": ("load.npy", as_load, npy()),
    "npz": ("load.npz", as_load, npz()),
    "gzip": ("load.npy.gz", as_load, gzip.compress(npy(), mtime=0)),
    "safetensors": ("load.safetensors", as_load, safetensors()),
    "csv": ("load.csv", as_load, "\n".join(",".join(map(str, row)) for row in ROWS).encode()),
    "csv table": ("load.csv", as_load, b"step;layer;0;1\n0;3;1,5;2\n0;4;2;1\n1;3;5;5\n1;4;1;9 # end\n"),
    "quoted csv": ("load.csv", as_load, b'"layer","e0","e1"\n"3","1","2"\n"4","2","1"\n'),
    "SGLang csv": ("load.csv", as_load, b"layer_id,expert_id,count\n3,0,1\n3,7,2\n4,0,5\n5,1,6\n"),
    "MindIE csv": ("decode_0.csv", as_load, b"1,2\n3,4\n5,6\n"),
    "yaml": ("map.yaml", as_map, tensorrt_llm.dumps(PLACEMENT, [3, 4]).encode()),
    "map npz": ("map.npz", as_map, npz(**vllm.arrays(PLACEMENT))),
    "map safetensors": ("map.safetensors", as_map, dump_safetensors(dict(vllm.arrays(PLACEMENT)))),
    "omni": ("map.npy", as_map, npy(omni.pattern(PLACEMENT))),
    **{
        f"{kind} as text": (name, read, json.dumps(document).encode())
        for kind, (name, read, document) in DOCUMENTS.items()
        if kind in {"SGLang load", "vllm-ascend", "config", "weights"}
    },
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
    name, read, content = VALID[kind]
    path = tmp_path / name
    path.write_bytes(content)
    read(path)
    rng = np.random.default_rng(list(kind.encode()))
    accepted = 0
    for _ in range(100):
        path.write_bytes(damaged(content, rng))
        accepted += accept(lambda: read(path))
    assert accepted < 90  # most damage is noticed; a changed number is not


@pytest.mark.parametrize(
    ("parse", "content"),
    [
        (parse_npy, npy()),
        (parse_npz, npz()),
        (parse_safetensors, safetensors()),
        (unpack, gzip.compress(npy(), mtime=0)),
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


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_values_of_any_type_end_in_an_error_of_the_family(tmp_path: Path, kind: str) -> None:
    name, read, document = DOCUMENTS[kind]
    path = tmp_path / name
    path.write_text(json.dumps(document))
    if kind not in {"vLLM load", "vllm-ascend load"}:  # these need a map
        read(path)
    for place in range(12):
        for value in STRANGERS:
            path.write_text(json.dumps(replaced(document, place, value)[0]))
            accept(lambda: read(path))


COMMANDS = {
    as_load: ("load",),
    as_map: ("check", "--ep-size", 2),
    as_model: ("plan", "load.npy", "--ep-size", 2, "--redundant", 0, "--model"),
}


@pytest.mark.parametrize("kind", [*DOCUMENTS, *VALID])
def test_on_the_command_line_they_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("load.npy", LOAD)
    name, read, content = VALID[kind] if kind in VALID else DOCUMENTS[kind]
    if read not in COMMANDS:
        pytest.skip("no command reads it alone")
    rng = np.random.default_rng(list(kind.encode()))
    for _ in range(4):
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(damaged(content, rng))
        else:
            stranger = STRANGERS[rng.integers(len(STRANGERS))]
            changed = replaced(content, int(rng.integers(1, 9)), stranger)[0]
            (tmp_path / name).write_text(json.dumps(changed))
        result = run(*COMMANDS[read], name)
        assert isinstance(result.exception, SystemExit | None), result.exception
        if result.exit_code == 2:
            assert_one_line_error(result)
        else:
            assert result.exit_code in {0, 1}


# In a process of its own: the most memory that it had is only known of a whole process.
_MEASURE = """
import gzip, io, json, sys, tempfile, time, zipfile
from pathlib import Path
import numpy as np
from expert_maps import ExpertMapsError, files, read_load, read_placement
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

def io_source(name, content):
    return files.Source(name, content)

def npy_of(tokens):
    buffer = io.BytesIO()
    np.save(buffer, np.ones((tokens, 1, 2), dtype=np.int8))
    return buffer.getvalue()

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
    "YAML directives": lambda: text(b"".join(b"%%TAG !a%d! tag:x:\\n" % i for i in range(130_000)) + b"--- a: 1"),
    "lists of one": lambda: text(b"[" + b"[1]," * 5_000_000 + b"[1]]"),
    "lines of CSV": lambda: read_load(io_source("load.csv", b"1\\n" * 1_000_000)),
    "steps of CSV": lambda: read_load(io_source("load.csv", b"step,0\\n" + b"1,2\\n" * 200_000)),
    "tokens": lambda: read_load(io_source("load.npy", npy_of(1_200_000))),
    "a zip bomb": npz,
    "a gzip bomb": lambda: files.unpack(gzip.compress(bytes(2**26), 1, mtime=0) * 9),
}
for name, read in cases.items():
    start = time.process_time()
    try:
        read()
        outcome = "read"
    except ExpertMapsError as error:
        outcome = str(error).splitlines()[0][-70:]
    seconds = time.process_time() - start
    # Of this program alone: `getrusage` goes on from the process that started it.
    peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(json.dumps([name, outcome, seconds, peak]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="another unit of memory")
def test_no_file_costs_more_than_a_gib_or_ten_seconds(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", _MEASURE, str(tmp_path / "map.json")]
    run = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(rows) == 15
    for name, outcome, seconds, peak in rows:
        assert outcome != "read", name
        assert seconds < 10, (name, seconds)
        assert peak < 2**30, (name, peak)
