# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How many slots a batch of decode activates on each rank: what a rank reads from its memory, whatever the tokens.

In decode a rank computes few tokens for each of its experts, and what takes its time is that it reads the weights of every
slot that any token needs. ``docs/objectives.md`` has the model, its limits and its sources.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from expert_maps import metrics
from expert_maps._frozen import Frozen, freeze, lazy
from expert_maps._words import counted
from expert_maps.errors import LayoutError, LoadError
from expert_maps.load import as_load
from expert_maps.validation import as_count, first_true

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from expert_maps.load import ExpertLoad
    from expert_maps.placement import Evaluated

    Float64Array = NDArray[np.float64]
    Int64Array = NDArray[np.int64]

CopyChoice = Literal["split", "one"]
COPY_CHOICES: tuple[CopyChoice, ...] = get_args(CopyChoice)
# Counts of averaged loads: so much above 1 / top_k is rounding.
_ROUNDING = 1e-6
# What messages call the counts of a batch.
_NAMES = {"tokens": "batch_tokens", "top_k": "top_k"}


@dataclass(frozen=True)
class Batch:
    """What a batch of decode is, all ranks together.

    Attributes:
        tokens: B, its tokens, each of which chooses its experts like those of the load; None: every step of the load is
            one batch, and its counts say how many of the tokens went to each expert.
        top_k: K, how many experts each token has; given with ``tokens``, and only then.
        copies: which copies of an expert its tokens go to. ``split``: each token to any copy, all as likely: what vLLM and
            vllm-ascend do. ``one``: all tokens of a batch to one copy, all in turn: a router that decides it for every
            batch, such as METRO's.
    """

    tokens: int | None = None
    top_k: int | None = None
    copies: CopyChoice = "split"

    def __post_init__(self) -> None:
        """Check what can be checked without a load.

        Raises:
            LayoutError: a count below 1, one of ``tokens`` and ``top_k`` without the other, or an unknown choice.
        """
        for name, other in (("tokens", "top_k"), ("top_k", "tokens")):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, as_count(_NAMES[name], value, 1, error=LayoutError))
                if getattr(self, other) is None:
                    msg = f"{_NAMES[name]} is {value} without {_NAMES[other]}; expected both, or a load whose steps are batches"
                    raise LayoutError(msg)
        if self.copies not in COPY_CHOICES:
            msg = f"copies is {self.copies!r}; expected one of {', '.join(COPY_CHOICES)}"
            raise LayoutError(msg)

    def describe(self) -> str:
        """Return the batch in words."""
        how = "any copy of an expert" if self.copies == "split" else "one copy of an expert, in turn"
        what = "each step a batch" if self.tokens is None else f"batches of {counted(self.tokens, 'token')}"
        top = "" if self.top_k is None else f" of top {self.top_k}"
        return f"{what}{top}, tokens go to {how}"


@dataclass(frozen=True, eq=False, repr=False)
class Activation(Frozen):
    """What a plan by activated slots is worth. Read-only.

    Attributes:
        batch: what was planned for.
        of_rank: float64 [L, R], slots that a batch is expected to activate on each rank.
        lower_bound: float64 [L]: no placement of these counts has a busiest rank below it.
        by_tokens: float64 [L], the busiest rank of the plan by tokens with the same counts.
    """

    batch: Batch
    of_rank: Float64Array
    lower_bound: Float64Array
    by_tokens: Float64Array

    @lazy
    def busiest(self) -> Float64Array:
        """float64 [L]: expected activated slots of the busiest rank."""
        peak: Float64Array = self.of_rank.max(axis=1)
        return peak

    @lazy
    def gap(self) -> Float64Array:
        """float64 [L]: busiest / lower bound − 1: how much another placement could gain at most."""
        return metrics.gap_of(self.busiest, self.lower_bound)

    @property
    def overall_gap(self) -> float:
        """The same of the sums over layers, which run one after another."""
        total = float(self.lower_bound.sum())
        return max(float(self.busiest.sum()) / total - 1, 0.0) if total > 0 else 0.0

    def summary(self) -> str:
        """Return one line: what the busiest ranks activate, beside a plan by tokens and the proved lower bound."""
        mean, were = float(self.busiest.mean()), float(self.by_tokens.mean())
        less = 1 - mean / were if were > 0 else 0.0
        return (
            f"activated slots of the busiest rank, mean over layers: {mean:.3f}; {were:.3f} planned by tokens ({less:.1%} less); "
            f"{self.overall_gap:.3%} above a proved lower bound"
        )


