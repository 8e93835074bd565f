# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Writing a map in the format of another system, and saying what that format cannot carry."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from expert_maps.errors import FormatError
from expert_maps.formats import deepseek, golden, native, omni, sglang, tensorrt_llm, vllm, vllm_ascend
from expert_maps.formats.mapfile import Form
from expert_maps.formats.safetensors import dump_safetensors
from expert_maps.formats.torch_files import dump_pt
from expert_maps.layered import LayeredPlacement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from expert_maps.formats.mapfile import MapFile
    from expert_maps.placement import Placement

# The endings of each target; the first is what standard output gets.
_ARRAYS = (".json", ".npz", ".safetensors", ".pt")
ENDINGS: dict[Form, tuple[str, ...]] = {
    "expert-maps": (".json",),
    "vllm-ascend": (".json",),
    "golden": (".json",),
    "sglang": (".json", ".pt"),
    "tensorrt-llm": (".yaml", ".yml"),
    "vllm": _ARRAYS,
    "deepseek": _ARRAYS,
    "omni": (".npy",),
}
TARGET_NAMES: tuple[Form, ...] = tuple(form for form in get_args(Form) if form in ENDINGS)

# How each server is told what its file does not say.
_RANKS = {
    "sglang": "start SGLang with --ep-size {ranks} --ep-num-redundant-experts {redundant}",
    "tensorrt-llm": "start TensorRT-LLM with an expert-parallel size of {ranks}",
    "vllm": "its reader must know it",
    "deepseek": "its reader must know it",
}


@dataclass(frozen=True)
class Encoded:
    """A map as another system's file.

    Attributes:
        content: the bytes of the file.
        lost: what the format does not carry; a line each.
    """

    content: bytes
    lost: tuple[str, ...]


def check_target(to: str, name: str) -> tuple[Form, str]:
    """Return the target format and the ending by which the file is written.

    Args:
        to: the format asked for.
        name: the output file's name; ``-`` for standard output.

    Raises:
        FormatError: no such target, or the name has another ending than the format's files.
    """
    form = next((known for known in TARGET_NAMES if known == to), None)
    if form is None:
        msg = f"--to is {to!r}; expected one of {', '.join(TARGET_NAMES)}"
        raise FormatError(msg)
    if name == "-":
        return form, ENDINGS[form][0]
    ending = PurePath(name).suffix
    if ending not in ENDINGS[form]:
        msg = f"output file is {name!r}; expected a name that ends in {' or '.join(ENDINGS[form])} for {form}"
        raise FormatError(msg)
    return form, ending


def encode(found: MapFile, to: Form, ending: str) -> Encoded:
    """Return a map in the format of another system.

    Args:
        found: the map, with what is known of it.
        to: the format, one of `TARGET_NAMES`.
        ending: one of the format's `ENDINGS`.

    Raises:
        FormatError: the format cannot say the map without changing what it means, or needs what is not known.
    """
    lost = _facts_lost(found, to)
    if to == "expert-maps":
        return Encoded(_native(found).encode(), ())
    if to == "vllm-ascend":
        return Encoded(vllm_ascend.dumps(found.placement).encode(), (*lost, *_ascend_doubts(found)))
    if to == "omni":
        return Encoded(*_omni(found, lost))
    placement = _flat(found, to)
    if to == "golden":
        text = golden.dumps(golden.document_of(placement))
        return Encoded(text.encode(), lost)
    content, notes = _without_ranks(found, placement, to, ending)
    return Encoded(content, (*lost, _ranks_lost(placement, to), *notes))


def _without_ranks(
    found: MapFile, placement: Placement, to: Form, ending: str
) -> tuple[bytes, tuple[str, ...]]:
    """Write a format of one row a layer that does not say the number of ranks."""
    if to == "sglang":
        rows, notes = _sglang_rows(found, placement)
        return sglang.dumps(rows).encode() if ending == ".json" else dump_pt({sglang.KEY: rows}), notes
    if to == "tensorrt-llm":
        return tensorrt_llm.dumps(placement, _absolute(found, to)).encode(), ()
    arrays = (vllm if to == "vllm" else deepseek).arrays(placement)
    return _dump_arrays(arrays, ending), ()


def _native(found: MapFile) -> str:
    provenance = {name: text for name, text in found.provenance.items() if name != "tool"}
    if found.form != "expert-maps":
        provenance["converted_from"] = found.form
    _refuse_dense_rows(found, "expert-maps")
    return native.dumps(
        found.placement,
        model=found.model,
        layers=found.layers,
        num_hidden_layers=found.num_hidden_layers if found.layers is not None else None,
        num_shared_experts=found.num_shared_experts,
        provenance=provenance,
    )


