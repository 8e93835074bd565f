# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a session with `--short` runs on Pythons, or with versions, that have the whole in the nightly run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.sessions.environments import CORE, PLUGIN

if TYPE_CHECKING:
    from collections.abc import Sequence

# Files, imports, ctypes, the planner.
SMOKE_TESTS = ("imports", "library", "files", "cli_plan", "loads", "maps", "planning", "yaml_text")
# Those of the plugin's that lean on what it depends on: options, pages, files, kernels.
PLUGIN_SMOKE_TESTS = (
    "plugin_imports",
    "settings",
    "doctor",
    "releases",
    "option_table",
    "eplb",
    "experts",
    "map_and_record",
    "recorder",
    "register",
)
_SHORT = "--short"


def tests_of_core(posargs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return pytest's options and the tests of expert-maps: a few of them with ``--short``."""
    words = [word for word in posargs if word != _SHORT]
    return words, _tests(CORE, SMOKE_TESTS, posargs)


def tests_of_plugin(posargs: Sequence[str]) -> list[str]:
    """Return the tests of the plugin: a few of them with ``--short``."""
    return _tests(PLUGIN, PLUGIN_SMOKE_TESTS, posargs)


def _tests(member: str, few: Sequence[str], posargs: Sequence[str]) -> list[str]:
    return [f"{member}/tests/test_{name}.py" for name in few] if _SHORT in posargs else [f"{member}/tests"]


__all__ = ["PLUGIN_SMOKE_TESTS", "SMOKE_TESTS", "tests_of_core", "tests_of_plugin"]
