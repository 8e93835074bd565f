# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Records of benchmarks: a line of JSON each."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from expert_maps.files import write_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def append_record(record: Path | None, result: Mapping[str, object]) -> None:
    """Append a result to a file of records, whole or not at all; nothing without a file.

    Raises:
        FormatError: the file cannot be written.
    """
    if record is not None:
        before = record.read_text(encoding="utf-8") if record.exists() else ""
        write_text(record, before + json.dumps(result) + "\n")
        typer.echo(f"appended to {record}")