def _facts_lost(found: MapFile, to: Form) -> tuple[str, ...]:
    """Say which facts beside the placement the format has no place for."""
    if to != "sglang":
        _refuse_dense_rows(found, to)
    if found.num_shared_experts and to not in {"expert-maps", "vllm-ascend"}:
        msg = (
            f"the last {found.num_shared_experts} experts of the map are shared ones that are mixed in; {to} has no place "
            "for that and would route to them"
        )
        raise FormatError(msg)
    facts = {
        "how the map was made": bool(found.provenance),
        "the model's name": found.model is not None,
        "the layers' absolute numbers": found.layers is not None and to not in {"sglang", "tensorrt-llm"},
        "that shared experts are mixed in": bool(found.num_shared_experts),
    }
    named = [fact for fact, is_known in facts.items() if is_known]
    return (f"{to} does not carry {', '.join(named)}",) if named else ()


def _refuse_dense_rows(found: MapFile, to: Form) -> None:
    if found.has_dense_rows:
        msg = (
            f"the {found.placement.num_layers} rows are all layers of the model, dense ones too, and {to} has MoE layers "
            "only; say which are MoE: --model, --layers 3-60 or --layers all"
        )
        raise FormatError(msg)


def _ascend_doubts(found: MapFile) -> tuple[str, ...]:
    slots = found.placement.slots_per_rank
    if (slots.min(axis=-1) == slots.max(axis=-1)).all():
        return ()
    return ("vllm-ascend itself reads only maps whose ranks have equally many slots in a layer",)


def _omni(found: MapFile, lost: tuple[str, ...]) -> tuple[bytes, tuple[str, ...]]:
    placement = found.placement
    pattern = omni.pattern(placement)
    count = omni.unordered(placement)
    if count:
        total = placement.num_layers * placement.ep_size
        lost = (
            *lost,
            f"omni does not carry the order of slots: {count} of {total} ranks (over all layers) are sorted by expert",
        )
    buffer = io.BytesIO()
    np.save(buffer, pattern, allow_pickle=False)
    return buffer.getvalue(), lost


def _flat(found: MapFile, to: Form) -> Placement:
    """Return the placement for a format of one row a layer and equal ranks."""
    placement = found.placement
    if isinstance(placement, LayeredPlacement):
        msg = f"{placement.differing_layers()[0].message}; {to} has as many slots in every layer"
        raise FormatError(msg)
    if not placement.is_even and to != "golden":
        slots = placement.slots_per_rank
        msg = f"ranks have {slots.min()} to {slots.max()} slots; {to} has equally many on every rank"
        raise FormatError(msg)
    return placement


def _ranks_lost(placement: Placement, to: Form) -> str:
    counts = {"ranks": placement.ep_size, "redundant": placement.num_redundant_experts}
    return (
        f"{to} does not carry the number of ranks, {placement.ep_size}: {_RANKS[to].format_map(counts)}; "
        f"to read it here, give --ep-size {placement.ep_size}"
    )


def _absolute(found: MapFile, to: Form) -> tuple[int, ...]:
    if found.layers is None:
        msg = f"{to} needs the absolute number of each of the {found.placement.num_layers} MoE layers; give --model or --layers, such as --layers 3-60"
        raise FormatError(msg)
    return found.layers


def _sglang_rows(found: MapFile, placement: Placement) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    if found.has_dense_rows:  # all rows came from SGLang, and go back as they are
        return placement.physical_to_logical.astype(np.int64), ()
    layers = _absolute(found, "sglang")
    total, notes = found.num_hidden_layers, []
    if total is None:
        total = layers[-1] + 1
        notes.append(
            f"written for a model of {total} layers, the last MoE layer being its last; --model knows if there are more"
        )
    dense = total - len(layers)
    if dense:
        notes.append(
            f"{dense} of {total} rows are of dense layers and hold SGLang's initial placement, which it never uses"
        )
    return sglang.table(placement, layers, total), tuple(notes)


def _dump_arrays(arrays: Mapping[str, NDArray[np.int64]], ending: str) -> bytes:
    if ending == ".json":
        return (json.dumps({name: array.tolist() for name, array in arrays.items()}) + "\n").encode()
    if ending == ".safetensors":
        return dump_safetensors(arrays)
    if ending == ".pt":
        return dump_pt(arrays)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict[str, Any](arrays))
    return buffer.getvalue()
