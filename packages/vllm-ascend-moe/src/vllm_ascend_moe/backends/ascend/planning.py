# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""This project's planner in vllm-ascend's dynamic EPLB, in place of the process in which that plans.

vllm-ascend has such a process beside every worker, and each of them plans for itself: seconds of Python for a large model, and
nothing compares what they find. Here one worker plans, in a thread beside its steps, since the planner is compiled, and tells
the others (`backends.one_plan`) at the end of the step before the one in which all of them ask for the answer. The process is
started all the same, and is never asked.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from expert_maps import Placement
from expert_maps.maps import all_log2phy, replica_turns
from vllm_ascend_moe.backends.one_plan import OnePlan
from vllm_ascend_moe.backends.policy import make_policy
from vllm_ascend_moe.backends.rules import rule_for
from vllm_ascend_moe.hooks import table
from vllm_ascend_moe.hooks.wrapping import UpstreamError

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from vllm_ascend_moe.core.session import Session

# What vllm-ascend does with one layer: (rank, expert) to send, (rank, expert) to receive, this rank's expert map and
# log2phy, the layer's index.
Task = tuple["list[tuple[int, int]]", "list[tuple[int, int]]", "NDArray[np.int32]", "NDArray[np.int32]", int]


class Planner:
    """Stands for both queues between vllm-ascend's runner and its process: what is put wakes, what is got is the plan."""

    def __init__(
        self,
        plan: OnePlan | None,
        placement: Placement,
        read_load: Callable[[], torch.Tensor],
        *,
        ep_rank: int,
        num_groups: int,
        num_nodes: int,
        tp_sizes: list[int],
        record: Callable[[torch.Tensor], None] | None = None,
    ) -> None:
        """Start from the placement that is served.

        Args:
            plan: makes or gets the plan; None where experts stay where they are.
            placement: of this stage's layers.
            read_load: returns the tokens of every slot, int [L, R, slots of a rank], as vllm-ascend has gathered them.
            ep_rank: this rank.
            num_groups: the router's expert groups.
            num_nodes: servers.
            tp_sizes: by which each layer chooses among copies, see `Placement.log2phy`.
            record: takes the planned maps, int32 [L, R, E], where vllm-ascend writes them to a file and moves nothing;
                None where it moves.
        """
        self.placement = placement
        self._plan = plan
        self._read_load = read_load
        self._ep_rank = ep_rank
        self._num_groups, self._num_nodes = num_groups, num_nodes
        self._tp_sizes = tp_sizes
        self._record = record
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="expert-maps-planner")
        self._proposal: Future[torch.Tensor | None] | None = None
        # What all ranks have been told, until vllm-ascend asks for it.
        self._shared: torch.Tensor | None = None
        # Whether it has asked since they were told.
        self._is_given = False

    @property
    def moves(self) -> bool:
        """Whether the last plan moves anything."""
        return self._plan is not None and self._plan.moves

    def put(self, _: object) -> None:
        """Begin to plan, on the rank that does."""
        if self._plan is not None and self._plan.plans_here:
            self._proposal = self._thread.submit(self._propose, self._plan)

    def _propose(self, plan: OnePlan) -> torch.Tensor | None:
        old = self.placement
        return plan.propose(
            lambda: torch.from_numpy(self._load()),
            old.num_physical_experts,
            self._num_groups,
            self._num_nodes,
            old.ep_size,
            _rows(old),
        )

    def share(self) -> None:
        """Tell the plan to all ranks, at the end of a step.

        There all ranks get, each after the same exchanges. Where vllm-ascend asks for the plan they do not: a
        data-parallel rank that serves asks once the ranks have agreed on the step's tokens, an idle one before that, and
        each would wait for the other for ever.
        """
        if self._plan is not None:
            proposal, self._proposal = self._proposal, None
            told = None if proposal is None else proposal.result()
            self._shared, self._is_given = self._plan.share(told, _rows(self.placement)), False

    def get(self) -> list[Task]:
        """Return what is to be done in every layer; nothing is moved in one that stays as it is.

        Raises:
            UpstreamError: the plan is asked for before a step's end at which it was due, or once more, as vLLM does
                where the step that asked has failed and others were queued behind it.
        """
        new = old = self.placement
        if self._plan is not None:
            rows, self._shared = self._shared, None
            if rows is None and self._is_given:
                msg = "vllm-ascend asks again for a plan that it has got: the step that asked has failed, see its error above"
                raise UpstreamError(msg)
            if rows is None:
                msg = (
                    "vllm-ascend asks for a plan that has not been told to all ranks; expected it to ask in the step after "
                    f"{table.EPLB_FORWARD_END} in which {table.EPLB_PLAN_DUE} says so"
                )
                raise UpstreamError(msg)
            self._is_given = True
            new = Placement(rows.numpy(), old.ep_size, num_logical_experts=old.num_logical_experts)
        maps = (
            new.global_expert_map().copy()
        )  # a placement's arrays are read-only; vllm-ascend makes tensors of them
        sent, received = transfers(old.global_expert_map(), maps, self._ep_rank)
        if self._record is None:
            self.placement = new
        else:
            self._record(torch.from_numpy(maps))
        log2phy = {tp_size: _log2phy(new, self._ep_rank, tp_size) for tp_size in set(self._tp_sizes)}
        return [
            (sent[layer], received[layer], maps[layer, self._ep_rank], log2phy[tp_size][layer], layer)
            for layer, tp_size in enumerate(self._tp_sizes)
        ]

    def _load(self) -> NDArray[np.int64]:
        """Return the load of every logical expert, [L, E]."""
        rows = self.placement.physical_to_logical
        load = self._read_load().reshape(rows.shape).numpy()
        total = np.zeros((len(rows), self.placement.num_logical_experts), dtype=np.int64)
        np.add.at(total, (np.arange(len(rows))[:, None], rows), load)
        return total


