# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Valid inputs of every form, small, made anew each time: what is mutated."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from expert_maps import generate_placement
from expert_maps.formats import deepseek, golden, native, omni, sglang, tensorrt_llm, vllm, vllm_ascend
from expert_maps.formats.safetensors import dump_safetensors

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROOT = Path(__file__).parents[4]

PLACEMENT = generate_placement(num_experts=8, ep_size=2, num_redundant_experts=2, num_layers=2)
_LOAD = np.arange(2 * 3 * 8).reshape(2, 3, 8)
_ROWS = _LOAD[0].tolist()
_SHARES = np.where(PLACEMENT.logical_to_physical >= 0, 1.0, 0.0)
_SHARES /= _SHARES.sum(axis=2, keepdims=True)


def _npy(array: Any) -> bytes:  # noqa: ANN401 - any array
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _npz(**arrays: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict[str, Any](arrays))
    return buffer.getvalue()


def _texts(*documents: object) -> tuple[bytes, ...]:
    return tuple(json.dumps(document).encode() for document in documents)


def _tokens(count: int) -> dict[str, object]:
    return {str(layer): {str(index): 1 for index in range(count)} for layer in range(3)}


def _first_lines(folder: str, pattern: str, most: int = 20_000) -> tuple[bytes, ...]:
    """Return what small files of the checkout hold; nothing where they are not there, as in a wheel."""
    found = [path.read_bytes() for path in sorted((ROOT / folder).glob(pattern))]
    return tuple(content for content in found if len(content) <= most)


_STORED = dump_safetensors({"0_3": _LOAD[0, 0], "0_4": _LOAD[0, 1]})
JSON_LOADS = _texts(
    {"load": _LOAD.tolist(), "layers": [3, 4, 5]},
    {"rank": 0, "logical_count": _LOAD.tolist()},
    {"expert_load_window": _LOAD.tolist()},
    {"moe_load": _LOAD.tolist()},
    _tokens(8),
    {"token_scores": _tokens(8), "gate_scores": {}},
    {f"100_{layer}": _ROWS[layer] for layer in range(3)},
    {"routed_experts": [[[token % 8, (token + 3) % 8]] for token in range(9)]},
    _ROWS,
)
LOADS = (
    _npy(_LOAD),
    _npz(load=_LOAD),
    gzip.compress(_npy(_LOAD), mtime=0),
    _STORED,
    "\n".join(",".join(map(str, row)) for row in _ROWS).encode(),
    b"step;layer;0;1\n0;3;1,5;2\n0;4;2;1\n1;3;5;5\n1;4;1;9 # end\n",
    b'"layer","e0","e1"\n"3","1","2"\n"4","2","1"\n',
    b"layer_id,expert_id,count\n3,0,1\n3,7,2\n4,0,5\n5,1,6\n",
    b"1,2\n3,4\n5,6\n",
)
JSON_MAPS = _texts(
    json.loads(vllm_ascend.dumps(PLACEMENT)),
    json.loads(native.dumps(PLACEMENT, model="m", layers=[3, 4])),
    golden.document_of(PLACEMENT),
    {sglang.KEY: PLACEMENT.physical_to_logical.tolist()},
    {"num_slots": 10, tensorrt_llm.KEY: {"3": [*range(8), 0, 1]}},
    {key: value.tolist() for key, value in vllm.arrays(PLACEMENT).items()},
    [value.tolist() for value in deepseek.arrays(PLACEMENT).values()],
    {"version": 2, "model_maps": {"m": {sglang.KEY: [[*range(8)]]}}},
)
MAPS = (
    tensorrt_llm.dumps(PLACEMENT, [3, 4]).encode(),
    _npz(**vllm.arrays(PLACEMENT)),
    dump_safetensors(dict(vllm.arrays(PLACEMENT))),
    _npy(omni.pattern(PLACEMENT)),
)
_WEIGHTS = {"version": 1, "digest": PLACEMENT.digest, "weights": _SHARES.tolist()}
WEIGHTS = (
    *_texts(_WEIGHTS),
    _npz(**{name: np.array(value) for name, value in _WEIGHTS.items()}),
)
MODELS = _texts(
    {
        "model_type": "deepseek_v3",
        "num_hidden_layers": 6,
        "n_routed_experts": 8,
        "first_k_dense_replace": 3,
        "moe_layer_freq": 1,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "n_shared_experts": 1,
        "hidden_size": 8,
        "moe_intermediate_size": 4,
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 2]},
    },
    {
        "thinker_config": {
            "text_config": {
                "num_hidden_layers": 3,
                "num_experts": 8,
                "mlp_only_layers": [1],
                "hidden_size": 8,
            }
        },
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "ignore": ["lm_head"],
            "config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 2}}},
        },
    },
    {"num_hidden_layers": 4, "num_local_experts": [0, 8, 0, 8], "layer_types": ["a", "moe", "a", "moe"]},
    {
        "num_layers": 4,
        "num_experts": 4,
        "block_configs": [{"ffn": {"num_experts": 4}}, {"ffn": {}}],
        "expert_interval": 2,
    },
    {"num_hidden_layers": 4, "num_experts": 4, "moe_layers_enum": "1,3", "hybrid_override_pattern": "ME*E"},
)
TEXTS = (b'{"a": [1, -2.5e3, true, null, "x\\u00e9"], "b": {"c": []}}', b"[[1],[2,3]]")
YAMLS = (b"a: &x [1, 2]\nb: *x\nc: |\n  text\n", b"%YAML 1.1\n--- {a: 1.5, b: 'x', ? c : !!int 3}\n...\n")
ARRAYS = (
    _npy(_LOAD),
    _npy(_LOAD.astype(">f4")),
    _npy(np.asfortranarray(_LOAD[0])),
    _npy(np.ones((), dtype=bool)),
)
ARCHIVES = (_npz(a=_LOAD, b=_LOAD[0]), _npz(load=_LOAD))
SAFETENSORS = (_STORED, dump_safetensors({}))
PACKED = (gzip.compress(_npy(_LOAD), mtime=0), gzip.compress(b"a", mtime=0) + gzip.compress(b"b", mtime=0))
SETTINGS = _texts(
    {
        "expert_map_path": "m.json",
        "dynamic": True,
        "policy": "balanced",
        "max_moves": 3,
        "record_path": "l.npz",
    },
    {
        "layout": "ring",
        "num_redundant_experts": 8,
        "step_interval": 10,
        "window_size": 5,
        "record_interval": 1,
    },
    {
        "replica_choice": "weighted",
        "replica_weights_path": "w.npz",
        "load_collection_phase": "decode",
        "min_gain": 0.5,
    },
    {"dynamic": "true", "max_layers": "4", "log_balancedness": "yes", "log_balancedness_interval": "3"},
)
CONFIGURATIONS = _first_lines("accuracy/models", "*.yaml") or YAMLS


