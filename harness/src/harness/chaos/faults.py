# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What goes wrong with a plan: drawn from a seed and the plan's number, the same on every rank and in every run.

| fault | what is done |
|---|---|
| none | the planner plans, and what it plans is moved, whatever it gains |
| stirred | the plan is a random placement: nearly every slot moves |
| raises | the planner raises |
| rubbish | what the planner returns is no placement for this model |

Each rank may also be late: it sleeps before it takes part in a plan.

`ChaosWorker` is the part that a worker of vLLM's runs; nothing of it is in the plugin.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from vllm_ascend_moe.core.gain import Selection
from vllm_ascend_moe.report import WorkerReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from expert_maps import Placement

Kind = Literal["none", "stirred", "raises", "rubbish"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# How often each comes.
_WEIGHTS = (4, 4, 1, 1)
_LATE_SHARE, _MOST_LATE_SECONDS = 0.05, 0.5
_ERRORS: tuple[type[Exception], ...] = (RuntimeError, KeyError, MemoryError, OSError, AssertionError)


@dataclass(frozen=True)
class Fault:
    """What is done to one plan.

    Attributes:
        kind: see the module.
        seed: of the random part.
        late_seconds: how long each rank sleeps before; 0 for not at all.
    """

    kind: Kind
    seed: int
    late_seconds: tuple[float, ...]


def draw(seed: int, number: int, ranks: int) -> Fault:
    """Return the fault of a plan; the first plans have one of each kind, and each rank late once.

    Args:
        seed: of the run.
        number: of the plan, from 0.
        ranks: how many there are.
    """
    chance = random.Random(f"{seed} {number}")  # noqa: S311 - a test's data
    (kind,) = chance.choices(KINDS, _WEIGHTS)
    late = tuple(
        chance.uniform(0, _MOST_LATE_SECONDS) if chance.random() < _LATE_SHARE or rank == number else 0.0
        for rank in range(ranks)
    )
    kind = KINDS[number] if number < len(KINDS) else kind
    return Fault(kind, chance.randrange(2**32), late)


def stir(old: torch.Tensor, num_experts: int, num_ranks: int, chance: random.Random) -> torch.Tensor:
    """Return a random placement of as many slots: every expert once, the copies anyhow, at most one on a rank.

    Args:
        old: the present one, int64 [L, P].
        num_experts: E, logical.
        num_ranks: R.
        chance: is drawn from.
    """
    slots = old.shape[1] // num_ranks
    rows = []
    for _ in range(old.shape[0]):
        while True:
            redundant = [chance.randrange(num_experts) for _ in range(old.shape[1] - num_experts)]
            row = [*range(num_experts), *redundant]
            chance.shuffle(row)
            parts = [row[at : at + slots] for at in range(0, len(row), slots)]
            if all(len(set(part)) == len(part) for part in parts):
                break
        rows.append(row)
    return torch.tensor(rows)


def rubbish(old: torch.Tensor, num_experts: int, chance: random.Random) -> Any:  # noqa: ANN401 - that is the point
    """Return something that is no plan, near to one or far from it.

    Args:
        old: the present placement, int64 [L, P].
        num_experts: E, logical.
        chance: is drawn from.
    """
    layer, slot = chance.randrange(old.shape[0]), chance.randrange(old.shape[1])
    missing, foreign, negative = old.clone(), old.clone(), old.clone()
    missing[layer][missing[layer] == int(old[layer, slot])] = (int(old[layer, slot]) + 1) % num_experts
    foreign[layer, slot] = num_experts + chance.randrange(1000)
    negative[layer, slot] = -1 - chance.randrange(1000)
    nan = old.double()
    nan[layer, slot] = float("nan")
    return chance.choice(
        [
            missing,
            foreign,
            negative,
            nan,
            old.double() + 0.5,
            old[:, :-1],
            old[:-1],
            old.t(),
            old.unsqueeze(0),
            old[:0],
            old.tolist(),
            None,
            "a plan",
        ]
    )


class _AnyGain:
    """In place of the plugin's rule: a plan is moved whatever it gains, so that experts move all the time."""

    def select(self, before: Placement, after: Placement, _load: object) -> Selection:
        """Choose every layer that changes."""
        changed = (before.physical_to_logical != after.physical_to_logical).any(axis=1)
        return Selection(after.physical_to_logical, changed, None, None if changed.any() else "unchanged")


class FaultyPlan:
    """In place of what makes one plan for all ranks: late, or with a planner that fails, as is drawn.

    Attributes:
        counts: how often each fault was there, how many plans moved something, and what must never be:
            ``changed by a refusal``.
    """

    def __init__(self, plan: Any, seed: int, rank: int, ranks: int, sleep: Callable[[float], None]) -> None:  # noqa: ANN401
        """Stand around a plan.

        Args:
            plan: `vllm_ascend_moe.backends.one_plan.OnePlan`.
            seed: of the run.
            rank: this one.
            ranks: how many there are.
            sleep: what a late rank does.
        """
        self.counts: Counter[str] = Counter()
        self._plan = plan
        self._planner = plan._planner  # noqa: SLF001 - a fault is put where a user has no way to
        plan._planner = SimpleNamespace(rebalance_experts=self._propose)  # noqa: SLF001
        plan._rule = _AnyGain()  # noqa: SLF001
        self._seed, self._rank, self._ranks, self._sleep = seed, rank, ranks, sleep
        self._number = -1

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - of the plan
        """Be the plan in everything else."""
        return getattr(self._plan, name)

    def rebalance_experts(self, *given: Any) -> Any:  # noqa: ANN401 - vLLM's
        """Plan as vLLM asks for it, with the fault that was drawn."""
        self._number += 1
        fault, old = draw(self._seed, self._number, self._ranks), given[-1].cpu().long()
        if seconds := fault.late_seconds[self._rank]:
            self.counts["late"] += 1
            self._sleep(seconds)
        rows = self._plan.rebalance_experts(*given)
        moved = not torch.equal(rows, old)
        self.counts[fault.kind] += 1
        self.counts["moved"] += moved
        self.counts["changed by a refusal"] += moved and fault.kind in {"raises", "rubbish"}
        return rows

    def _propose(self, weight: torch.Tensor, *given: Any) -> Any:  # noqa: ANN401 - vLLM's
        """Be the planner, on the rank that plans."""
        fault = draw(self._seed, self._number, self._ranks)
        chance = random.Random(fault.seed)  # noqa: S311 - a test's data
        ranks, old = given[3], given[4]
        if fault.kind == "raises":
            msg = f"plan {self._number} fails, as was drawn"
            raise chance.choice(_ERRORS)(msg)
        if fault.kind == "rubbish":
            return rubbish(old, weight.shape[1], chance)
        if fault.kind == "stirred":
            return stir(old, weight.shape[1], ranks, chance)
        return self._planner.rebalance_experts(weight, *given)


class ChaosWorker(WorkerReport):
    """Mixed into vLLM's worker: begins the faults and tells of them; the rest is the plugin's report."""

    def begin_chaos(self, seed: int) -> int:
        """Put faults around every plan from now on; returns this rank."""
        from vllm_ascend_moe.core.session import session_of

        session = session_of(self)
        assert session is not None, "the plugin is not active"
        state = session.backend.state
        ranks = session.ranks
        self._chaos = FaultyPlan(state.policy, seed, ranks.ep_rank, ranks.ep_size, time.sleep)
        state.policy = self._chaos
        return int(ranks.ep_rank)

    def tell_chaos(self) -> dict[str, int]:
        """Return what was done until now."""
        return dict(self._chaos.counts)


__all__ = ["KINDS", "ChaosWorker", "Fault", "FaultyPlan", "draw", "rubbish", "stir"]
