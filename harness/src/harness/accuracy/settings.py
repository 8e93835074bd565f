# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What one run of the harness is given, and where it keeps things."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from expert_maps import FormatError
from expert_maps.files import write_text
from harness.accuracy.versions import model_identity

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.console import Console

    from harness.accuracy.config import ModelConfig
    from harness.accuracy.streams import Performance

_WORK = "work"


@dataclass(frozen=True)
class RunSettings:
    """One run.

    Attributes:
        config: of the model.
        model: its checkpoint.
        dtype: of weights and activations.
        count: only the first so many questions; None for all.
        base_urls: of servers that run already, by arm.
        output: folder of results.
        concurrency: requests in flight.
        startup_seconds: most seconds until a server answers.
        attempts: most tries of a request.
        console: where progress is shown.
        data: paths of the splits of local data; None for the hub's.
        performance: the streams that arms are timed with; None where speed is not measured.
    """

    config: ModelConfig
    model: str
    dtype: str
    count: int | None
    base_urls: dict[str, str]
    output: Path
    concurrency: int
    startup_seconds: float
    attempts: int
    console: Console = field(repr=False)
    data: dict[str, Path] | None = None
    performance: Performance | None = None

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        """What tells the checkpoint from another; read once, as large files take a while."""
        return model_identity(self.model)

    @property
    def folder(self) -> Path:
        """Of this model's records."""
        return self.output / self.config.name

    @property
    def work(self) -> Path:
        """Of what is only kept while a run is under way, and of logs."""
        return self.folder / _WORK

    def say(self, text: str) -> None:
        """Print a line about how things stand."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def make_folder(self, folder: Path) -> None:
        """Make a folder; git leaves out the one of work.

        Raises:
            FormatError: it cannot be made.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            msg = f"{folder}: cannot be made: {error.strerror}"
            raise FormatError(msg) from error
        if self.work.is_dir() and not (self.work / ".gitignore").exists():
            write_text(self.work / ".gitignore", "*\n")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of this folder for the time of a `with` block.

        Raises:
            FormatError: another run is at it, or it cannot be made.
        """
        self.make_folder(self.folder)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            msg = f"{self.folder} is in use; expected no other run with this output folder and model"
            raise FormatError(msg) from error
        else:
            yield
        finally:
            os.close(folder)
