# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Which format a map file is in, by its content."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import numpy as np

from expert_maps.errors import FormatError, printable
from expert_maps.formats import deepseek, native, omni, tensorrt_llm
from expert_maps.formats.checks import show
from expert_maps.formats.mapfile import Form

if TYPE_CHECKING:
    from collections.abc import Mapping

    from expert_maps.formats.contents import Content

FORM_NAMES: tuple[Form, ...] = get_args(Form)

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


def check_form(form: str | None) -> None:
    """Refuse what is no format.

    Raises:
        FormatError: as said; the known ones are listed.
    """
    if form is not None and form not in FORM_NAMES:
        msg = f"format is '{printable(form)}'; expected one of {', '.join(FORM_NAMES)}"
        raise FormatError(msg)


def recognise(content: Content, asked: str | None = None) -> Form:
    """Return the format of a file's content.

    Args:
        content: what the file holds.
        asked: the format by the caller, one of `FORM_NAMES`, or None.

    Raises:
        FormatError: none or several are possible; they are named.
    """
    value = content.value
    form = _of_keys(content, asked) if isinstance(value, dict) else None
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


def kinds_in(content: Content) -> dict[str, str]:
    """Return the kinds of map whose keys an object has, or ``a load``, and the first such key of each."""
    value = content.value
    if not isinstance(value, dict):
        return {}
    found = {
        name: next(key for key in keys if key in value)
        for name, keys in _SIGNS.items()
        if any(key in value for key in keys)
    }
    if "tensorrt-llm" not in found and tensorrt_llm.balancer_of(value) is not None:
        found["tensorrt-llm"] = "load_balancer"
    return found


def name_kinds(kinds: Mapping[str, str]) -> str:
    """Say that there are several, each with its key."""
    names = " and ".join(f"{name} ({key!r})" for name, key in kinds.items())
    return f"the file has the keys of {names}; expected one kind of map: remove the others"


def form_of(kind: str, content: Content) -> Form:
    """Return the format of a kind of map, which also depends on what else is in the file."""
    value = content.mapping()
    is_array_file = content.kind in {"npz", "safetensors"}
    if kind == "vllm-ascend":
        return "expert-maps" if native.OBJECT in value else "vllm-ascend"
    if kind == "golden" and (is_array_file or content.kind == "pt"):
        return "vllm"
    if kind in {"deepseek", "sglang"} and any(key in value for key in _VLLM_ONLY):
        return "vllm"
    if kind == "sglang" and ("log2phy" in value or "logcnt" in value or is_array_file):
        return "vllm"
    return next(form for form in FORM_NAMES if form == kind)


def _of_keys(content: Content, asked: str | None) -> Form | None:
    """Return the format by the keys of an object; two of them are refused whatever is asked."""
    found = kinds_in(content)
    if len(found) > 1:
        raise FormatError(name_kinds(found))
    if "a load" in found:
        msg = f"the file is a load ({found['a load']!r}), not a map; `expert-maps plan` makes a map of it"
        raise FormatError(msg)
    if found:
        return form_of(next(iter(found)), content)
    if asked is not None:
        return None
    keys = ", ".join(f"'{printable(str(key))}'" for key in list(content.mapping())[:8]) or "none"
    msg = f"the file has the keys {keys}, by which no map is known; say what it is by --from: {', '.join(FORM_NAMES)}"
    raise FormatError(msg)


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
