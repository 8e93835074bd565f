# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Whether a server's EPLB is active, as its workers say; `harness.accuracy.evidence` compares two readings."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from expert_maps import ExpertMapsError, Placement, generate_placement
from harness.accuracy.server import RefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.accuracy.arms import Arm
    from harness.accuracy.server import Server

REPORT = "expert_maps_report"
_NOT_FOUND = {404, 405}
Checksums = Literal["equal", "differ", "not read"]


class ProofError(ExpertMapsError):
    """A server is not what its arm says; nothing may be asked of it."""


@dataclass(frozen=True)
class State:
    """What the ranks of a server report, after they were found to agree.

    Attributes:
        placement: the live one; None where the server has no placement that can be read.
        ep_size: ranks of expert parallelism; None likewise.
        num_reports: ranks that were heard.
        dynamic: whether vLLM moves experts while serving.
        rearrangements: how often it has since loading.
        checksums: of the slots, by rank: [layer][slot], hex; None where they were not asked for.
        recorded_steps: rows that the record of the load will have with what was computed so far; None without one.
    """

    placement: Placement | None = None
    ep_size: int | None = None
    num_reports: int = 0
    dynamic: bool = False
    rearrangements: int = 0
    checksums: dict[int, list[list[str]]] | None = None
    recorded_steps: int | None = None

    @property
    def digest(self) -> str | None:
        """Of the placement."""
        return None if self.placement is None else self.placement.digest

    @property
    def num_redundant_experts(self) -> int:
        """Of a layer, over all ranks."""
        return 0 if self.placement is None else self.placement.num_redundant_experts

    @property
    def is_eplb(self) -> bool:
        """Whether experts stand anywhere else than without EPLB, or may come to."""
        return self.placement is not None and (self.dynamic or not _is_linear(self.placement))


def _is_linear(placement: Placement) -> bool:
    linear = generate_placement(
        "linear",
        num_experts=placement.num_logical_experts,
        ep_size=placement.ep_size,
        num_layers=placement.num_layers,
    )
    return placement.digest == linear.digest


def read_state(server: Server, *, checksums: bool = False, needed: bool = True) -> State | None:
    """Ask all ranks for their placement; None where the server has no endpoint for it.

    Args:
        server: is asked.
        checksums: also read all slots' weights.
        needed: a server without the plugin is an error; otherwise it is None, too.

    Raises:
        ProofError: the ranks contradict each other, or themselves.
        ServerError: there is no answer.
    """
    try:
        answer = server.post("/collective_rpc", {"method": REPORT, "args": [checksums]})
    except RefusedError as error:
        if error.status in _NOT_FOUND or not needed:
            return None
        msg = (
            f"{REPORT} cannot be read from the workers ({error}); expected a server that was started with the plugin "
            "(expert_maps in --additional-config)"
        )
        raise ProofError(msg) from error
    reports = answer.get("results") if isinstance(answer, dict) else None
    if not isinstance(reports, list) or not all(isinstance(one, dict) for one in reports) or not reports:
        msg = f"/collective_rpc answered {answer!r:.200}; expected a list of reports"
        raise ProofError(msg)
    try:
        return agree(reports)
    except ExpertMapsError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        msg = f"a worker's report is malformed ({type(error).__name__}: {error}); expected that of {REPORT}"
        raise ProofError(msg) from error


def agree(reports: Sequence[dict[str, Any]]) -> State:
    """Check that all ranks report one placement, and return it.

    Args:
        reports: what `vllm_ascend_moe.report.WorkerReport` returns on each rank.

    Raises:
        ProofError: they differ, a rank is heard twice, or a digest is not that of its map.
    """
    active = [one for one in reports if one.get("active")]
    if not active:
        return State(num_reports=len(reports))
    if len(active) < len(reports):
        msg = f"the plugin is active on {len(active)} of {len(reports)} ranks; expected all or none"
        raise ProofError(msg)
    if any("digest" not in one for one in reports):
        return State(num_reports=len(reports))
    ranks = [one["ep_rank"] for one in reports]
    for name in ("ep_size", "digest", "rearrangements", "physical_to_logical"):
        if any(one[name] != reports[0][name] for one in reports):
            shown = ", ".join(f"{one[name]!s:.12} on rank {one['ep_rank']}" for one in reports)
            msg = f"ranks report different values of {name}: {shown}; expected one"
            raise ProofError(msg)
    first = reports[0]
    if len(set(ranks)) < len(ranks) or not set(ranks) <= set(range(first["ep_size"])):
        msg = f"ranks report that they are {ranks} of {first['ep_size']}; expected each once"
        raise ProofError(msg)
    table = first["physical_to_logical"]
    experts = len(table[0]) - int(first["num_redundant_experts"])
    placement = Placement(
        table, first["ep_size"], num_logical_experts=experts, allow_uneven=True, allow_duplicates=True
    )
    if placement.digest != first["digest"]:
        msg = f"ranks report digest {first['digest'][:12]} for a map of digest {placement.digest[:12]}"
        raise ProofError(msg)
    return State(
        placement,
        first["ep_size"],
        len(reports),
        dynamic=bool(first.get("settings", {}).get("dynamic")),
        rearrangements=int(first["rearrangements"]),
        checksums=_checksums(reports, placement),
        # One rank records.
        recorded_steps=max((int(one.get("recorded_steps") or 0) for one in reports), default=0) or None,
    )


