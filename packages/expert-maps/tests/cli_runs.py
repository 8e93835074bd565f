# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The command line in this process, as a user meets it; shared by the tests of the commands."""

from __future__ import annotations

import io
import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from typer.testing import CliRunner, Result

from expert_maps.cli import entry
from expert_maps.cli.app import app

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    import pytest


def run(*arguments: object, given: bytes | None = None, columns: int | None = None) -> Result:
    """Run a command; what is given stands on standard input, and COLUMNS is as given, too."""
    environment = {"COLUMNS": None if columns is None else str(columns)}
    return CliRunner(env=environment).invoke(app, [str(argument) for argument in arguments], input=given)


def assert_one_line_error(result: Result, *fragments: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: "), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stdout == ""
    for fragment in fragments:
        assert fragment in result.stderr


@contextmanager
def streams(monkeypatch: pytest.MonkeyPatch, encoding: str) -> Generator[tuple[io.BytesIO, io.BytesIO]]:
    """Put streams of a code page, which refuse what it lacks, in place of standard output and error."""
    raw = io.BytesIO(), io.BytesIO()
    with monkeypatch.context() as patch:
        for name, stream in zip(("stdout", "stderr"), raw, strict=True):
            patch.setattr(sys, name, io.TextIOWrapper(stream, encoding=encoding, errors="strict"))
        yield raw


def run_with_encoding(
    monkeypatch: pytest.MonkeyPatch, encoding: str, *arguments: object
) -> tuple[int, str, str]:
    """Run a command as the console script does; return its exit code and what it printed."""
    with streams(monkeypatch, encoding) as (out, err):
        code = entry.run([str(argument) for argument in arguments])
        return code, out.getvalue().decode(encoding), err.getvalue().decode(encoding)


def generate(tmp_path: Path, name: str = "map.json", *extra: object) -> Path:
    path = tmp_path / name
    result = run("generate", "--experts", 8, "--ep-size", 4, "--redundant", 4, "--output", path, *extra)
    assert result.exit_code == 0, result.output
    return path


def write_slots(path: Path, *layers: list[list[int]]) -> Path:
    """Write a map file with any slots at all."""
    document = {
        "moe_layer_count": len(layers),
        "layer_list": [
            {
                "layer_id": index,
                "device_count": len(ranks),
                "device_list": [{"device_id": r, "device_expert": slots} for r, slots in enumerate(ranks)],
            }
            for index, ranks in enumerate(layers)
        ],
    }
    path.write_text(json.dumps(document))
    return path