def _rows(placement: Placement) -> torch.Tensor:
    return torch.from_numpy(placement.physical_to_logical.astype(np.int64))


def _log2phy(placement: Placement, ep_rank: int, tp_size: int) -> NDArray[np.int32]:
    """Return `Placement.log2phy` of all layers, int32 [L, E]: at once, as a rearrangement waits for it."""
    turns = replica_turns(np.array([ep_rank], dtype=np.int32), placement.num_logical_experts, tp_size)
    return all_log2phy(placement.logical_to_physical, placement.replica_count, *turns)[:, 0]


def transfers(
    old: NDArray[np.int32], new: NDArray[np.int32], ep_rank: int
) -> tuple[list[list[tuple[int, int]]], list[list[tuple[int, int]]]]:
    """Return what one rank sends and receives, layer by layer.

    A rank receives each expert that it did not hold. Of those that held it, the receivers take one after the other.
    Messages between two ranks are in the same order in both lists.

    Args:
        old: [L, R, E], logical expert → local slot, −1 where absent.
        new: as old.
        ep_rank: the rank.

    Returns:
        (rank, expert) to send to, and (rank, expert) to receive from; a list for each layer.
    """
    held = old >= 0
    layers, receivers, experts = np.nonzero(~held & (new >= 0))
    at, holders, of = np.nonzero(held)
    # Both by layer and expert; within those by rank, as they were.
    asked, holding = layers * old.shape[2] + experts, at * old.shape[2] + of
    holders = holders[np.argsort(holding, kind="stable")]
    # The first receiver of an expert takes its first holder, and so on in turn.
    count = np.bincount(holding, minlength=len(old) * old.shape[2])
    senders = holders[(np.cumsum(count) - count)[asked] + _turns(asked) % count[asked]]
    sent: list[list[tuple[int, int]]] = [[] for _ in old]
    received: list[list[tuple[int, int]]] = [[] for _ in old]
    own = (senders == ep_rank) | (receivers == ep_rank)
    for layer, sender, receiver, expert in zip(
        *(part[own].tolist() for part in (layers, senders, receivers, experts)), strict=True
    ):
        if sender == ep_rank:
            sent[layer].append((receiver, expert))
        else:
            received[layer].append((sender, expert))
    return sent, received


def _turns(keys: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return how often each key stood before it: [N]."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(keys)]
    places = np.arange(len(keys))
    turns = np.empty_like(places)
    turns[order] = places - np.maximum.accumulate(np.where(first, places, 0))
    return turns


def planner_for(
    session: Session, updator: Any, placement: Placement, tp_sizes: list[int], num_groups: int
) -> Planner:
    """Return the planner that the settings ask for.

    Args:
        session: the engine's.
        updator: vllm-ascend's, warmed up.
        placement: of this stage's layers, as they are served.
        tp_sizes: see `Planner`.
        num_groups: the router's expert groups.
    """
    settings, ranks = session.settings, session.ranks
    window, layers = int(updator.expert_heat_collection_interval), placement.num_layers
    records = updator.expert_map_record_path is not None
    if records and settings.min_gain is None:
        # What is not moved costs nothing.
        settings = settings.changed(min_gain=0.0)
    slot = next(iter(updator.adaptor.expert_param_per_layer.values()))[0]
    cycle = window + int(updator.algorithm_execution_interval) + layers
    rule = rule_for(settings, "npu", slot, 1, cycle / window)
    plan = None
    if settings.dynamic:
        policy = make_policy(settings.policy, settings.max_moves)
        plan = OnePlan(policy, rule, updator.comm_group.cpu_group, session.meter)
    shared = updator.shared_dict

    def read_load() -> torch.Tensor:
        load: torch.Tensor = shared["moe_load"]
        return load

    def record(maps: torch.Tensor) -> None:
        shared["expert_maps"] = maps

    return Planner(
        plan,
        placement,
        read_load,
        ep_rank=ranks.ep_rank,
        num_groups=num_groups,
        num_nodes=ranks.num_nodes,
        tp_sizes=tp_sizes,
        record=record if records else None,
    )


__all__ = ["Planner", "planner_for", "transfers"]
