# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Reading a load, whichever of the known forms the files are in."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from expert_maps._layers import as_layers
from expert_maps._words import counted
from expert_maps.errors import LoadError
from expert_maps.files import Source, describe
from expert_maps.formats.loads.checks import check_counts, suspicions
from expert_maps.formats.loads.choosing import Chosen, choose_layers, choose_steps
from expert_maps.formats.loads.document import open_document
from expert_maps.formats.loads.options import LoadOptions, ModelShape, layers_if_untold, parse_steps
from expert_maps.formats.loads.registry import form_of
from expert_maps.formats.loads.slots import by_expert
from expert_maps.formats.loads.values import check_axes, naming, spans
from expert_maps.load import take
from expert_maps.models import ModelCounts, model_counts
from expert_maps.validation import as_count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expert_maps.files import AnyPath
    from expert_maps.formats.loads.counts import Form
    from expert_maps.formats.loads.options import Files
    from expert_maps.load import ExpertLoad
    from expert_maps.placement import Placement


@dataclass(frozen=True)
class LoadFile:
    """A load with what was recognised about its files.

    Attributes:
        load: the counts, [steps, L, E], of MoE layers and logical experts.
        form: the short name of the files' form.
        description: one line on what was read.
        layers: the absolute index, or else the file's own number, of each layer; None where neither is known.
        warnings: what looks wrong, a line each.
    """

    load: ExpertLoad
    form: str
    description: str
    layers: tuple[int, ...] | None
    warnings: tuple[str, ...]


def read_load(  # noqa: PLR0913 - what a file may leave unsaid
    path: AnyPath | Sequence[AnyPath],
    key: str | None = None,
    *,
    format: str | None = None,  # noqa: A002 - as the option is called
    layers: str | Sequence[int] | None = None,
    placement: Placement | None = None,
    files: Files | None = None,
    steps: str | range | slice | None = None,
    model: AnyPath | ModelCounts | None = None,
    num_experts: int | None = None,
    num_layers: int | None = None,
    window: int | None = None,
) -> ExpertLoad:
    """Read an expert load of any known form; `inspect_load` says what was recognised.

    Args:
        path: a file or several. The content says the form: NumPy arrays, JSON, CSV, PyTorch or safetensors, each also
            with ``.gz``.
        key: the array in a file of several, or the key in a JSON object; None to take the only one
            (``.npz``: all, where they agree in layers and experts).
        format: one of `FORM_NAMES`, to say the form instead of having it recognised.
        layers: the layers to take, ``"3-60"``, ``"all"`` or numbers: the file's own where it has them, else positions of rows.
        placement: whose slots are counted, for counts by physical slot.
        files: what several files are: ``"ranks"`` (their counts are added or joined) or ``"steps"``.
        steps: the steps to take, ``"all"``, ``"10-99"`` or a range; given, it says that the first of three axes is
            steps.
        model: a model's name, its ``config.json`` or what `model_counts` returned; chooses its MoE layers and checks
            the load.
        num_experts: E, checked; where a file names only some experts, the others have 0.
        num_layers: L, checked.
        window: tokens counted together, for a trace of routed experts; all if None.

    Raises:
        FormatError: unreadable, or no load file of any kind.
        LoadError: of another form than said, ambiguous (the message names the option that decides), or no load.
    """
    return inspect_load(
        path,
        key,
        format=format,
        layers=layers,
        placement=placement,
        files=files,
        steps=steps,
        model=model,
        num_experts=num_experts,
        num_layers=num_layers,
        window=window,
    ).load


