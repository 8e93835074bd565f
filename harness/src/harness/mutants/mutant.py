# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""One fault, and how it is put into a copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class MutantError(Exception):
    """A mutant that cannot be tried as it stands in the list."""


@dataclass(frozen=True)
class Mutant:
    """A fault.

    Attributes:
        what: the fault, in a few words.
        file: from the root of the project.
        before: text that stands in the file exactly once.
        after: what is put in its place.
        test: the test that must fail, as pytest names it: file::function, from the root.
        short: whether it is one of the few that CI tries.
    """

    what: str
    file: str
    before: str
    after: str
    test: str
    short: bool = False

    @property
    def is_native(self) -> bool:
        """Whether the planner must be compiled anew."""
        return self.file.endswith((".c", ".h"))

    def applied(self, root: Path) -> str:
        """Return the file's text with the fault in it.

        Raises:
            MutantError: there is no such file, or its text has not the part that is to be changed, or has it twice.
        """
        path = root / self.file
        if not path.is_file():
            msg = f"mutant '{self.what}': there is no file {self.file}"
            raise MutantError(msg)
        text = path.read_text(encoding="utf-8")
        found = text.count(self.before)
        if found != 1:
            msg = f"mutant '{self.what}': {self.file} has its text {found} times; expected once: {self.before!r}"
            raise MutantError(msg)
        return text.replace(self.before, self.after)