def _checksums(reports: Sequence[dict[str, Any]], placement: Placement) -> dict[int, list[list[str]]] | None:
    sums = {}
    for one in reports:
        table = one.get("slot_checksums")
        if table is None:
            return None
        found = [len(row) for row in table]
        expected = [int(placement.slots_per_rank[one["ep_rank"]])] * placement.num_layers
        if found != expected:
            msg = (
                f"rank {one['ep_rank']} reports checksums of {found} slots in its layers; expected {expected}"
            )
            raise ProofError(msg)
        if not all(isinstance(value, str) and value for row in table for value in row):
            msg = f"rank {one['ep_rank']} reports slots without a checksum; expected one of each"
            raise ProofError(msg)
        sums[int(one["ep_rank"])] = table
    return sums


def compare_replicas(state: State | None) -> tuple[Checksums, str | None]:
    """Compare the bytes of all copies of an expert, in each layer, over all ranks.

    Returns:
        ``equal`` only where every rank was heard; and what differs first.
    """
    if state is None or state.placement is None or state.checksums is None:
        return "not read", None
    placement = state.placement
    offsets = placement.rank_offsets
    for layer in range(placement.num_layers):
        found: dict[int, dict[str, int]] = defaultdict(dict)
        for rank, table in state.checksums.items():
            for slot, value in enumerate(table[layer]):
                expert = int(placement.physical_to_logical[layer, offsets[rank] + slot])
                found[expert].setdefault(value, rank)
        for expert, values in found.items():
            if len(values) > 1:
                where = " and ".join(f"rank {rank}" for rank in list(values.values())[:2])
                return "differ", f"layer {layer}: the copies of expert {expert} differ, on {where}"
    return ("equal" if len(state.checksums) == state.ep_size else "not read"), None


def require_arm(arm: Arm, state: State | None, planned: Placement | None = None) -> None:
    """Stop before a server is asked that is not what its arm says.

    Args:
        arm: what is expected.
        state: what was read; None where the server has no endpoint for it.
        planned: the placement that it was given; None where none was planned here.

    Raises:
        ProofError: it is something else.
    """
    if arm.role != "eplb":
        if state is not None and state.is_eplb:
            assert state.digest is not None
            msg = (
                f"the baseline serves with EPLB: {state.num_redundant_experts} redundant experts, digest "
                f"{state.digest[:12]}; expected the linear layout, without moving"
            )
            raise ProofError(msg)
        return
    if state is None:
        msg = (
            "the server has no /collective_rpc, so that nobody can tell whether EPLB is active; start it with "
            "VLLM_SERVER_DEV_MODE=1 in its environment and with the plugin (expert_maps in --additional-config)"
        )
        raise ProofError(msg)
    if state.placement is None or state.digest is None:
        msg = (
            "the server reports no placement: the plugin is inactive, or vLLM's EPLB is off; start it with "
            "expert_maps in --additional-config"
        )
        raise ProofError(msg)
    _require_replicas(arm, state)
    if planned is not None and planned.digest != state.digest:
        msg = f"the server serves digest {state.digest[:12]}; expected {planned.digest[:12]}, as was planned"
        raise ProofError(msg)
    if arm.dynamic != state.dynamic:
        found, expected = ("moves", "an arm without") if state.dynamic else ("does not move", "an arm with")
        msg = f"the server {found} experts; expected {expected} dynamic EPLB"
        raise ProofError(msg)


def _require_replicas(arm: Arm, state: State) -> None:
    found, expected = state.num_redundant_experts, arm.num_redundant_experts
    if expected is None and arm.plan is not None:
        expected = arm.plan.num_redundant_experts
    if found == 0 or expected not in {None, found}:
        wanted = "at least 1" if expected is None else str(expected)
        msg = f"EPLB is active with {found} redundant experts, digest {state.digest!s:.12}; expected {wanted}"
        raise ProofError(msg)
    if state.ep_size is None or state.ep_size < 2:  # noqa: PLR2004 - one rank has nothing to balance
        msg = f"EPLB is active on {state.ep_size} rank; expected at least 2"
        raise ProofError(msg)
