# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Which arms a run that was cut off had finished, and what an arm's answers depend on.

Nothing that was answered is deleted: an answer is found by the hash of all that it depends on, so that answers to
something else do no harm, and those of a run that is complete are put aside.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from expert_maps import ExpertMapsError
from expert_maps.files import read_json, write_text
from harness.accuracy import versions
from harness.accuracy.journal import key_of, put_aside

if TYPE_CHECKING:
    from pathlib import Path

    from harness.accuracy.settings import RunSettings

JOURNAL, MOVES_FILE = "journal.jsonl", "moves.json"
_DONE = "done.json"


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
    return key_of(
        server=server_key(settings, name),
        task=settings.config.task.model_dump(mode="json"),
        logprobs=settings.config.logprobs,
        count=settings.count,
        data={split: versions.file_hash(path) for split, path in (settings.data or {}).items()},
        baseline=baseline,
    )


def is_done(folder: Path, key: str) -> bool:
    """Say whether a run that was cut off had finished this arm.

    Args:
        folder: of the arm, while it runs.
        key: its fingerprint.
    """
    try:
        found = read_json(folder / _DONE)
    except ExpertMapsError:
        return False
    return isinstance(found, dict) and found.get("fingerprint") == key


def set_done(folder: Path, key: str | None) -> None:
    """Note that an arm is finished, or with None that it is not."""
    if key is None:
        (folder / _DONE).unlink(missing_ok=True)
    else:
        write_text(folder / _DONE, json.dumps({"fingerprint": key}) + "\n")


def begin_anew(work: Path) -> None:
    """Have the next run ask anew: put the answers of all arms aside. A load stays, for an arm that is planned from it."""
    for folder in work.glob("*/"):
        set_done(folder, None)
        (folder / MOVES_FILE).unlink(missing_ok=True)
        put_aside(folder / JOURNAL)
