# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The few tests that a session runs with ``--short``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.sessions.environments import CORE, PLUGIN

if TYPE_CHECKING:
    from collections.abc import Sequence

# What a session with `--short` runs on Pythons that have the whole in the nightly run: files, imports, ctypes, the planner.
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


def tests_of_core(posargs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return pytest's options and the tests of expert-maps: a few of them with ``--short``."""
    words = [word for word in posargs if word != "--short"]
    short = len(words) < len(posargs)
    return words, [f"{CORE}/tests/test_{name}.py" for name in SMOKE_TESTS] if short else [f"{CORE}/tests"]


def tests_of_plugin(posargs: Sequence[str]) -> list[str]:
    """Return the tests of the plugin: a few of them with ``--short``."""
    names = PLUGIN_SMOKE_TESTS if "--short" in posargs else ()
    return [f"{PLUGIN}/tests/test_{name}.py" for name in names] or [f"{PLUGIN}/tests"]
