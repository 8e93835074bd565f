# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Reading a map, whichever of the known formats the file is in: by its content, never by its name alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import numpy as np

from expert_maps._layers import as_layers
from expert_maps.errors import ExpertMapsError, FormatError, PlacementError
from expert_maps.files import describe
from expert_maps.formats import (
    deepseek,
    golden,
    native,
    omni,
    sglang,
    tensorrt_llm,
    vllm,
    vllm_ascend,
    vllm_plugin_das,
)
from expert_maps.formats.checks import show
from expert_maps.formats.contents import Content, read_content
from expert_maps.formats.mapfile import Asked, Form, MapFile, RanksUnsaidError
from expert_maps.layered import AnyPlacement, refuse_layered

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from expert_maps.files import AnyPath
    from expert_maps.placement import Placement

FORM_NAMES: tuple[Form, ...] = get_args(Form)

_READERS: dict[Form, Callable[[Content, Asked], MapFile]] = {
    "expert-maps": native.parse_file,
    "vllm-ascend": vllm_ascend.parse_file,
    "golden": golden.parse_file,
    "sglang": sglang.parse,
    "tensorrt-llm": tensorrt_llm.parse,
    "vllm": vllm.parse,
    "deepseek": deepseek.parse,
    "omni": omni.parse,
    "vllm-plugin-das": vllm_plugin_das.parse,
}

# Keys that only one kind of file has. What several have (log2phy, replica_count …) decides nothing.
_VLLM_ONLY = ("logical_to_physical_map", "logical_replica_count", "replica_count")
_SIGNS: dict[str, tuple[str, ...]] = {
    "vllm-ascend": ("layer_list", "moe_layer_count"),
    "golden": ("physical_to_logical",),
    "deepseek": ("phy2log",),
    "sglang": ("physical_to_logical_map",),
    "tensorrt-llm": ("initial_global_assignments",),
    "vllm-plugin-das": ("model_maps",),
    "a load": (
        "logical_count",
        "expert_load",
        "expert_load_pass",
        "expert_load_window",
        "moe_load",
        "load",
        "loads",
        "counts",
    ),
}


def read_placement(
    path: AnyPath,
    *,
    format: str | None = None,  # noqa: A002 - the word for it
    num_logical_experts: int | None = None,
    ep_size: int | None = None,
    layers: Sequence[int] | str | None = None,
    allow_uneven: bool = False,
    allow_duplicates: bool = False,
) -> Placement:
    """Read a map of any known format: the project's own, vllm-ascend's, golden, SGLang's, TensorRT-LLM's and others.

    `inspect_map` also tells which it is, and what it may not say.

    Args:
        path: the file; its content decides, not its name.
        format: the format, where the content leaves it open; one of `FORM_NAMES`.
        num_logical_experts: E; if None, as the file says, or one more than its largest id.
        ep_size: R, for formats that do not say it.
        layers: the absolute indices of the model's MoE layers, such as ``range(3, 61)``, ``"3-60"`` or ``"all"``: which
            rows are taken where a file has rows of all layers, and how many there must be where it has not.
        allow_uneven: as in `Placement`.
        allow_duplicates: as in `Placement`.

    Raises:
        FormatError: absent, unreadable, of no known or of several formats, a count is missing that the file does not
            say, or maps in the file contradict each other; the file is named.
        PlacementError: the slots are no valid placement, every violation is listed; or ranks have other slots in some
            layers, which `read_any_placement` takes.
    """
    found = read_any_placement(
        path,
        format=format,
        num_logical_experts=num_logical_experts,
        ep_size=ep_size,
        layers=layers,
        allow_uneven=allow_uneven,
        allow_duplicates=allow_duplicates,
    )
    return refuse_layered(found)


def read_any_placement(
    path: AnyPath,
    *,
    format: str | None = None,  # noqa: A002 - as above
    num_logical_experts: int | None = None,
    ep_size: int | None = None,
    layers: Sequence[int] | str | None = None,
    allow_uneven: bool = False,
    allow_duplicates: bool = False,
) -> AnyPlacement:
    """Read a map as `read_placement`, also one whose ranks have other slots in some layers: a `LayeredPlacement`.

    Raises:
        FormatError: as `read_placement`.
        PlacementError: as `read_placement`, but for slots that differ by layer.
    """
    found = inspect_map(
        path,
        format=format,
        num_logical_experts=num_logical_experts,
        ep_size=ep_size,
        layers=layers,
        allow_uneven=allow_uneven,
        allow_duplicates=allow_duplicates,
    )
    if found.has_dense_rows:
        # There is nobody here to warn.
        msg = (
            f"{describe(path)}: {found.description}, dense layers too; expected layers, which of them are MoE, such as "
            "'3-60' or 'all' (inspect_map returns all rows, and says so)"
        )
        raise FormatError(msg)
    return found.placement


