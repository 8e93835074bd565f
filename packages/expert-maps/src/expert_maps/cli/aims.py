# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a plan is to be good at, and what a batch of decode is: options of `plan` and `evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, cast

import typer

from expert_maps.cli.options import as_choice
from expert_maps.errors import LayoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from expert_maps.activation import Batch, CopyChoice
    from expert_maps.cli.activation_report import Counts
    from expert_maps.cli.loading import Loaded
    from expert_maps.cli.planner_options import PlanOptions, ShownOptions
    from expert_maps.layered import AnyPlacement
    from expert_maps.load import ExpertLoad
    from expert_maps.planning import PlanResult

# Kept here, so that help needs no NumPy; a test compares them.
OBJECTIVES = ("tokens", "activated")
COPIES = ("split", "one")
REDUNDANCIES = ("equal", "per-layer")

_BatchTokensOption = Annotated[
    int | None,
    typer.Option(
        "--batch-tokens",
        min=1,
        metavar="N",
        help="Tokens of a batch of decode, of all ranks together; with --top-k. If not given, each step of the load is a batch.",
    ),
]
_TopKOption = Annotated[
    int | None, typer.Option("--top-k", min=1, metavar="K", help="Experts of a token, with --batch-tokens.")
]
_CopiesOption = Annotated[
    str | None,
    typer.Option(
        "--copy-choice",
        metavar="split|one",
        help="Where an expert's tokens of a batch go: split over its copies, as servers do, or all to one copy, in turn. "
        "split if not given.",
    ),
]
_ObjectiveOption = Annotated[
    str,
    typer.Option(
        "--objective",
        metavar="tokens|activated",
        help="What the hottest rank is to have least of: tokens, or for decode slots that a batch activates.",
    ),
]
_RedundancyOption = Annotated[
    str,
    typer.Option(
        "--redundancy",
        metavar="equal|per-layer",
        help="As many redundant experts in every layer, or in each its own number, within the same memory.",
    ),
]


@dataclass(frozen=True)
class BatchOptions:
    """What the command line says of batches; None where it says nothing. The fields are the options' names."""

    batch_tokens: _BatchTokensOption = None
    top_k: _TopKOption = None
    copy_choice: _CopiesOption = None

    @property
    def given(self) -> dict[str, object]:
        """What was said, by option."""
        said = {"--batch-tokens": self.batch_tokens, "--top-k": self.top_k, "--copy-choice": self.copy_choice}
        return {name: value for name, value in said.items() if value is not None}

    def batch(self, load: ExpertLoad) -> Batch:
        """Return the batch.

        Raises:
            ExpertMapsError: an unknown choice, or one of both counts without the other, or a load that is none of batches.
        """
        from expert_maps.activation import Batch, check_batch

        if (self.batch_tokens is None) != (self.top_k is None):
            given = "--batch-tokens" if self.top_k is None else "--top-k"
            msg = f"{given} is {self.batch_tokens or self.top_k}; expected both --batch-tokens and --top-k, or neither"
            raise LayoutError(msg)
        choice = as_choice("--copy-choice", self.copy_choice or "split", COPIES)
        batch = Batch(self.batch_tokens, self.top_k, cast("CopyChoice", choice))
        check_batch(load, batch)
        return batch


@dataclass(frozen=True)
class CountOptions(BatchOptions):
    """The same, and whether activated slots are counted where nothing of that is said."""

    activated: Annotated[
        bool, typer.Option("--activated", help="Also print how many slots a batch of decode activates.")
    ] = False

    def count(self, placement: AnyPlacement, load: ExpertLoad) -> Counts:
        """Return what a batch activates; nothing where that is not asked for.

        Raises:
            ExpertMapsError: as `batch`.
        """
        from expert_maps.activation import activated
        from expert_maps.cli.activation_report import Counts

        if not (self.activated or self.given):
            return Counts()
        batch = self.batch(load)
        return Counts(batch, activated(placement, load, batch))


@dataclass(frozen=True)
class AimOptions:
    """What a plan is to be good at. The fields are the options' names."""

    objective: _ObjectiveOption = "tokens"
    redundancy: _RedundancyOption = "equal"

    @property
    def is_per_layer(self) -> bool:
        """Whether each layer gets its own number of slots."""
        return self.redundancy == "per-layer"

    def check(self, asked: PlanOptions, of_batch: BatchOptions, shown: ShownOptions) -> None:
        """Refuse, before anything is read, options that go not together.

        Raises:
            ExpertMapsError: an unknown aim, or an option that it does not have; it is named.
        """
        # What only a plan by tokens, with as many slots in every layer, has.
        others: dict[str, object] = {
            "--policy": None if asked.policy == "balanced" else asked.policy,
            "--current": asked.current,
            "--certify": asked.certify,
            "--allow-uneven": asked.allow_uneven,
            "--allow-duplicates": asked.allow_duplicates,
        }
        if as_choice("--objective", self.objective, OBJECTIVES) == "activated":
            _refuse_with("--objective activated", others)
        else:
            _refuse_with("--objective tokens", of_batch.given)
        if _as_redundancy(self.redundancy) == "per-layer":
            is_other = None if self.objective == "tokens" else self.objective
            _refuse_with("--redundancy per-layer", {**others, "--plot": shown.plot, "--objective": is_other})

    def aimed(
        self, plans: Callable[..., PlanResult], loaded: Loaded, of_batch: BatchOptions
    ) -> Callable[..., PlanResult]:
        """Return the planner's call with what it is to be good at.

        Raises:
            ExpertMapsError: the load is none of such batches.
        """
        if self.objective == "tokens":
            return plans
        return partial(plans, objective=self.objective, batch=of_batch.batch(loaded.load))


def _as_redundancy(text: str) -> str:
    """Return a value of `--redundancy`; whoever gives a number means another option.

    Raises:
        LayoutError: it is none.
    """
    if text.isascii() and text.isdigit():
        msg = f"--redundancy is {text[:20]}; expected one of {', '.join(REDUNDANCIES)}; did you mean --redundant?"
        raise LayoutError(msg)
    return as_choice("--redundancy", text, REDUNDANCIES)


def _refuse_with(what: str, given: Mapping[str, object]) -> None:
    """Refuse options that go not together.

    Args:
        what: the option with which none of the others may be.
        given: those others; what counts as not given is None or False.

    Raises:
        LayoutError: one was given; it is named.
    """
    for name, value in given.items():
        if value is not None and value is not False:
            found = "given" if value is True else value
            msg = f"{name} is {found}; expected none with {what}"
            raise LayoutError(msg)
