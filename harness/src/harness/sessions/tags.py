# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Whether a tag may be published: it is the packages' version, and the changelog says what is in it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

VERSIONS = ("expert-maps/src/expert_maps/_version.py", "vllm-ascend-moe/src/vllm_ascend_moe/_version.py")
_VERSION = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)
_PART = re.compile(r"^## (\S+) - (.+)$", re.MULTILINE)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def problems_of(tag: str, root: Path) -> list[str]:
    """Return why a tag may not be published, in a sentence each; nothing where it may.

    Args:
        tag: ``v`` and the version.
        root: the checkout.
    """
    found = []
    for name in VERSIONS:
        code = (root / "packages" / name).read_text(encoding="utf-8")
        versions = _VERSION.findall(code)
        if [f"v{version}" for version in versions] != [tag]:
            found.append(f"the tag is {tag}, and packages/{name} has version {', '.join(versions) or 'none'}")
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    first = _PART.search(text)
    if first is None or f"v{first[1]}" != tag:
        found.append(f"CHANGELOG.md begins with {first[1] if first else 'no version'}; expected {tag[1:]}")
        return found
    if not _DATE.fullmatch(first[2]):
        found.append(f"CHANGELOG.md has {first[2]!r} as the date of {first[1]}; expected YYYY-MM-DD")
    if not re.search(r"^- ", text[first.end() :].split("\n## ", 1)[0], re.MULTILINE):
        found.append(f"CHANGELOG.md says nothing about {first[1]}")
    return found
