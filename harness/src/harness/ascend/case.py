# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""One engine and what it must do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pathlib import Path

MUTANTS = ("log2phy", "neighbour", "layer_shift")
Expected = Literal["right", "refused", "ends"]


@dataclass(frozen=True)
class Case:
    """One engine and what it must do.

    Attributes:
        name: as the table shows it.
        model: a checkpoint.
        chip: A2 or A3.
        ranks: expert-parallel ranks.
        config: vllm-ascend's and the plugin's additional config; None for none.
        engine: more of vLLM's arguments.
        expected: ``right``: the tokens of one rank without the plugin, and every slot holds what the tables name;
            ``refused``: the plugin stops the start, with a reason; ``ends``: it fails, within its time limit.
        says: words that a refusal must have.
        mutants: damages that must be noticed.
        moves: whether experts must have moved by the end.
        record: a map that vllm-ascend must have written.
        load: a record of load that the plugin must have written; one row a step, and all of them what the routers chose.
        rows: a map whose placement the live tables must show; None where any is right.
        kills: whether a worker is killed amid a round.
        is_server: whether the OpenAI server is started in place of an engine in one process.
        runner: vllm-ascend's, 1 or 2.
        drafts: whether a draft model proposes tokens, of which some must be right.
    """

    name: str
    model: Path
    chip: str
    ranks: int = 2
    config: dict[str, Any] | None = None
    engine: dict[str, Any] = field(default_factory=dict)
    expected: Expected = "right"
    says: str = ""
    mutants: tuple[str, ...] = ()
    moves: bool = False
    record: Path | None = None
    load: Path | None = None
    rows: Path | None = None
    kills: bool = False
    is_server: bool = False
    runner: int = 1
    drafts: bool = False
