# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a run that was cut off had finished."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from expert_maps import ExpertMapsError
from harness.accuracy.journal import Journal
from harness.accuracy.records import SUMMARY
from harness.accuracy.resume import JOURNAL, finished

if TYPE_CHECKING:
    from pathlib import Path


def test_a_record_that_cannot_be_read_is_of_no_arm_that_was_finished(tmp_path: Path) -> None:
    settings: Any = SimpleNamespace(folder=tmp_path / "kept", work=tmp_path / "work")
    for folder in (settings.folder, settings.work):
        (folder / "arm").mkdir(parents=True)
    (settings.folder / "arm" / SUMMARY).write_text("{}")
    with contextlib.closing(Journal(settings.work / "arm" / JOURNAL)):
        pass
    # The arm was begun and not finished: it is asked again, whatever an earlier record says.
    assert finished(settings, "arm", "key") is None
    with contextlib.closing(Journal(settings.work / "arm" / JOURNAL)) as journal:
        journal.add("key", {"started": "2026-01-01"})
    with pytest.raises(ExpertMapsError, match="format"):
        finished(settings, "arm", "key")
