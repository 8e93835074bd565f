# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed: a function of bytes for each way in, and what documented refusals are."""

from __future__ import annotations

import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from expert_maps import (
    generate_placement,
    inspect_load,
    inspect_map,
    plan,
    rescale,
    split_replicas,
)
from expert_maps.files import Source, parse_json, unpack
from expert_maps.formats.arrays import parse_npy, parse_npz
from expert_maps.formats.safetensors import parse_safetensors
from expert_maps.formats.weights import read_stored
from expert_maps.formats.yaml_text import parse_yaml
from expert_maps.models import model_counts
from harness.accuracy.journal import Journal
from harness.accuracy.loading import parse_config
from harness.accuracy.records import read_record
from harness.fuzz import seeds
from harness.record import history
from vllm_ascend_moe.core.settings import ENV_PREFIX, read_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Of the loads that say too little by themselves: the names that decide how they are read, and what is said of them.
_LOADS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {},
    {"num_experts": 8, "window": 4},
    {"num_experts": 8, "num_layers": 3},
    {"format": "csv"},
    {"format": "array"},
    {"format": "sglang-csv", "num_experts": 8},
    {"format": "mindie"},
)


@dataclass(frozen=True)
class Target:
    """A way in.

    Attributes:
        name: of it.
        run: reads an input; raises `ExpertMapsError` where that is wrong.
        seeds: valid inputs.
        is_json: whether all of them are JSON texts.
    """

    name: str
    run: Callable[[bytes], object]
    seeds: Sequence[bytes] = field(repr=False)
    is_json: bool = False


def _choice(content: bytes, count: int) -> int:
    """Return a number from 0 that an input alone decides."""
    return zlib.crc32(content) % count


def _load(content: bytes) -> object:
    options = _LOADS[_choice(content, len(_LOADS))]
    name = "decode_0.csv" if options.get("num_layers") else "load"
    return inspect_load(Source(name, content), **options)


def _map(content: bytes) -> object:
    return inspect_map(
        Source("map", content),
        ep_size=2 if _choice(content, 3) else None,
        allow_uneven=bool(_choice(content, 2)),
    )


def _weights(content: bytes) -> object:
    return read_stored(Source("weights", content))


def _model(content: bytes) -> object:
    return model_counts(Source("config.json", content))


def _settings(content: bytes) -> object:
    value = parse_json(content, "settings")
    environ = {}
    if isinstance(value, dict):
        environ = {
            f"{ENV_PREFIX}{name.upper()}": text for name, text in value.items() if isinstance(text, str)
        }
    if _choice(content, 2):
        return read_settings(value)
    return read_settings({}, environ)


def _configuration(content: bytes) -> object:
    document = parse_yaml(content)
    return parse_config(document, "a.yaml", trusted=False) if isinstance(document, dict) else None


def _history(content: bytes) -> object:
    return history.read(_kept("history.jsonl", content))


def _record(content: bytes) -> object:
    summary, _, questions = content.partition(b"\n")
    path = _kept("summary.json", summary)
    _kept("questions.jsonl", questions)
    return read_record(path.parent)


def _journal(content: bytes) -> object:
    journal = Journal(_kept("journal.jsonl", content))
    journal.close()
    return journal


def _kept(name: str, content: bytes) -> Path:
    path = Path(_FOLDER.name) / name
    path.write_bytes(content)
    return path


# In memory, where there is such a folder: a hundred thousand files are written.
_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of its own below
_FOLDER = tempfile.TemporaryDirectory(prefix="fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None)


def _planner(content: bytes) -> object:
    """Call the compiled planner by what a JSON object says: of any type and size, a load of any numbers."""
    document = parse_json(content, "planner")
    if not isinstance(document, dict):
        return None
    said = {str(name): value for name, value in document.items()}
    load, call = said.pop("load", None), said.pop("call", "plan")
    try:
        array = np.asarray(load, dtype=float)
    except (ValueError, TypeError, OverflowError):
        return None
    if call == "split":
        return split_replicas(_made(said), array)
    if call == "rescale":
        current = _made(said.pop("from", {}))
        return rescale(current, array, **_known(said, "ep_size", "failed_ranks", "num_redundant_experts"))
    current = _made(said.pop("from")) if isinstance(said.get("from"), dict) else None
    names = (
        "ep_size",
        "num_redundant_experts",
        "num_groups",
        "num_nodes",
        "tolerance",
        "max_moves",
        "policy",
    )
    result = plan(array, current=current, **{"ep_size": 2, **_known(said, *names)})
    counts = np.bincount(result.placement.physical_to_logical[0], minlength=array.shape[-1])
    if not counts.all():
        msg = f"the plan leaves out expert {int(counts.argmin())}"
        raise AssertionError(msg)
    return result


def _made(said: object) -> Any:  # noqa: ANN401 - a placement
    given = said if isinstance(said, dict) else {}
    names = ("layout", "num_experts", "ep_size", "num_redundant_experts", "num_layers")
    return generate_placement(**{"num_experts": 8, "ep_size": 4, **_known(given, *names)})


def _known(said: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: said[name] for name in names if name in said}


def _json(content: bytes) -> object:
    return parse_json(content, "text")


TARGETS = (
    Target("load", _load, seeds.LOADS),
    Target("load-json", _load, seeds.JSON_LOADS, is_json=True),
    Target("map", _map, seeds.MAPS),
    Target("map-json", _map, seeds.JSON_MAPS, is_json=True),
    Target("weights", _weights, seeds.WEIGHTS),
    Target("model", _model, seeds.MODELS, is_json=True),
    Target("json", _json, seeds.TEXTS, is_json=True),
    Target("yaml", parse_yaml, seeds.YAMLS),
    Target("npy", parse_npy, seeds.ARRAYS),
    Target("npz", parse_npz, seeds.ARCHIVES),
    Target("safetensors", parse_safetensors, seeds.SAFETENSORS),
    Target("gzip", unpack, seeds.PACKED),
    Target("settings", _settings, seeds.SETTINGS, is_json=True),
    Target("configuration", _configuration, seeds.CONFIGURATIONS),
    Target("history", _history, seeds.HISTORIES),
    Target("record", _record, seeds.RECORDS),
    Target("journal", _journal, seeds.JOURNALS),
    Target("planner", _planner, seeds.PROBLEMS, is_json=True),
)
"""Every way in."""

__all__ = ["TARGETS", "Target"]
