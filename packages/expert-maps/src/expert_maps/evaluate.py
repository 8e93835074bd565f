# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How any placement does under any load, and what policies and redundancies come to side by side."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

import numpy as np

from expert_maps import metrics
from expert_maps._frozen import Frozen, lazy
from expert_maps.errors import LayoutError, PlacementError
from expert_maps.layouts import LAYOUT_NAMES, generate_placement
from expert_maps.load import ExpertLoad, as_load
from expert_maps.placement import Placement, as_placement
from expert_maps.planning import plan
from expert_maps.policies import POLICY_NAMES
from expert_maps.results import Balance, describe_balance, describe_counts
from expert_maps.validation import as_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import ArrayLike, NDArray

    from expert_maps.placement import PlacementLike

    Float64Array = NDArray[np.float64]
    Int32Array = NDArray[np.int32]


class HasLayers(Protocol):
    """A placement whose ranks do not own as many slots in every layer: a placement of one layer for each."""

    @property
    def layers(self) -> tuple[Placement, ...]:
        """The layers, of one layer each."""
        ...


Evaluated: TypeAlias = "PlacementLike | HasLayers"


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Balance, Frozen):
    """What `evaluate` returns. An expert's load is split evenly over its copies. Read-only.

    Attributes:
        placement: what was evaluated; one whose slots differ by layer, as it was given.
        load: [steps, L, E].
    """

    placement: Placement
    load: ExpertLoad

    @property
    def ep_size(self) -> int:
        """R."""
        return self.placement.ep_size

    @lazy
    def rank_load(self) -> Float64Array:
        """float64 [L, R]: tokens of each rank, summed over steps."""
        return np.concatenate([metrics.rank_load(part, load) for part, load in self._parts()])

    @lazy
    def step_peaks(self) -> Float64Array:
        """float64 [steps, L]: tokens of the hottest rank in each step."""
        return np.concatenate([metrics.step_peaks(part, load) for part, load in self._parts()], axis=1)

    @lazy
    def step_balancedness(self) -> Float64Array:
        """float64 [steps]: in each step the ratio of the sums over layers of mean and hottest rank; 1 without load."""
        mean = self.load.counts.sum(axis=(1, 2)) / self.ep_size
        peak = self.step_peaks.sum(axis=1)
        return np.divide(mean, peak, out=np.ones_like(peak), where=peak > 0)

    @property
    def over_steps(self) -> float:
        """The ratio of the sums over steps and layers of mean and hottest rank; see `expert_maps.over_steps`."""
        return metrics.over_steps_of(self.step_peaks, self.load, self.ep_size)

    @lazy
    def worst_layers(self) -> Int32Array:
        """int32 [L]: layers, the least balanced first."""
        return np.argsort(self.balancedness, kind="stable").astype(np.int32)

    @lazy
    def hottest_ranks(self) -> Int32Array:
        """int32 [L, R]: the ranks of each layer, the hottest first."""
        return np.argsort(-self.rank_load, axis=1, kind="stable").astype(np.int32)

    @lazy
    def hottest_experts(self) -> Int32Array:
        """int32 [L, E]: the logical experts of each layer, those with most tokens first, however many copies they have."""
        return np.argsort(-self.load.total, axis=1, kind="stable").astype(np.int32)

    def summary(self, layers: int = 3) -> str:
        """Return what there is to know in a few lines.

        Args:
            layers: of how many of the worst layers the hottest rank and expert are named.
        """
        parts = self._parts()
        counts = f"{self.load.num_layers} layers, {self.load.num_experts} experts on {self.ep_size} ranks"
        counts = describe_counts(self.placement) if len(parts) == 1 else f"{counts}, slots differ by layer"
        lines = [counts, *describe_balance(self.balancedness, self.overall_balancedness)]
        if self.load.num_steps > 1:
            worst = int(self.step_balancedness.argmin())
            lines.append(
                f"balancedness over {self.load.num_steps} steps {self.over_steps:.4f}, worst step {worst} with "
                f"{self.step_balancedness[worst]:.4f}"
            )
        lines += [
            f"layer {layer}: hottest rank {self.hottest_ranks[layer, 0]} carries "
            f"{1 / self.balancedness[layer]:.3f} times the mean; hottest expert {self.hottest_experts[layer, 0]}"
            for layer in self.worst_layers[:layers].tolist()
        ]
        return "\n".join(lines)

    def plot(self, before: PlacementLike | None = None) -> Any:  # noqa: ANN401 - matplotlib may be absent
        """Draw balancedness and rank loads beside those of another placement; see `PlanResult.plot`."""
        from expert_maps import plots

        return plots.plot_plan(self, before)

    def __repr__(self) -> str:
        """Name the counts and how good it is; the arrays would flood a log."""
        return (
            f"Evaluation(num_steps={self.load.num_steps}, num_layers={self.load.num_layers}, "
            f"num_logical_experts={self.load.num_experts}, ep_size={self.ep_size}, "
            f"overall_balancedness={self.overall_balancedness:.4f}, over_steps={self.over_steps:.4f})"
        )

    def _parts(self) -> list[tuple[Placement, ExpertLoad]]:
        """Return the parts, each with its layers of the load: one, or a layer each where their slots differ."""
        layers: tuple[Placement, ...] | None = getattr(self.placement, "layers", None)
        if layers is None:
            return [(self.placement, self.load)]
        return [(part, ExpertLoad(self.load[:, row : row + 1])) for row, part in enumerate(layers)]