def _records() -> tuple[bytes, ...]:
    """Return small records of arms: a line with the summary, then lines of questions."""
    found = []
    for path in sorted(ROOT.glob("accuracy/results/*/*/summary.json")):
        lines = path.with_name("questions.jsonl").read_bytes().split(b"\n")[:2]
        correct = sum(json.loads(line)["correct"] for line in lines)
        summary = {**json.loads(path.read_bytes()), "num_questions": len(lines), "num_correct": correct}
        summary["value"] = 100.0 * correct / len(lines)
        found.append(b"\n".join([json.dumps(summary).encode(), *lines, b""]))
    return tuple(found) or (b'{"format": 1}\n{"index": 0}\n',)


HISTORIES = _first_lines("harness/bench/records", "*.jsonl", 5000) or (b'{"format": 1}\n',)
RECORDS = _records()
JOURNALS = (b'{"key": "a", "answer": {"x": 1}}\n{"key": "b", "answer": {}}\n{"ke',)
_SMALL = [[5, 1, 1, 1, 9, 0, 2, 3], [1, 1, 1, 1, 1, 1, 1, 8]]
PROBLEMS = _texts(
    {"load": _SMALL, "ep_size": 4, "num_redundant_experts": 4},
    {"load": [_SMALL] * 3, "ep_size": 4, "num_redundant_experts": 4, "num_nodes": 2, "num_groups": 4},
    {"load": _SMALL, "ep_size": 4, "from": {"num_redundant_experts": 4, "num_layers": 2}, "max_moves": 2},
    {"load": _SMALL, "ep_size": 2, "num_redundant_experts": 0, "policy": "deepseek", "tolerance": 0.01},
    {"call": "split", "load": _SMALL, "num_redundant_experts": 4, "num_layers": 2, "layout": "ring"},
    {
        "call": "rescale",
        "load": _SMALL,
        "from": {"num_redundant_experts": 8, "num_layers": 2},
        "failed_ranks": [3],
    },
)
