# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The expert load of an arm's questions: what the plugin recorded until the last one was answered, and no more.

The plugin records every token that a server computes, those of the texts that are scored afterwards too. So the record
is copied once all questions are answered, and what is planned and shown rests on the copy.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from expert_maps import ExpertMapsError, balancedness, rank_load, read_load
from expert_maps.files import read_bytes, read_json, write_bytes, write_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from expert_maps import Placement

LOAD_FILE = "load.npz"
_RECORDED, _KEY = "recorded.npz", "load.json"
# The plugin writes within 5 s, whatever happens, and a large record takes some more.
_WRITE_SECONDS, _POLL_SECONDS = 60.0, 0.2
NOT_RECORDED: dict[str, Any] = {"rank_load": None, "balancedness": None}


class QuestionLoad:
    """The load of one arm.

    Attributes:
        recorded: where the plugin writes.
        kept: the load of the questions alone, int64 [steps, L, E]; absent until it is known.
        is_exact: whether it is that of the questions of this run, and of no others.
    """

    def __init__(self, folder: Path, server: str, questions: str) -> None:
        """Look at nothing yet.

        Args:
            folder: of the arm, while it runs.
            server: the hash of who is asked.
            questions: the hash of that and of what is asked.
        """
        self.recorded, self.kept = folder / _RECORDED, folder / LOAD_FILE
        self._key_file, self._keys = folder / _KEY, {"server": server, "questions": questions}
        self._is_continued = self._was_cut_off = False
        self.is_exact = True

    def begin(self, *, resumed: bool) -> None:
        """Prepare the file that the plugin continues: that of a run of the same server, or none.

        Args:
            resumed: whether questions were answered before this.
        """
        known = self._known_keys()
        self._is_continued = resumed and known.get("server") == self._keys["server"]
        if self._is_continued:
            self.is_exact = known == self._keys
            self._was_cut_off = not self.kept.exists()
            if not self._was_cut_off:
                # It was not until texts were scored, whose tokens are left out.
                write_bytes(self.recorded, read_bytes(self.kept))
        else:
            self.kept.unlink(missing_ok=True)
            self.recorded.unlink(missing_ok=True)
        write_text(self._key_file, json.dumps(self._keys) + "\n")

    def _known_keys(self) -> dict[str, Any]:
        try:
            found = read_json(self._key_file)
        except ExpertMapsError:
            return {}
        return found if isinstance(found, dict) else {}

    def keep(self, steps: int | None, taken: int, say: Callable[[str], None]) -> None:
        """Copy the record, before anything but questions is computed.

        Args:
            steps: rows that the record will have, as the plugin reports them.
            taken: questions whose answers are from an earlier run.
            say: told what is wrong with the load.
        """
        if taken and not self._is_continued:
            self.is_exact = False
        if not self.is_exact:
            say("the load is that of other questions than these: it is not recorded, but planned from")
        deadline = time.monotonic() + _WRITE_SECONDS
        while steps and not self._has(steps):
            if time.monotonic() > deadline:
                say(f"the load is not recorded: {self.recorded} has not reached {steps} steps")
                return
            time.sleep(_POLL_SECONDS)
        if steps:
            write_bytes(self.kept, read_bytes(self.recorded))

    def _has(self, steps: int) -> bool:
        # It is replaced as a whole, so what is there can be read.
        return self.recorded.exists() and len(read_load(self.recorded).counts) == steps

    def summary(self, placement: Placement | None) -> dict[str, Any]:
        """Return the part `load` of a record: of the ranks, where copies share their expert's load evenly.

        One that goes on where a run was cut off among the questions has twice what was in flight then, whose answers were lost.

        Args:
            placement: at the end.
        """
        if not self.is_exact or placement is None or not self.kept.exists():
            return NOT_RECORDED
        load = read_load(self.kept)
        table = rank_load(placement, load)
        return {
            "rank_load": [[round(float(value), 1) for value in row] for row in table],
            "balancedness": round(float(balancedness(placement, load).mean()), 4),
            "cut_off": self._was_cut_off,
        }
