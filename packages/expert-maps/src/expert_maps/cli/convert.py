# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps convert`: a map in the format of another system."""

from __future__ import annotations

import json as json_
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expert_maps.cli.common import (
    AllowDuplicatesOption,
    AllowUnevenOption,
    JsonOption,
    bad_input,
    print_json,
)
from expert_maps.cli.mapping import (
    EpSizeOption,
    ExpertsOption,
    FromOption,
    KeyOption,
    LayersOption,
    MapOptions,
    ModelOption,
    read_any_map,
)
from expert_maps.errors import FormatError
from expert_maps.files import write_bytes
from expert_maps.formats import native
from expert_maps.formats.writing import ENDINGS, TARGET_NAMES, check_target, encode

if TYPE_CHECKING:
    from expert_maps.formats.mapfile import MapFile


def _print_schema(requested: bool) -> None:
    if requested:
        typer.echo(json_.dumps(native.schema(), indent=2))
        raise typer.Exit


_NAMES = "; ".join(f"{form} {'/'.join(ENDINGS[form])}" for form in TARGET_NAMES)


def convert(
    file: Annotated[Path, typer.Argument(metavar="IN", help="A map of any format; - for standard input.")],
    output: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help=f"Where to write it; - for standard output. Names end in: {_NAMES}."
        ),
    ],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help=f"One of {', '.join(TARGET_NAMES)}.")],
    source: FromOption = None,
    ep_size: EpSizeOption = None,
    experts: ExpertsOption = None,
    layers: LayersOption = None,
    model: ModelOption = None,
    key: KeyOption = None,
    allow_uneven: AllowUnevenOption = False,
    allow_duplicates: AllowDuplicatesOption = False,
    ignore_digest: Annotated[
        bool,
        typer.Option(
            "--ignore-digest", help="Take an expert-maps file that was changed by hand, and write it anew."
        ),
    ] = False,
    schema: Annotated[  # noqa: ARG001 - printed before the command runs
        bool,
        typer.Option(
            "--schema",
            callback=_print_schema,
            is_eager=True,
            help="Print the JSON Schema of expert-maps files.",
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Write a map in the format of another system, and say what that format does not carry.

    The format of IN is recognised by its content and said. Rows of SGLang's files are all layers of the model, keys of
    TensorRT-LLM's are absolute layer numbers: --model or --layers says which layers have experts. What would change the
    map's meaning is refused.

    Examples:
    expert-maps convert expert_map.json eplb.yaml --to tensorrt-llm --model deepseek-r1

    expert-maps convert location.json map.json --to expert-maps --ep-size 16 --layers 3-60
    """
    with bad_input():
        form, ending = check_target(to, str(output))
        _refuse_same(file, output)
        said = MapOptions(
            source, ep_size, experts, layers, model, key, ignore_digest, allow_uneven, allow_duplicates
        )
        found = read_any_map(file, said)
        typer.echo(f"{file}: {found.description}", err=True)
        if model is not None and found.model is None:
            found = replace(found, model=Path(model).name)
        encoded = encode(found, form, ending)
        for lost in encoded.lost:
            typer.echo(f"warning: {lost}", err=True)
        replaced = str(output) != "-" and output.exists()
        if str(output) == "-":
            sys.stdout.buffer.write(encoded.content)
            sys.stdout.buffer.flush()
        else:
            write_bytes(output, encoded.content)
    _report(found, form, output, encoded.lost, replaced=replaced, as_json=json)


def _refuse_same(file: Path, output: Path) -> None:
    """Refuse to write over the map that is read."""
    try:
        same = file.samefile(output)
    except (OSError, ValueError):  # one of them is not there, or is standard input
        same = str(file) != "-" and file == output
    if same:
        msg = f"the output {output} is the input; expected another file"
        raise FormatError(msg)


def _report(
    found: MapFile, form: str, output: Path, lost: tuple[str, ...], *, replaced: bool, as_json: bool
) -> None:
    """Say what was written; on standard error where the map itself went to standard output."""
    to_stdout = str(output) == "-"
    if not as_json:
        what = "replaced" if replaced else "written"
        typer.echo(f"{what}: {'standard output' if to_stdout else output} ({form})", err=to_stdout)
    elif not to_stdout:
        print_json(
            {
                "from": found.form,
                "to": form,
                "num_layers": found.placement.num_layers,
                "num_logical_experts": found.placement.num_logical_experts,
                "ep_size": found.placement.ep_size,
                "layers": None if found.layers is None else list(found.layers),
                "digest": found.placement.digest,
                "warnings": [*found.warnings, *lost],
                "output": str(output),
                "replaced": replaced,
            }
        )
