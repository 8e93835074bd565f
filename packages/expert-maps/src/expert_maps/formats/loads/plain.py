# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Arrays [L, E] or [steps, L, E]: ``.npy``, ``.npz``, JSON lists, tensors; and the files that this project records.

An ``.npz`` file may hold several of the same layers and experts, whose steps are taken together. The plugin's
``record_path`` and ``expert-maps load --output`` write one array of the name ``load``.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np

from expert_maps.errors import LoadError
from expert_maps.formats.loads import suspicion
from expert_maps.formats.loads.counts import Counts, Form, combine
from expert_maps.formats.loads.values import LOAD_KEYS, as_counts, check_table, listed, naming, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from expert_maps.formats.loads.document import Document
    from expert_maps.formats.loads.options import LoadOptions

# What is known to be a map; beside a load it must not be taken for steps.
MAP_NAMES = (
    "physical_to_logical_map",
    "physical_to_logical",
    "phy2log",
    "logical_to_physical_map",
    "logical_to_physical",
    "log2phy",
    "logical_replica_count",
    "replica_count",
    "expert_map",
    "layer_list",
    "initial_global_assignments",
)
# What SGLang's recorder writes in its modes that keep each pass or token.
_DETAIL_NAMES = {"records", "last_physical_to_logical_map"}


def _read(documents: Sequence[Document], options: LoadOptions, *, is_sure: bool = False) -> Counts:
    parts = []
    for document in documents:
        with naming(document.name):
            parts.append(_one(document, options, is_sure=is_sure))
    return combine(parts, options.files)


def _one(document: Document, options: LoadOptions, *, is_sure: bool) -> Counts:
    if document.kind == "csv":
        msg = "a CSV file; expected an array in .npy, .npz, JSON, .safetensors or .pt"
        raise LoadError(msg)
    if document.named is None:
        if options.key is not None:
            what = "a list" if document.kind == "json" else "a single array"
            msg = f"key is {shown(options.key)!r}; expected none: the file holds {what}"
            raise LoadError(msg)
        counts = Counts(as_counts(document.value))
        name = None
    else:
        name, counts = _named(document.named, options.key, document.kind)
    if not is_sure and options.steps is None and options.placement is None and name not in LOAD_KEYS:
        suspicion.refuse(counts.values)
    return counts


def _named(named: Mapping[str, object], key: str | None, kind: str) -> tuple[str | None, Counts]:
    if key is not None:
        return key, Counts(as_counts(member(named, key)))
    known = [name for name in LOAD_KEYS if name in named]
    if len(known) == 1:
        return known[0], Counts(as_counts(named[known[0]]), labels=_labels(named))
    if known or kind != "npz":
        _refuse_others(named)
        what = "object has keys" if kind == "json" else "file has arrays"
        msg = f"the {what} {_quoted(named)}; expected exactly one of {', '.join(LOAD_KEYS)}; choose one with --key"
        raise LoadError(msg)
    _refuse_others(named)
    return None, _all_arrays(cast("Mapping[str, np.ndarray]", named))


def member(named: Mapping[str, object], key: str) -> object:
    """Return what stands under a key.

    Raises:
        LoadError: there is no such; those that are there are named.
    """
    if key not in named:
        msg = f"there is no array {shown(key)!r}; expected one of {listed(named)}"
        raise LoadError(msg)
    return named[key]


def _all_arrays(named: Mapping[str, np.ndarray]) -> Counts:
    if not named:
        msg = "the file holds no arrays; expected a load"
        raise LoadError(msg)
    shapes = listed([f"{name} {list(array.shape)}" for name, array in named.items()])
    if all(array.ndim == 1 for array in named.values()):
        msg = (
            f"the file holds an array of one axis a layer or step: {shapes}; expected [L, E] or [steps, L, E]"
        )
        raise LoadError(msg)
    parts = {}
    for name, array in named.items():
        try:
            parts[name] = as_counts(array)
        except LoadError as error:
            msg = (
                f"array {shown(name)!r}: {error}; choose one by its key: {shapes}"
                if len(named) > 1
                else str(error)
            )
            raise LoadError(msg) from error
    if len({part.shape[1:] for part in parts.values()}) > 1:
        msg = f"the arrays differ in layers or experts; choose one by its key: {shapes}"
        raise LoadError(msg)
    check_table((sum(len(part) for part in parts.values()), *next(iter(parts.values())).shape[1:]))
    counts = Counts(np.concatenate(list(parts.values())))
    if len(parts) == 1:
        return counts
    return replace(counts, details=(f"{len(parts)} arrays taken as steps: {listed(parts)}",))


def _labels(named: Mapping[str, object]) -> tuple[int, ...] | None:
    # What `export_load` writes beside the load.
    labels = named.get("layers")
    rows = named.get("load")
    is_numbers = isinstance(labels, list) and bool(labels) and set(map(type, labels)) == {int}
    if not is_numbers or not isinstance(rows, list):
        return None
    numbers = cast("list[int]", labels)
    count = (
        len(rows[0])
        if rows and isinstance(rows[0], list) and rows[0] and isinstance(rows[0][0], list)
        else len(rows)
    )
    return (
        tuple(numbers)
        if len(numbers) == count and sorted(set(numbers)) == numbers and numbers[0] >= 0
        else None
    )


def _refuse_others(named: Mapping[str, object]) -> None:
    maps = [name for name in MAP_NAMES if name in named]
    if named.keys() >= _DETAIL_NAMES:
        msg = (
            "a dump of SGLang's recorder that keeps each pass or token; expected one of its mode stat "
            "(--expert-distribution-recorder-mode stat), which has logical_count"
        )
        raise LoadError(msg)
    if maps and not any(name in named for name in LOAD_KEYS):
        msg = f"has {', '.join(maps)}, so it is a map, not a load; choose the load with --key if there is one"
        raise LoadError(msg)
    if maps:
        return
    if named.keys() >= {"num_experts", "num_experts_per_token"}:
        msg = "TensorRT-LLM's meta_info.json, which holds no counts; expected the rank*.safetensors beside it"
        raise LoadError(msg)


def _quoted(named: Mapping[str, object]) -> str:
    return listed([repr(shown(name)) for name in named]) or "none"


def _is_record(document: Document) -> bool:
    named = document.named
    return document.kind == "npz" and named is not None and list(named) == ["load"]


RECORD = Form("record", "load recorded by expert-maps", _is_record, _read)
ARRAY = Form("array", "array", lambda document: document.kind != "csv", _read)
FORCED_ARRAY = Form("array", "array", lambda document: document.kind != "csv", partial(_read, is_sure=True))