def inspect_load(  # noqa: PLR0913 - as above
    path: AnyPath | Sequence[AnyPath],
    key: str | None = None,
    *,
    format: str | None = None,  # noqa: A002 - as above
    layers: str | Sequence[int] | None = None,
    placement: Placement | None = None,
    files: Files | None = None,
    steps: str | range | slice | None = None,
    model: AnyPath | ModelCounts | None = None,
    num_experts: int | None = None,
    num_layers: int | None = None,
    window: int | None = None,
) -> LoadFile:
    """Read an expert load as `read_load` does, and say what was recognised.

    Args:
        path: as for `read_load`, and so are the others.
        key: as said.
        format: as said.
        layers: as said.
        placement: as said.
        files: as said.
        steps: as said.
        model: as said.
        num_experts: as said.
        num_layers: as said.
        window: as said.

    Raises:
        FormatError: as `read_load`.
        LoadError: as `read_load`.
    """
    paths = [path] if isinstance(path, str | os.PathLike | Source) else list(path)
    if not paths:
        msg = "there is no load file; expected at least one"
        raise LoadError(msg)
    if files not in {None, "ranks", "steps"}:
        msg = f"files is {files!r}; expected ranks or steps"
        raise LoadError(msg)
    taken = None if layers is None else as_layers(layers, LoadError)
    count = _as_said("num_layers", num_layers)
    options = LoadOptions(
        key=key,
        layers=taken,
        steps=None if steps is None else parse_steps(steps),
        files=files,
        placement=placement,
        model=_shape_of(model, layers_if_untold(taken, count)),
        num_experts=_as_said("num_experts", num_experts),
        num_layers=count,
        window=_as_said("window", window),
    )
    return _inspect(paths, format, options)


def _as_said(name: str, value: int | None) -> int | None:
    return None if value is None else as_count(name, value, minimum=1, error=LoadError)


def _shape_of(
    model: AnyPath | ModelCounts | None, if_untold: int | Literal["all"] | None
) -> ModelShape | None:
    if model is None:
        return None
    counts = model if isinstance(model, ModelCounts) else model_counts(model, if_untold=if_untold)
    return ModelShape.of(counts)


def _inspect(paths: Sequence[AnyPath], name: str | None, options: LoadOptions) -> LoadFile:
    _refuse_twice(paths)
    documents = [open_document(path) for path in paths]
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    form = form_of(documents, name, options.key)
    if options.window is not None and form.name != "routed-experts":
        msg = f"window is {options.window}; expected it with a trace of routed experts, not with {form.title}"
        raise LoadError(msg)
    with naming(describe(paths[0]) + more):
        counts = form.read(documents, options)
        del documents  # they may be large
        steps, rows, columns = counts.values.shape
        check_axes(rows, columns, steps)
        chosen = choose_layers(counts, options)
        counts = by_expert(choose_steps(chosen.counts, options.steps), options.placement)
        check_counts(counts, options)
        load = take(counts.values)
    warnings = (*counts.warnings, *suspicions(load, options, counts.labels))
    return LoadFile(load, form.name, _describe(form, load, chosen, counts.details), counts.labels, warnings)


def _refuse_twice(paths: Sequence[AnyPath]) -> None:
    """Refuse to count one file twice, by whatever name."""
    seen: dict[tuple[int, int], AnyPath] = {}
    for path in paths:
        if isinstance(path, Source):
            continue
        try:
            status = Path(path).stat()
        except (OSError, ValueError):
            continue  # its reader says so
        key = status.st_dev, status.st_ino
        if key in seen:
            msg = f"{describe(path)} is the same file as {describe(seen[key])}; expected each once, or its tokens count twice"
            raise LoadError(msg)
        seen[key] = path


def _describe(form: Form, load: ExpertLoad, chosen: Chosen, details: Sequence[str]) -> str:
    if chosen.dense:
        layers = f"{counted(chosen.num_rows, 'layer')}, {len(chosen.dense)} of them dense"
        details = (f"dense are {spans(chosen.dense)}", *details)
    elif chosen.is_said and chosen.num_rows != load.num_layers:
        layers = f"{load.num_layers} of {counted(chosen.num_rows, 'layer')}"
    else:
        layers = counted(load.num_layers, "layer")
    labels = chosen.counts.labels
    if labels is not None and labels != tuple(range(len(labels))):
        details = (f"MoE layers {spans(labels)}", *details)
    steps = [] if load.num_steps == 1 else [counted(load.num_steps, "step")]
    head = ", ".join([form.title, layers, counted(load.num_experts, "expert"), *steps])
    return "; ".join([head, *details])