def inspect_map(  # noqa: PLR0913 - options by keyword
    path: AnyPath,
    *,
    format: str | None = None,  # noqa: A002 - as above
    num_logical_experts: int | None = None,
    ep_size: int | None = None,
    layers: Sequence[int] | str | None = None,
    num_hidden_layers: int | None = None,
    key: str | None = None,
    ignore_digest: bool = False,
    allow_uneven: bool = False,
    allow_duplicates: bool = False,
) -> MapFile:
    """Read a map and tell its format, what the file says beside it, and what may be meant otherwise.

    Args:
        path: as `read_placement`.
        format: as `read_placement`.
        num_logical_experts: as `read_placement`.
        ep_size: as `read_placement`.
        layers: as `read_placement`.
        num_hidden_layers: all layers of the model, dense ones too, where it is known.
        key: which of several maps in a file of vllm-plugin-das.
        ignore_digest: take a file of the project's own though it was changed after it was written.
        allow_uneven: as in `Placement`; ranks that have other slots in some layers are always taken.
        allow_duplicates: as in `Placement`.

    Raises:
        FormatError: as `read_placement`.
        PlacementError: as `read_any_placement`.
    """
    if format is not None and format not in FORM_NAMES:
        msg = f"format is {format!r}; expected one of {', '.join(FORM_NAMES)}"
        raise FormatError(msg)
    asked = Asked(
        num_logical_experts=num_logical_experts,
        ep_size=ep_size,
        layers=None if layers is None else as_layers(layers),
        num_hidden_layers=num_hidden_layers,
        key=key,
        ignore_digest=ignore_digest,
        allow_uneven=allow_uneven,
        allow_duplicates=allow_duplicates,
    )
    content = read_content(path, as_yaml=format == "tensorrt-llm")
    try:
        form = recognise(content, format)
        found = _READERS[form](content, asked)
    except PlacementError:
        raise
    except ExpertMapsError as error:
        msg = f"{describe(path)}: {error}"
        kind = RanksUnsaidError if isinstance(error, RanksUnsaidError) else FormatError
        raise kind(msg) from error
    if found.num_hidden_layers is None and num_hidden_layers is not None:
        return replace(found, num_hidden_layers=num_hidden_layers)
    return found


def recognise(content: Content, asked: str | None = None) -> Form:
    """Return the format of a file's content.

    Args:
        content: what the file holds.
        asked: the format by the caller, one of `FORM_NAMES`, or None.

    Raises:
        FormatError: none or several are possible; they are named.
    """
    value = content.value
    form = _of_keys(content, value, asked) if isinstance(value, dict) else None
    if asked is not None:
        return next(name for name in FORM_NAMES if name == asked)
    if form is not None:
        return form
    if omni.is_pattern(value):
        return "omni"
    if deepseek.is_tuple(value):
        return "deepseek"
    if isinstance(value, np.ndarray):
        _refuse_array(value)
    if isinstance(value, list) and value and isinstance(value[0], list):
        msg = (
            "the file is a list of lists without a name, which may be a map or a load; say which map by --from: "
            "deepseek or vllm (MoE layers only), sglang (all layers)"
        )
        raise FormatError(msg)
    msg = f"the file is {show(value)}; expected an object with a map"
    raise FormatError(msg)


def _of_keys(content: Content, value: dict[object, object], asked: str | None) -> Form | None:
    """Return the format by the keys of an object; two of them are refused whatever is asked."""
    found = {
        name: next(key for key in keys if key in value)
        for name, keys in _SIGNS.items()
        if any(key in value for key in keys)
    }
    if "tensorrt-llm" not in found and tensorrt_llm.balancer_of(value) is not None:
        found["tensorrt-llm"] = "load_balancer"
    if len(found) > 1:
        names = " and ".join(f"{name} ({key!r})" for name, key in found.items())
        msg = f"the file has the keys of {names}; expected one kind of map: remove the others"
        raise FormatError(msg)
    if "a load" in found:
        msg = f"the file is a load ({found['a load']!r}), not a map; `expert-maps plan` makes a map of it"
        raise FormatError(msg)
    if not found:
        if asked is not None:
            return None
        keys = ", ".join(repr(key) for key in list(value)[:8]) or "none"
        msg = f"the file has the keys {keys}, by which no map is known; say what it is by --from: {', '.join(FORM_NAMES)}"
        raise FormatError(msg)
    name = next(iter(found))
    is_array_file = content.kind in {"npz", "safetensors"}
    if name == "vllm-ascend":
        return "expert-maps" if native.OBJECT in value else "vllm-ascend"
    if name == "golden" and (is_array_file or content.kind == "pt"):
        return "vllm"
    if name in {"deepseek", "sglang"} and any(key in value for key in _VLLM_ONLY):
        return "vllm"
    if name == "sglang" and ("log2phy" in value or "logcnt" in value or is_array_file):
        return "vllm"
    return next(form for form in FORM_NAMES if form == name)


def _refuse_array(value: np.ndarray) -> None:
    what = f"one array {value.dtype} {list(value.shape)} without a name"
    if value.ndim == 2 and value.dtype.kind in "iu":  # noqa: PLR2004 - [layers, slots], or a load
        msg = (
            f"the file is {what}, which may be a map or a load; say which map by --from: deepseek or vllm (MoE layers "
            "only), sglang (all layers)"
        )
    else:
        msg = f"the file is {what}, by which no map is known; an omni-infer pattern is 0 or 1 [ranks, layers, experts]"
    raise FormatError(msg)