def evaluate(placement: Evaluated, load: ArrayLike | ExpertLoad) -> Evaluation:
    """Say how a placement does under a load, planned for it or not.

    Args:
        placement: L layers, E experts; a result that has one; or one whose slots differ by layer.
        load: tokens of each logical expert, [L, E] or [steps, L, E].

    Raises:
        LoadError: the load is invalid, or not of the placement's layers and experts.
        ExpertMapsError: what is given is no placement.
    """
    trace = as_load(load)
    parts = getattr(placement, "layers", None)
    if isinstance(parts, tuple) and parts and all(isinstance(part, Placement) for part in parts):
        metrics.check_counts(len(parts), parts[0].num_logical_experts, trace)
        # It has the same counts and maps, layer by layer.
        return Evaluation(cast("Placement", placement), trace)
    plain = as_placement(cast("PlacementLike", placement))
    metrics.check_shape(plain, trace)
    return Evaluation(plain, trace)


@dataclass(frozen=True)
class ComparisonRow:
    """One line of `compare`. Where nothing could be planned, ``reason`` says why, and the numbers are None.

    Attributes:
        policy: one of `POLICY_NAMES` or `LAYOUT_NAMES`.
        num_redundant_experts: per layer, over all ranks.
        num_physical_experts: slots of a layer.
        slots_per_rank: the most of a rank.
        overall_balancedness: in total, the ratio of sums over layers.
        worst_balancedness: of the worst layer.
        worst_layer: which that is.
        over_steps: the ratio of sums over steps and layers; equal to the total for a load of one step.
        seconds: that planning took.
        reason: why there is no plan; None where there is one.
    """

    policy: str
    num_redundant_experts: int
    num_physical_experts: int
    slots_per_rank: int | None = None
    overall_balancedness: float | None = None
    worst_balancedness: float | None = None
    worst_layer: int | None = None
    over_steps: float | None = None
    seconds: float | None = field(default=None, compare=False)
    reason: str | None = None


def compare(  # noqa: PLR0913 - options by keyword
    load: ArrayLike | ExpertLoad,
    *,
    ep_size: int,
    policies: Iterable[str] = POLICY_NAMES,
    redundant: Iterable[int] | None = None,
    num_redundant_experts: Iterable[int] | None = None,
    num_groups: int = 1,
    num_nodes: int = 1,
    tolerance: float | None = None,
    allow_uneven: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> list[ComparisonRow]:
    """Plan a load by several policies with several redundancies.

    Args:
        load: as for `plan`.
        ep_size: R.
        policies: of `POLICY_NAMES`, and `LAYOUT_NAMES` for what is served without a plan.
        redundant: redundant experts of a layer, over all ranks, several; (0, 32, 64) if neither name is given.
        num_redundant_experts: the same by its long name.
        num_groups: as for `plan`.
        num_nodes: as for `plan`.
        tolerance: as for `plan`, for ``balanced``.
        allow_uneven: as for `plan`.
        progress: called with (rows done, rows).

    Returns:
        A row for each redundancy and policy, in this order; also where a policy has no plan for these counts.

    Raises:
        LoadError: the load is invalid.
        LayoutError: a policy is unknown, a redundancy no count, or ``ep_size`` is.
        ExpertMapsError: the compiled planner is missing.
    """
    trace = as_load(load)
    if redundant is not None and num_redundant_experts is not None:
        msg = "redundant and num_redundant_experts are both given; expected one of them: they say the same"
        raise LayoutError(msg)
    amounts = redundant if redundant is not None else num_redundant_experts
    names = [_as_name(name) for name in policies]
    counts = [
        as_count("num_redundant_experts", count, 0, error=LayoutError)
        for count in (amounts if amounts is not None else (0, 32, 64))
    ]
    as_count("ep_size", ep_size, 1, error=LayoutError)
    cases = [(count, name) for count in counts for name in names]
    rows = []
    for count, name in cases:

        def make(count: int = count, name: str = name) -> Placement:
            if name in LAYOUT_NAMES:
                return generate_placement(
                    name,
                    num_experts=trace.num_experts,
                    ep_size=ep_size,
                    num_redundant_experts=count,
                    num_layers=trace.num_layers,
                )
            return plan(
                trace,
                ep_size=ep_size,
                num_redundant_experts=count,
                policy=name,
                num_groups=num_groups,
                num_nodes=num_nodes,
                tolerance=tolerance if name == "balanced" else None,
                allow_uneven=allow_uneven,
            ).placement

        rows.append(_row(name, count, trace, make))
        if progress is not None:
            progress(len(rows), len(cases))
    return rows


def _as_name(name: str) -> str:
    known = (*POLICY_NAMES, *LAYOUT_NAMES)
    if name not in known:
        msg = f"policy is {name!r}; expected one of {', '.join(known)}"
        raise LayoutError(msg)
    return name


def _row(name: str, redundant: int, trace: ExpertLoad, make: Callable[[], Placement]) -> ComparisonRow:
    slots = trace.num_experts + redundant
    started = time.perf_counter()
    try:
        placement = make()
    except (LayoutError, PlacementError) as error:
        reason = error.summary if isinstance(error, PlacementError) else str(error)
        return ComparisonRow(name, redundant, slots, reason=" ".join(reason.split()))
    seconds = time.perf_counter() - started
    found = evaluate(placement, trace)
    worst = int(found.worst_layers[0])
    return ComparisonRow(
        name,
        redundant,
        slots,
        int(placement.slots_per_rank.max()),
        found.overall_balancedness,
        float(found.balancedness[worst]),
        worst,
        found.over_steps,
        seconds,
    )