def activated(placement: Evaluated, load: ArrayLike | ExpertLoad, batch: Batch) -> Float64Array:
    """Return the slots that a batch is expected to activate on each rank.

    Args:
        placement: L layers, E logical experts, R ranks; a result that has one; or one whose slots differ by layer.
        load: tokens of each logical expert, [L, E] or [steps, L, E].
        batch: what a batch is.

    Returns:
        float64 [L, R], from 0 to the slots of the rank.

    Raises:
        LoadError: the load is invalid, not of the placement's layers and experts, or not of such batches.
        LayoutError: ``top_k`` is more than E.
    """
    trace = as_load(load)
    check_batch(trace, batch)
    found = []
    for part, of_part in metrics.parts_of(placement, trace):
        share = np.empty((part.num_layers, part.num_logical_experts))
        for layer, count in enumerate(part.replica_count):
            kinds, which = np.unique(count, return_inverse=True)
            table = copy_chances(of_part.counts[:, layer], batch, kinds)
            share[layer] = table[np.arange(len(count)), which]
        found.append(metrics.sum_ranks(part, np.take_along_axis(share, part.physical_to_logical, axis=1)))
    return freeze(np.concatenate(found))


def copy_chances(counts: Float64Array, batch: Batch, copies: Int64Array) -> Float64Array:
    """Return how likely a batch activates one copy of each expert, for several numbers of copies.

    Args:
        counts: float64 [steps, E], the load of a layer as `check_batch` accepts it.
        batch: what a batch is.
        copies: [C], numbers of copies from 1.

    Returns:
        float64 [E, C], from 0 to 1: falls with the copies, and times the copies it rises (or stays, with ``one``).
    """
    if batch.copies == "one":
        alone = _chances(counts, batch, np.ones(1))
        return alone / copies
    return _chances(counts, batch, copies.astype(np.float64))


def _chances(counts: Float64Array, batch: Batch, copies: Float64Array) -> Float64Array:
    if batch.tokens is not None and batch.top_k is not None:
        tokens = counts.sum(axis=0)
        total = tokens.sum()
        chance = np.minimum(tokens * (batch.top_k / total), 1.0) if total > 0 else np.zeros(len(tokens))
        with np.errstate(
            divide="ignore"
        ):  # log(0) where all tokens choose an expert of one copy: −∞, which is meant
            return -np.expm1(batch.tokens * np.log1p(-chance[:, None] / copies))
    # How often each number of tokens went to each expert; then what so many tokens activate of so many copies.
    values, which = np.unique(counts, return_inverse=True)
    key = which.reshape(counts.shape) + np.arange(counts.shape[1]) * len(values)
    often = np.bincount(key.ravel(), minlength=counts.shape[1] * len(values)).reshape(-1, len(values))
    return often @ (1 - (1 - 1 / copies) ** values[:, None]) / len(counts)


def check_batch(load: ExpertLoad, batch: Batch) -> None:
    """Refuse a load that is none of such batches.

    Raises:
        LoadError: an expert with more tokens than there are; without ``tokens``, a load of one step, or a part of a token.
        LayoutError: ``top_k`` is more than E.
    """
    if batch.top_k is not None:
        as_count("top_k", batch.top_k, 1, load.num_experts, error=LayoutError)
        _refuse_hot(load, batch.top_k)
        return
    if load.num_steps == 1:
        msg = (
            "batch_tokens is not given, and the load has 1 step; expected batch_tokens and top_k, or a load whose steps are one "
            "batch each"
        )
        raise LoadError(msg)
    bad = first_true(load.counts != np.floor(load.counts))
    if bad is not None:
        (step, layer, expert), _ = bad
        msg = (
            f"load at step {step}, layer {layer}, expert {expert} is {load.counts[step, layer, expert]:g}; expected whole "
            "tokens where every step is a batch (or batch_tokens and top_k)"
        )
        raise LoadError(msg)


def _refuse_hot(load: ExpertLoad, top_k: int) -> None:
    total = load.total.sum(axis=1, keepdims=True)
    share = np.divide(load.total, total, out=np.zeros_like(load.total), where=total > 0)
    bad = first_true(share * top_k > 1 + _ROUNDING)
    if bad is not None:
        (layer, expert), _ = bad
        most = int(1 / share[layer, expert])
        msg = (
            f"top_k is {top_k}, and expert {expert} has {share[layer, expert]:.1%} of layer {layer}'s load; expected "
            f"at most {1 / top_k:.1%}, once for each token: top_k at most {most}, or a load of single tokens"
        )
        raise LoadError(msg)
