# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The bills of materials in the wheels: CycloneDX, where PEP 770 has them.

They say what a wheel holds and what it asks for. There is no code of others in it, so what is asked for is named without a
version; which versions are tested stands in ``requirements/``. No time and no number is drawn: two builds are equal.

python -m harness.sessions.bom writes ``sbom.cdx.json`` of each package anew; a test compares them.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

FILE = "sbom.cdx.json"
MEMBERS = ("packages/expert-maps", "packages/vllm-ascend-moe")
_LICENCE = [{"license": {"id": "Apache-2.0"}}]
_COMPILED = {
    "type": "library",
    "bom-ref": "planner",
    "name": "_planner.so",
    "description": "The planner, compiled from the C sources in this package's source distribution; only the system's "
    "C library is linked to. Absent from a wheel for any machine.",
    "licenses": _LICENCE,
}


def bom_of(member: Path) -> dict[str, Any]:
    """Return the bill of a package as JSON, CycloneDX 1.6.

    Args:
        member: its folder, with a pyproject file and its version in ``_version.py``.
    """
    text = (member / "pyproject.toml").read_text(encoding="utf-8")
    name = _found(r'^name = "(.+)"$', text)
    module = member / "src" / name.replace("-", "_") / "_version.py"
    version = _found(r'^__version__ = "(.+)"$', module.read_text(encoding="utf-8"))
    own = f"pkg:pypi/{name}@{version}"
    asked = [_asked(each) for each in ast.literal_eval(_found(r"^dependencies = (\[.*?^\])$", text))]
    is_compiled = (member / "native").is_dir()
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "library",
                "bom-ref": own,
                "name": name,
                "version": version,
                "licenses": _LICENCE,
                "purl": own,
                **({"components": [_COMPILED]} if is_compiled else {}),
            }
        },
        "components": asked,
        "dependencies": [{"ref": own, "dependsOn": [each["bom-ref"] for each in asked]}],
    }


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE | re.DOTALL if "*?" in pattern else re.MULTILINE)
    assert found is not None, f"nothing like {pattern}"
    return found[1]


def _asked(requirement: str) -> dict[str, Any]:
    """Return the component that a requirement asks for, outside of the wheel."""
    name = re.split(r"[<>=!~ ;\[]", requirement, maxsplit=1)[0]
    purl = f"pkg:pypi/{re.sub(r'[-_.]+', '-', name).lower()}"
    told = {"name": "expert-maps:requires", "value": requirement}
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "scope": "required",
        "purl": purl,
        "properties": [told],
    }


def as_text(bom: dict[str, Any]) -> str:
    """Return what the file holds."""
    return json.dumps(bom, indent=2) + "\n"


def main() -> int:
    """Write the file of each package."""
    for member in map(Path, MEMBERS):
        (member / FILE).write_text(as_text(bom_of(member)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
