# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a case showed, against what is expected of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from expert_maps import ExpertMapsError, read_load, read_placement, write_placement
from harness.ascend import metering
from harness.ascend.engine import is_quantised
from harness.ascend.served import compare_tokens
from harness.ascend.tables import InspectionError, live_rows, slot_faults

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.ascend.case import Case
    from harness.ascend.served import Served
    from harness.ascend.tables import Experts

# Of a probability's logarithm, between one rank and two in float32: sums are taken in another order.
LARGEST_DELTA = 1e-4
# Of a quantised model, in float16, where a sum taken in another order may round an int8 the other way.
LARGEST_INT8_DELTA = 0.2
_SHOWN = 3
# From a worker's death to the engine's error.
_MOST_SECONDS = 30.0
# Rows of a record of load: each round generates 16 tokens, a step each.
_FEWEST_STEPS = 16


@dataclass(frozen=True)
class Reference:
    """What one rank without the plugin says.

    Attributes:
        tokens: of each prompt.
        logprobs: of each token.
        experts: each expert's bytes, by layer.
        seconds: of the engine's processes.
        paths: by which ways tokens were exchanged.
    """

    tokens: list[list[int]]
    logprobs: list[list[float]]
    experts: Experts
    seconds: float = 0.0
    paths: tuple[str, ...] = ()


@dataclass
class Judged:
    """A case's outcome.

    Attributes:
        equal: texts equal to the reference's, and of how many; None where nothing was generated.
        delta: the largest difference of a log-probability; None likewise.
        slots: how many slots were compared with the expert that the tables name, in all inspections.
        moved: how many slots hold another expert at the end than at the start.
        caught: how each mutant was noticed, by name.
        paths: by which ways tokens were exchanged.
        problems: what is not as expected; empty where all is well.
        seconds: of the engine's processes.
        refused: the plugin's words.
    """

    equal: tuple[int, int] | None = None
    delta: float | None = None
    slots: int = 0
    moved: int = 0
    caught: dict[str, str] = field(default_factory=dict)
    paths: tuple[str, ...] = ()
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0
    refused: str | None = None


def judge(case: Case, served: Served, reference: Reference | None) -> Judged:
    """Compare a case with the reference and with what is expected of it."""
    found = Judged(paths=served.paths, seconds=served.seconds, refused=served.refused)
    if served.left:
        found.problems.append(f"processes {', '.join(map(str, served.left))} were left behind; expected none")
    if case.expected == "ends":
        _judge_end(case, served, found)
    elif served.failed is not None:
        found.problems.append(served.failed)
    elif case.expected == "refused":
        _judge_refusal(case, served, found)
    elif served.refused is not None:
        found.problems.append(f"refused: {served.refused}")
    else:
        assert reference is not None
        _judge_served(case, served, reference, found)
    return found


def _judge_served(case: Case, served: Served, reference: Reference, found: Judged) -> None:
    """Compare what was answered, what slots held, and what was written."""
    _judge_tokens(case, served.rounds, reference, found)
    _judge_slots(case, served.inspections, reference, found)
    for mutant in case.mutants:
        _judge_mutant(mutant, served.mutants.get(mutant), reference, found)
    if case.record is not None:
        _judge_record(case, case.record, reference, found)
    if case.load is not None:
        _judge_load(case.load, served.routes, found)
    if case.drafts and not served.accepted:
        found.problems.append(f"{served.accepted} tokens of the draft model were accepted; expected some")
    if case.is_server:
        found.problems += metering.problems(served.metrics or {}, moves=case.moves, moved=found.moved)


def _judge_refusal(case: Case, served: Served, found: Judged) -> None:
    if served.refused is None:
        found.problems.append("it started; expected the plugin to refuse it")
    elif case.says not in served.refused:
        found.problems.append(f"refused, but not for {case.says!r}: {served.refused}")


def _judge_end(case: Case, served: Served, found: Judged) -> None:
    """Expect a failure that was seen as one: neither a time limit that had to end it, nor an engine that serves."""
    if served.failed is None:
        found.problems.append("it started; expected it to fail and to end")
    elif not served.has_begun:
        found.problems.append(f"it was never started: {served.failed}")
    elif served.is_late:
        found.problems.append(f"it failed, but did not end: {served.failed}")
    elif case.kills:
        _judge_seconds(served, found)


def _judge_seconds(served: Served, found: Judged) -> None:
    seconds = served.ended_seconds
    if seconds is None:
        found.problems.append(f"it failed before a worker was killed: {served.failed}")
    elif seconds > _MOST_SECONDS:
        found.problems.append(
            f"it took {seconds:.0f} s to end after a worker was killed; expected {_MOST_SECONDS:g} s at most"
        )


def _judge_tokens(case: Case, rounds: Sequence[dict[str, Any]], reference: Reference, found: Judged) -> None:
    rounds_off = is_quantised(case.model)
    limit = LARGEST_INT8_DELTA if rounds_off else LARGEST_DELTA
    for round_ in rounds:
        equal, count = compare_tokens(round_["tokens"], reference.tokens)
        found.equal = (min(equal, found.equal[0]) if found.equal else equal, count)
        # Where an int8 may round the other way, two tokens may be as likely: what follows then is another text.
        apart = count - equal - (_ties(round_, reference, limit) if rounds_off else 0)
        if apart:
            found.problems.append(f"{apart} of {count} texts differ from those without the plugin")
            return
        if round_.get("logprobs"):
            deltas = [abs(a - b) for text in range(count) for a, b in _logprobs(round_, reference, text)]
            found.delta = max([*deltas, found.delta or 0.0])
    if found.delta is not None and not found.delta <= limit:
        found.problems.append(
            f"the largest difference of a log-probability is {found.delta:.1e}; expected {limit:g} at most"
        )


