# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Files of records, a line of JSON each: a run adds its own at the end, and nothing that stands there changes."""

from __future__ import annotations

import fcntl
import json
import os
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from expert_maps.errors import FormatError
from expert_maps.files import describe, parse_json, read_bytes
from harness.record import older
from harness.record.provenance import describe as describe_run
from harness.record.schema import RunRecord, refusal

if TYPE_CHECKING:
    from pathlib import Path

    from harness.record.schema import Kind, Provenance


def append(path: Path, record: RunRecord) -> None:
    """Add a record at the end of a file, whole or not at all; the file and its folder are made where they are absent.

    Args:
        path: of the file, JSON lines.
        record: of a run.

    Raises:
        FormatError: the file cannot be written, or a number of the record is no number.
    """
    try:
        line = json.dumps(record.model_dump(), ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        msg = f"the record of {record.kind}, {record.name!r}, cannot be written: {error}; expected finite numbers"
        raise FormatError(msg) from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as stream:
            # Another run may add its own at this moment.
            fcntl.flock(stream, fcntl.LOCK_EX)
            end = stream.seek(0, os.SEEK_END)
            # A last line without its end is of another writer, and stays a line.
            if end and (stream.seek(end - 1), stream.read(1))[1] != b"\n":
                line = "\n" + line
            _write(stream, line.encode(), end)
    except OSError as error:
        msg = f"{describe(path)}: cannot be written: {error.strerror or error}"
        raise FormatError(msg) from error


def keep(
    path: Path | None,
    kind: Kind,
    name: str,
    performance: dict[str, Any],
    settings: dict[str, Any] | None = None,
    provenance: Provenance | None = None,
) -> None:
    """Append the record of a run that was made here, where a file was named, and say so.

    Args:
        path: of the file; None to keep nothing.
        kind: what was run.
        name: what tells it from other runs of its kind.
        performance: times, rates and ratios.
        settings: the options that were given.
        provenance: where and with what; of this process where it is None.

    Raises:
        FormatError: as `append`.
    """
    if path is not None:
        where = provenance or describe_run()
        append(
            path,
            RunRecord(
                kind=kind, name=name, settings=settings or {}, provenance=where, performance=performance
            ),
        )
        print(f"appended to {path}")


def _write(stream: Any, content: bytes, end: int) -> None:  # noqa: ANN401 - a file that is open for both
    try:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    except OSError:
        stream.truncate(end)
        raise


def read(path: Path) -> list[RunRecord]:
    """Read the records of a file, oldest first; records of before this form are brought into it.

    Raises:
        FormatError: the file cannot be read, holds no record, or a line is none; the line is named.
    """
    found: list[RunRecord] = []
    before: list[dict[str, Any]] = []
    for number, line in enumerate(read_bytes(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        place = f"{describe(path)}: line {number}"
        value = parse_json(line, place)
        if not isinstance(value, dict):
            msg = f"{place}: is {type(value).__name__}; expected a record, a JSON object"
            raise FormatError(msg)
        if "format" in value:
            found += older.runs(before, path)
            before = []
            found.append(parse(value, place))
        else:
            before.append(value)
    found += older.runs(before, path)
    if not found:
        msg = f"{describe(path)}: holds no record"
        raise FormatError(msg)
    return found


def parse(value: object, place: str) -> RunRecord:
    """Return a record from what stood in a file.

    Raises:
        FormatError: it is none of this form; place and field are named.
    """
    try:
        return RunRecord.model_validate(value)
    except ValidationError as error:
        msg = f"{place}: {refusal(error)}"
        raise FormatError(msg) from error
