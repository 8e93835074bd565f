# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Arguments and options that several commands have, in the same words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from expert_maps.errors import ExpertMapsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Inputs: TypeAlias = "Mapping[str, Path | str | Sequence[Path] | None]"
"""What a command reads, by the names of its arguments and options."""

_MAP_HELP = "A map of any system (vllm-ascend, SGLang, TensorRT-LLM, vLLM …), also .gz; - for standard input."

MapArgument = Annotated[Path, typer.Argument(metavar="MAP", help=_MAP_HELP)]
EpSizeOption = Annotated[int, typer.Option("--ep-size", help="Expert-parallel ranks.")]
RedundantOption = Annotated[
    int | None,
    typer.Option("--redundant", help="Redundant experts of a layer, over all ranks: slots less experts."),
]
PhysicalOption = Annotated[
    int | None,
    typer.Option("--physical", help="Slots of a layer, over all ranks: experts and redundant experts."),
]
GroupsOption = Annotated[int, typer.Option("--groups", help="The router's expert groups.")]
NodesOption = Annotated[
    int,
    typer.Option("--nodes", help="Servers that the ranks are spread over; groups stay on one of them."),
]
ToleranceOption = Annotated[
    float | None,
    typer.Option(
        "--tolerance",
        help="The gap at which the policy balanced stops, a fraction up to 1; 0.0004 if not given. "
        "Looser is faster.",
    ),
]
MaxMovesOption = Annotated[
    str | None,
    typer.Option(
        "--max-moves",
        metavar="N|any",
        help="Slots of a layer that may change, beyond those that must. If not given: any number for plan, "
        "0 for rescale, which so moves as little as possible.",
    ),
]
CertifyOption = Annotated[
    bool,
    typer.Option(
        "--certify",
        help="Also seek lower bounds that take longer, where the gap is above the tolerance. The plan is the same.",
    ),
]
ExpertBytesOption = Annotated[
    int | None,
    typer.Option(
        "--expert-bytes",
        help="Bytes of one expert's weights, to add up what is moved; by --model if not given.",
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="Where to write the map, a vllm-ascend expert map; the name ends in .json. - for standard "
        "output, then all else goes to standard error.",
    ),
]
TableOption = Annotated[bool, typer.Option("--table", help="Print every layer, not only the worst.")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object instead of text; sizes in bytes.")
]
AllowUnevenOption = Annotated[
    bool, typer.Option("--allow-uneven", help="Accept ranks with unequally many slots.")
]
AllowDuplicatesOption = Annotated[
    bool, typer.Option("--allow-duplicates", help="Accept an expert twice on a rank.")
]


def as_max_moves(text: str | None, default: int | None) -> int | None:
    """Return the moves that `--max-moves` allows; None for any number.

    Args:
        text: what was typed; None where nothing was.
        default: what that means.

    Raises:
        ExpertMapsError: neither a number from 0 nor ``any``.
    """
    if text is None:
        return default
    if text == "any":
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(2**31)):
        msg = f"--max-moves is {text!r}; expected a number from 0, or any"
        raise ExpertMapsError(msg)
    return int(text)


def as_choice(option: str, text: str, known: Sequence[str]) -> str:
    """Return a value that is one of some.

    Raises:
        ExpertMapsError: it is none of them; those that may be meant are named.
    """
    from expert_maps.cli.words import hint, meant_values

    if text not in known:
        msg = (
            f"{option} is {text[:60]!r}; expected one of {', '.join(known)}{hint(meant_values(text, known))}"
        )
        raise ExpertMapsError(msg)
    return text


def as_numbers(option: str, text: str) -> list[int]:
    """Return numbers that are separated by commas.

    Raises:
        ExpertMapsError: something else stands between the commas.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if any(not (word.isascii() and word.isdigit()) or len(word) > len(str(2**31)) for word in words):
        msg = f"{option} is {text!r}; expected numbers from 0 separated by commas, like 3,5"
        raise ExpertMapsError(msg)
    return [int(word) for word in words]


def refuse_two_stdins(inputs: Inputs) -> None:
    """Refuse to read standard input for two things: after the first it is empty.

    Raises:
        ExpertMapsError: as said.
    """
    names = [
        name
        for name, given in inputs.items()
        for path in ([given] if given is None or isinstance(given, Path | str) else given)
        if path is not None and str(path) == "-"
    ]
    if len(names) > 1:
        both = f"{names[0]} is '-' twice" if len(set(names)) == 1 else f"{' and '.join(names)} are both '-'"
        msg = f"{both}; expected one at most: standard input is read once"
        raise ExpertMapsError(msg)
