# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Reading a map, whichever of the known formats the file is in: by its content, never by its name alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

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
from expert_maps.formats.contents import Content, read_content
from expert_maps.formats.mapfile import Asked, Form, MapFile, RanksUnsaidError
from expert_maps.formats.recognising import check_form, recognise
from expert_maps.layered import AnyPlacement, refuse_layered

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from expert_maps.files import AnyPath
    from expert_maps.placement import Placement

READERS: dict[Form, Callable[[Content, Asked], MapFile]] = {
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
    check_form(format)
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
        found = READERS[form](content, asked)
    except PlacementError:
        raise
    except ExpertMapsError as error:
        msg = f"{describe(path)}: {error}"
        kind = RanksUnsaidError if isinstance(error, RanksUnsaidError) else FormatError
        raise kind(msg) from error
    if found.num_hidden_layers is None and num_hidden_layers is not None:
        return replace(found, num_hidden_layers=num_hidden_layers)
    return found
