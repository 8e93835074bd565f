# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The plugin's hooks against the source of released vLLM and vllm-ascend; nothing is installed or run.

At run time the plugin checks the vLLM that it finds (`vllm_ascend_moe.hooks.wrapping.problems`). This is the same
rule for releases that cannot be installed here, or not beside each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.contract.ascend import check_layer, check_options
from harness.contract.facts import check_facts
from harness.contract.fetching import fetch_source
from harness.contract.pins import SOURCES
from harness.contract.source import SourceError, parameters, read_sources
from vllm_ascend_moe import releases
from vllm_ascend_moe.hooks import table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from harness.contract.source import Sources
    from vllm_ascend_moe.hooks.table import Hook


@dataclass(frozen=True)
class Release:
    """A released source, and what the plugin relies on in it.

    Attributes:
        project: its name in the index.
        version: of it.
        hooks: that must fit.
        row: of the table, for a vllm-ascend; None for a vLLM.
    """

    project: str
    version: str
    hooks: tuple[Hook, ...]
    row: releases.Release | None = None

    def __str__(self) -> str:
        """Name it as people do."""
        return f"{self.project} {self.version}"


# vLLM by itself: each minor version that the plugin supports; those of CI are the oldest and the two newest.
_VLLM = (*table.WATCHED, table.STOP_TIMEOUT, *table.EPLB, *table.CPU)
_ALONE = {"0.30.0": True, "0.31.0": False, "0.32.0": True, "0.33.0": True}


def wanted(*, everything: bool = False) -> list[Release]:
    """Return what is compared: in CI the pairs that are served and the ends of what vLLM may be by itself.

    Args:
        everything: every row of the table, and every vLLM.
    """
    rows = [row for row in releases.RELEASES if everything or row.checked != "contract"]
    hooks: dict[str, list[Hook]] = {
        version: list(_VLLM) for version, is_in_ci in _ALONE.items() if everything or is_in_ci
    }
    for row in rows:
        beside = (*table.beside(row), *table.beside_v2(row))
        hooks.setdefault(row.vllm, []).extend(hook for hook in beside if not _is_ascends(hook))
    of_ascend = [
        Release(
            "vllm-ascend",
            row.vllm_ascend,
            tuple(hook for hook in table.beside(row) if _is_ascends(hook)),
            row,
        )
        for row in rows
    ]
    of_vllm = [Release("vllm", version, tuple(dict.fromkeys(each))) for version, each in hooks.items()]
    return of_ascend + of_vllm


def _is_ascends(hook: Hook) -> bool:
    return hook.module.startswith("vllm_ascend.")


@dataclass
class Report:
    """What was found in one release.

    Attributes:
        release: which.
        num_hooks: how many hooks fit.
        num_calls: in vllm-ascend: how many calls of `init_eplb_config` were looked at.
        num_options: in vllm-ascend: how many of the options that the plugin writes it has, and how many there are.
        num_facts: in vllm-ascend: how many facts of its row were compared.
        problems: by file and name; empty where all is well.
        notes: what is not in this version, and need not be.
    """

    release: Release
    num_hooks: int = 0
    num_calls: int = 0
    num_options: tuple[int, int] = (0, 0)
    num_facts: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def row(self) -> tuple[str, ...]:
        """The report as a line of a table."""
        hooks = f"{self.num_hooks} of {len(self.release.hooks)}"
        options = "{} of {}".format(*self.num_options)
        asked = (str(self.num_calls), options, str(self.num_facts)) if self.release.row else ("", "", "")
        return (str(self.release), hooks, *asked, str(len(self.problems)))


def fetch_releases(folder: Path, wanted: Iterable[Release]) -> list[Path]:
    """Download the source distributions, each into a folder of its own; one that is there is not fetched again.

    Raises:
        ContractError: one could not be fetched.
    """
    return [
        fetch_source(
            folder / release.project / release.version,
            release.project,
            release.version,
            SOURCES[release.project, release.version],
        )
        for release in wanted
    ]


def check_release(path: Path, release: Release) -> Report:
    """Look for everything that the plugin relies on in a release's source.

    Raises:
        ContractError: the file cannot be read.
    """
    report = Report(release)
    sources = read_sources(path)
    for hook in release.hooks:
        found = list(hook_problems(sources, hook))
        report.num_hooks += not found
        report.problems += found
    if release.row is not None:
        layer = check_layer(sources, release.row)
        options = check_options(sources, release.row)
        facts = check_facts(sources, release.row)
        report.num_calls = layer.num_found
        report.num_options = (options.num_found, options.num_expected)
        report.num_facts = facts.num_found
        report.problems += layer.problems + options.problems + facts.problems
        report.notes += options.notes
    report.problems = [f"{release}: {problem}" for problem in report.problems]
    report.notes = [f"{release}: {note}" for note in report.notes]
    return report


def hook_problems(sources: Sources, hook: Hook) -> Iterator[str]:
    """Say what of a hook is not as the plugin relies on it, by the rule of `wrapping.problems`.

    Where a module chooses among several definitions, each must fit.
    """
    try:
        definitions = sources.find(hook.module, hook.name)
        if not hook.parameters:
            # Nothing of its signature is relied on: it may be another project's.
            return
        signatures = [(definition.where, parameters(definition)) for definition in definitions]
    except SourceError as error:
        yield f"{error} (for {hook})"
        return
    for where, found in signatures:
        if tuple(name for name in found if name in hook.parameters) != hook.parameters:
            expected = ", ".join(hook.parameters)
            yield (
                f"{where}: {hook.name} has the parameters ({', '.join(found)}); expected ({expected}) among "
                f"them (for {hook})"
            )