def _logprobs(round_: dict[str, Any], reference: Reference, text: int) -> list[tuple[float, float]]:
    """Return a text's log-probabilities and the reference's, as far as both have the same tokens, and of the next."""
    mine, theirs = round_["tokens"][text], reference.tokens[text]
    same = next(
        (at for at, pair in enumerate(zip(mine, theirs, strict=True)) if pair[0] != pair[1]), len(mine)
    )
    return list(zip(round_["logprobs"][text], reference.logprobs[text], strict=True))[: same + 1]


def _ties(round_: dict[str, Any], reference: Reference, limit: float) -> int:
    """Count the texts that differ from a token on that is as likely as the reference's."""
    return sum(
        list(mine) != list(theirs) and all(abs(a - b) <= limit for a, b in _logprobs(round_, reference, text))
        for text, (mine, theirs) in enumerate(zip(round_["tokens"], reference.tokens, strict=True))
    )


def _judge_slots(
    case: Case, inspections: Sequence[list[dict[str, Any]]], reference: Reference, found: Judged
) -> None:
    if not inspections:
        found.problems.append("no worker was inspected")
        return
    for number, inspection in enumerate(inspections):
        try:
            faults = slot_faults(inspection, reference.experts)
        except InspectionError as error:
            found.problems.append(str(error))
            return
        found.slots += sum(len(layer["slots"]) for worker in inspection for layer in worker["layers"])
        if faults:
            shown = "; ".join(str(fault) for fault in faults[:_SHOWN])
            found.problems.append(f"inspection {number}: {len(faults)} slots are wrong: {shown}")
            return
    first, last = (_holdings(inspections[at]) for at in (0, -1))
    found.moved = sum(last.get(slot) != held for slot, held in first.items())
    if case.moves and not found.moved:
        found.problems.append("no expert moved; expected vllm-ascend to move some")
    if case.rows is not None:
        _judge_rows(case.rows, inspections[-1], found)


def _holdings(inspection: Sequence[dict[str, Any]]) -> dict[tuple[int, int, int], str]:
    return {
        (layer["layer"], worker["ep_rank"], slot): held
        for worker in inspection
        for layer in worker["layers"]
        for slot, held in enumerate(layer["slots"])
    }


def _judge_rows(path: Path, inspection: Sequence[dict[str, Any]], found: Judged) -> None:
    """Compare the live tables with the map that was asked for."""
    asked = read_placement(path)
    per_rank = asked.num_physical_experts // asked.ep_size
    for row, (layer, ranks) in zip(
        asked.physical_to_logical.tolist(), live_rows(inspection).items(), strict=True
    ):
        wanted = [row[at : at + per_rank] for at in range(0, len(row), per_rank)]
        if ranks != wanted:
            found.problems.append(f"layer {layer} serves {ranks}; expected {wanted}, as the map says")


def _judge_mutant(mutant: str, damaged: dict[str, Any] | None, reference: Reference, found: Judged) -> None:
    if damaged is None or not damaged["changed"]:
        found.problems.append(f"mutant {mutant}: nothing was changed, so nothing was tested")
        return
    equal, count = compare_tokens(damaged["tokens"], reference.tokens)
    faults = slot_faults(damaged["inspection"], reference.experts)
    found.caught[mutant] = f"{count - equal} of {count} texts, {len(faults)} slots"
    if not faults or equal == count:
        found.problems.append(
            f"mutant {mutant}: {count - equal} texts differ and {len(faults)} slots are wrong; expected some of both"
        )


def _judge_load(path: Path, routes: list[list[int]] | None, found: Judged) -> None:
    """Compare the record of load with what the routers chose, as the harness counted it."""
    if routes is None:
        found.problems.append("what the routers chose was not counted")
        return
    try:
        counts = read_load(path).counts
    except ExpertMapsError as error:
        found.problems.append(f"the load that was recorded cannot be read: {error}")
        return
    total = counts.sum(axis=0).astype(int).tolist()
    if total != routes:
        wrong = [layer for layer, (one, other) in enumerate(zip(total, routes, strict=False)) if one != other]
        found.problems.append(
            f"{path.name} has {[sum(row) for row in total]} tokens by layer; expected {[sum(row) for row in routes]}, as the "
            f"routers chose, with the same of each expert (layers {wrong} differ)"
        )
    if len(counts) < _FEWEST_STEPS:
        found.problems.append(
            f"{path.name} has {len(counts)} rows; expected one a step, {_FEWEST_STEPS} at least"
        )


def _judge_record(case: Case, path: Path, reference: Reference, found: Judged) -> None:
    """Read the placement that vllm-ascend wrote, and write it again: what vllm-ascend reads must be the same."""
    try:
        placement = read_placement(path, format="vllm-ascend")
    except ExpertMapsError as error:
        found.problems.append(f"what vllm-ascend recorded is no placement: {error}")
        return
    counts = (placement.num_layers, placement.num_logical_experts, placement.ep_size)
    experts = reference.experts
    wanted = (len(experts), len(next(iter(experts.values()))), case.ranks)
    if counts != wanted:
        found.problems.append(f"vllm-ascend recorded {counts} layers, experts and ranks; expected {wanted}")
    again = path.with_suffix(".again.json")
    write_placement(placement, again)
    theirs, ours = (json.loads(each.read_text(encoding="utf-8")) for each in (path, again))
    if theirs != {key: ours.get(key) for key in theirs}:
        found.problems.append("the placement that vllm-ascend recorded is another when it is written again")
