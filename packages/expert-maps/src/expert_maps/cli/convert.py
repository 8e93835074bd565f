# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps convert`: a map in the format of another system."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expert_maps.cli.mapping import MapOptions
from expert_maps.cli.options import JsonOption, as_choice, refuse_two_stdins

if TYPE_CHECKING:
    from expert_maps.cli.writing import Output
    from expert_maps.formats.mapfile import MapFile

# Kept here, so that help needs no writer; a test compares them.
TARGETS = (
    "expert-maps .json, vllm-ascend .json, golden .json, sglang .json/.pt, tensorrt-llm .yaml/.yml, "
    "vllm .npz/.json/.safetensors/.pt, deepseek .npz/.json/.safetensors/.pt, omni .npy"
)


def _print_schema(requested: bool) -> None:
    if not requested:
        return
    import json

    from expert_maps.cli.output import say
    from expert_maps.formats import native

    say(json.dumps(native.schema(), indent=2).splitlines())
    raise typer.Exit


def convert(
    file: Annotated[Path, typer.Argument(metavar="IN", help="A map of any format; - for standard input.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Where to write it; - for standard output.")],
    to: Annotated[
        str, typer.Option("--to", metavar="FORMAT", help=f"The format, and how OUT's name ends: {TARGETS}.")
    ],
    said: MapOptions,
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
    """
    from expert_maps.cli.mapping import read_any_map
    from expert_maps.cli.output import note, warn
    from expert_maps.cli.writing import check_output
    from expert_maps.formats.writing import TARGET_NAMES, check_target, encode

    refuse_two_stdins({"IN": file, "--model": said.model})
    form, ending = check_target(as_choice("--to", to, TARGET_NAMES), str(output))
    target = check_output(output, {"IN": file, "--model": said.model}, endings=("",), json=json, name="OUT")
    found = read_any_map(file, said)
    note(f"{'standard input' if str(file) == '-' else file}: {found.description}")
    if said.model not in {None, "-"} and found.model is None:
        found = replace(found, model=Path(str(said.model)).name)
    encoded = encode(found, form, ending)
    for lost in encoded.lost:
        warn(lost)
    target.write(encoded.content)
    _report(found, form, target, encoded.lost, as_json=json)


def _report(found: MapFile, form: str, target: Output, lost: tuple[str, ...], *, as_json: bool) -> None:
    """Say what was written; on standard error where the map itself went to standard output."""
    from expert_maps.cli.output import print_json, say

    if not as_json:
        say(f"{target.line}, {form}", err=target.is_stdout)
        return
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
            "output": target.name,
            "replaced": target.replaces,
        }
    )
