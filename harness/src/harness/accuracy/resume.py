# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Which arms a run that was cut off had finished, and what an arm's answers depend on.

All of it stands in an arm's journal, from which nothing is deleted: what is in it is found by the hash of all that it
depends on, so that answers to something else do no harm, and those of a run that is complete are put aside.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING

from expert_maps.files import read_bytes
from harness.accuracy.journal import Journal, key_of, put_aside
from harness.accuracy.records import SUMMARY, read_record

if TYPE_CHECKING:
    from pathlib import Path

    from harness.accuracy.records import Record
    from harness.accuracy.settings import RunSettings

JOURNAL = "journal.jsonl"


def server_key(settings: RunSettings, name: str) -> str:
    """Return the hash of what an arm's server is."""
    config = settings.config
    return key_of(
        name=name,
        server=config.server.model_dump(mode="json"),
        arm=config.arms[name].model_dump(mode="json"),
        model=settings.identity,
        dtype=settings.dtype,
        base_url=settings.base_urls.get(name),
    )


def fingerprint(settings: RunSettings, name: str, baseline: str | None = None) -> str:
    """Return the hash of what an arm's record depends on; how long is waited and how many are asked at once is no part.

    Args:
        settings: of the run.
        name: of the arm.
        baseline: `texts_digest` of the texts that the arm scores; None for its own.
    """
    data = settings.data or {}
    return key_of(
        server=server_key(settings, name),
        task=settings.config.task.model_dump(mode="json"),
        logprobs=settings.config.logprobs,
        count=settings.count,
        data={split: hashlib.sha256(read_bytes(path)).hexdigest() for split, path in data.items()},
        baseline=baseline,
    )


def finished(settings: RunSettings, name: str, key: str) -> Record | None:
    """Return the record of an arm that a run which was cut off had finished; None where it had not.

    Args:
        settings: of the run.
        name: of the arm.
        key: its fingerprint.
    """
    folder, path = settings.folder / name, settings.work / name / JOURNAL
    if not (path.exists() and (folder / SUMMARY).exists()):
        return None
    with contextlib.closing(Journal(path)) as journal:
        noted = journal.get(key)
    if noted is None:
        return None  # whatever record is there, this run asks again
    record = read_record(folder)
    # A later run, of something else, may have begun another record.
    is_it = record.summary.status == "complete" and noted == {"started": record.summary.started}
    return record if is_it else None


def finish(settings: RunSettings, name: str, key: str) -> Record:
    """Note that an arm is finished, and return its record; arguments as of `finished`."""
    record = read_record(settings.folder / name)
    with contextlib.closing(Journal(settings.work / name / JOURNAL)) as journal:
        journal.add(key, {"started": record.summary.started})
    return record


def begin_anew(work: Path) -> None:
    """Have the next run ask anew: put the answers of all arms aside. A load stays, for an arm that is planned from it."""
    for folder in work.glob("*/"):
        put_aside(folder / JOURNAL)
