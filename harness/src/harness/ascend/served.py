# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What one engine beside a staged release gave, and what its log says of how it ended."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# An error of the plugin in a worker's log: the front end only says that a worker failed.
_OWN_ERROR = re.compile(
    r"(?:expert_maps|vllm_ascend_moe)[\w.]*\.(\w*Error): (.*)|\b((?:EplbConfig|Upstream|Disagreement|Settings|Placement|"
    r"Format|Layout|Slot\w*)Error): (.*)"
)
_ANY_ERROR = re.compile(r"\b(\w+Error|\w+Exception): (.*)")
# What the front end says when a worker or an engine failed, and why is above it.
_SECOND_HAND = ("Engine core initialization failed", "WorkerProc initialization failed", "Failed core proc")
# The ops by which vllm-ascend's ways to exchange tokens can be told.
_PATHS = (
    ("MC2", "npu_moe_distribute_dispatch"),
    ("ALLTOALL", "npu_moe_token_permute"),
    ("AllGather", "npu_moe_init_routing"),
)


@dataclass(frozen=True)
class Served:
    """What one engine gave.

    Attributes:
        rounds: ``tokens``, ``logprobs`` and ``seconds`` of each.
        inspections: every worker's tables and slots, before the first round and after each.
        mutants: by name: ``changed``, ``inspection``, ``tokens``.
        refused: the plugin's own error, which stopped the start; None where it started.
        failed: what else stopped it; None where nothing did.
        names: ops and the like that were used.
        left: processes that were still there when all should have ended.
        is_late: whether the time limit had to end it.
        has_begun: whether there was an engine's process at all.
        ended_seconds: from a worker's being killed to the engine's error; None where none was killed.
        seconds: from the start of the process to its end.
        log: where it is.
        routes: what the routers chose, counted by the harness, [L][E]; None where that was not asked for.
        accepted: tokens of a draft model's that the model agreed to; None where that was not asked for.
        metrics: what a server's ``/metrics`` shows of the plugin's at the end; None of an engine without a server.
    """

    rounds: list[dict[str, Any]] = field(default_factory=list)
    inspections: list[list[dict[str, Any]]] = field(default_factory=list)
    mutants: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: str | None = None
    failed: str | None = None
    names: tuple[str, ...] = ()
    left: tuple[int, ...] = ()
    is_late: bool = False
    seconds: float = 0.0
    log: Path | None = None
    routes: list[list[int]] | None = None
    has_begun: bool = True
    ended_seconds: float | None = None
    accepted: int | None = None
    metrics: dict[str, float] | None = None

    @property
    def tokens(self) -> list[list[int]] | None:
        """The first round's; None where there is none."""
        tokens: list[list[int]] | None = self.rounds[0]["tokens"] if self.rounds else None
        return tokens

    @property
    def paths(self) -> tuple[str, ...]:
        """By which of vllm-ascend's ways tokens went to their experts."""
        return tuple(path for path, op in _PATHS if any(op in name for name in self.names))


def read_names(path: Path | None) -> tuple[str, ...]:
    """Return the names that an engine's processes listed."""
    if path is None or not path.exists():
        return ()
    return tuple(sorted(set(path.read_text(encoding="utf-8").split())))


def own_error(log: Path) -> str | None:
    """Return the plugin's error that a worker logged, if it is what stopped it."""
    for line in reversed(log.read_text(encoding="utf-8", errors="replace").splitlines()):
        if found := _OWN_ERROR.search(line):
            name, said = (found[1], found[2]) if found[1] else (found[3], found[4])
            return f"{name}: {said}"
    return None


def last_error(log: Path) -> str:
    """Return the last error of a log that is not another's consequence; where there is none, that."""
    for line in reversed(log.read_text(encoding="utf-8", errors="replace").splitlines()):
        found = _ANY_ERROR.search(line)
        if found and not any(words in line for words in _SECOND_HAND):
            return f"{found[1]}: {found[2]}"
    return "the engine ended without an error message"


def compare_tokens(
    found: Sequence[Sequence[int]] | None, expected: Sequence[Sequence[int]]
) -> tuple[int, int]:
    """Return how many texts are equal, and of how many."""
    if found is None:
        return 0, len(expected)
    return sum(list(a) == list(b) for a, b in zip(found, expected, strict=True)), len(expected)
