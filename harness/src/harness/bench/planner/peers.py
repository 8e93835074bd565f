# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The policies that are compared: this project's, and vLLM's where it is installed.

What a policy needs is imported when it is first asked, so that each can be timed in a process of its own.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from harness.bench.planner.problems import Problem

    Slots = NDArray[np.int64]

FAST, PRECISE, TIGHT = "balanced, 1 %", "balanced", "balanced, 0.01 %"
VLLM = "vLLM"


class RefusedError(Exception):
    """A policy that cannot plan such a problem, or broke down over it; the text says how."""


@dataclass(frozen=True)
class Answer:
    """What a policy gave.

    Attributes:
        slots: int64 [L, P].
        bound: float64 [L], a lower bound of the hottest rank's load; None where a policy states none.
    """

    slots: Slots
    bound: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Peer:
    """A policy.

    Attributes:
        name: what tables call it.
        prepare: brings a problem into the policy's own form, and returns the call that is timed; raises
            `RefusedError` where the policy has no such form.
        read: makes an answer of what that call returned.
    """

    name: str
    prepare: Callable[[Problem], Callable[[], Any]]
    read: Callable[[Problem, Any], Answer]

    def solve(self, problem: Problem) -> Answer:
        """Plan once.

        Raises:
            RefusedError: the policy cannot, broke down, or gave something of a wrong shape.
        """
        call = self.prepare(problem)
        try:
            answer = self.read(problem, call())
        except (ArithmeticError, AssertionError, LookupError, ValueError) as error:
            msg = f"{type(error).__name__}: {error}"
            raise RefusedError(msg) from error
        expected = (problem.total.shape[0], problem.num_physical)
        if answer.slots.shape != expected:
            msg = f"its answer has shape {answer.slots.shape}; expected {expected}"
            raise RefusedError(msg)
        return answer


def ours(name: str, policy: str, **options: Any) -> Peer:  # noqa: ANN401 - options of `plan`
    """Return a policy of this project's."""

    def prepare(problem: Problem) -> Callable[[], Any]:
        from expert_maps import Placement, plan

        wanted: dict[str, Any] = dict(options)
        if problem.current is not None and policy == "balanced":
            experts = problem.total.shape[1]
            wanted["current"] = Placement(problem.current, problem.ep_size, num_logical_experts=experts)
            wanted["max_moves"] = problem.max_moves
        return lambda: plan(
            problem.load,
            num_physical_experts=problem.num_physical,
            ep_size=problem.ep_size,
            num_groups=problem.num_groups,
            num_nodes=problem.num_nodes,
            policy=policy,
            **wanted,
        )

    def read(_: Problem, result: Any) -> Answer:  # noqa: ANN401 - a PlanResult, imported late
        bound = result.lower_bound if policy == "balanced" else None
        return Answer(result.placement.physical_to_logical.astype(np.int64), bound)

    return Peer(name, prepare, read)


def vllm() -> Peer:
    """Return vLLM's own policy, which it calls with a torch tensor of the summed load."""

    def prepare(problem: Problem) -> Callable[[], Any]:
        torch = importlib.import_module("torch")
        module = importlib.import_module("vllm.distributed.eplb.policy.default")
        policy = module.DefaultEplbPolicy
        weight = torch.from_numpy(problem.total.copy())
        before = None if problem.current is None else torch.from_numpy(problem.current.copy())
        return lambda: policy.rebalance_experts(
            weight, problem.num_physical, problem.num_groups, problem.num_nodes, problem.ep_size, before
        )

    def read(_: Problem, result: Any) -> Answer:  # noqa: ANN401 - a tensor, imported late
        return Answer(result.numpy().astype(np.int64))

    return Peer(VLLM, prepare, read)


def own_peers() -> list[Peer]:
    """Return this project's policies: `balanced` at three tolerances, and DeepSeek's."""
    return [
        ours(FAST, "balanced", tolerance=0.01),
        ours(PRECISE, "balanced"),
        ours(TIGHT, "balanced", tolerance=1e-4),
        ours("deepseek", "deepseek"),
        ours("deepseek, duplicates", "deepseek", allow_duplicates=True),
    ]
