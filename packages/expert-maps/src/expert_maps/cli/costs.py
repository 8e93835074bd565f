# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What moves cost, and on how many cores it is found out: options of `simulate`, `advise` and `report`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from expert_maps.cli.options import ExpertBytesOption
from expert_maps.errors import LayoutError

if TYPE_CHECKING:
    from expert_maps.cli.loading import Loaded
    from expert_maps.simulation import Costs

BandwidthOption = Annotated[
    float | None,
    typer.Option(
        "--bandwidth",
        metavar="GB/s",
        help="What a rank sends and receives at the same time, in GB/s (10^9 bytes a second); 25 if not given.",
    ),
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="Processes at most; if not given, one for each core.")
]


@dataclass(frozen=True)
class CostOptions:
    """What the command line says of costs; None where it says nothing. The fields are the options' names."""

    expert_bytes: ExpertBytesOption = None
    bandwidth: BandwidthOption = None
    workers: WorkersOption = None

    @property
    def processes(self) -> int:
        """How many processes there may be."""
        return self.workers or os.cpu_count() or 1


def price_of(said: CostOptions, loaded: Loaded, *, is_asked: bool = False) -> Costs:
    """Return what a move costs, as the options say; what is taken because nothing was said is named.

    Args:
        said: what the command line says.
        loaded: with the model that may say the bytes of an expert.
        is_asked: whether memory is asked for, which is not guessed.

    Raises:
        ExpertMapsError: a value that no server has, or the bytes of an expert are needed and not known.
    """
    from expert_maps.cli.output import note
    from expert_maps.simulation import Costs

    usual = Costs()
    model = loaded.model
    size = model.expert_bytes if said.expert_bytes is None and model is not None else said.expert_bytes
    if size is None and is_asked:
        msg = "--device-memory is given, and the bytes of an expert are not known; expected --expert-bytes or --model"
        raise LayoutError(msg)
    if size is None:
        note(f"--expert-bytes {usual.expert_bytes} taken: an expert of DeepSeek-R1 in FP8; give your model's")
    if said.bandwidth is None:
        note(f"--bandwidth {usual.bandwidth:g} GB/s taken; give your network's")
    return Costs(
        usual.expert_bytes if size is None else size,
        usual.bandwidth if said.bandwidth is None else said.bandwidth,
    )
