# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
from importlib.metadata import requires, version
from pathlib import Path

import pytest

from harness.sessions.bom import FILE, MEMBERS, as_text, bom_of

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("member", MEMBERS)
def test_the_bills_are_those_of_the_packages(member: str) -> None:
    kept = (ROOT / member / FILE).read_text(encoding="utf-8")
    assert kept == as_text(bom_of(ROOT / member)), "write it anew: python -m harness.sessions.bom"
    pyproject = (ROOT / member / "pyproject.toml").read_text(encoding="utf-8")
    # Into the wheel, and into the source distribution, which a wheel may be built from.
    assert f'sbom-files = ["{FILE}"]' in pyproject
    assert re.search(rf'^include = \[.*"{re.escape(FILE)}".*\]$', pyproject, re.MULTILINE)


@pytest.mark.parametrize("member", MEMBERS)
def test_a_bill_says_what_the_metadata_says(member: str) -> None:
    found = json.loads((ROOT / member / FILE).read_text(encoding="utf-8"))
    name = Path(member).name
    component = found["metadata"]["component"]
    assert (component["name"], component["version"]) == (name, version(name))
    asked = [line for line in requires(name) or [] if "extra ==" not in line]
    assert sorted(each["properties"][0]["value"] for each in found["components"]) == sorted(asked)
    assert ("components" in component) == (name == "expert-maps")  # the compiled planner
    # Every reference is there, once.
    named = [component["bom-ref"], *(each["bom-ref"] for each in found["components"])]
    assert len(set(named)) == len(named)
    (edges,) = found["dependencies"]
    assert [edges["ref"], *edges["dependsOn"]] == named
