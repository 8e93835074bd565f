# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Programs of the harness in forks of a process that has imported what they do: dozens of runs import it once."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

# What takes ten seconds to import; what is not installed is left out.
_IMPORTED = [
    "scipy.stats",
    "harness.accuracy.run",
    "harness.accuracy.compare",
    "harness.accuracy.questions",
    "lm_eval.evaluator",
    # Which that imports once it is asked something.
    "torch",
]


def run_module(module: str, *arguments: str, cwd: Path, seconds: float) -> subprocess.CompletedProcess[str]:
    """Do what ``python -m MODULE ARGUMENTS`` does.

    Args:
        module: of the harness.
        arguments: its own.
        cwd: the folder in which it runs.
        seconds: most seconds.

    Raises:
        subprocess.TimeoutExpired: it took longer.
    """
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder) / name for name in ("stdout", "stderr")]
        with Forked(module, *arguments, cwd=cwd, said=said) as process:
            code = process.wait(seconds)
        stdout, stderr = (path.read_text(encoding="utf-8") for path in said)
    return subprocess.CompletedProcess([module, *arguments], code, stdout, stderr)


class Forked:
    """A module of the harness that runs in a fork, as much of `subprocess.Popen` as is used here; killed at the end.

    Args:
        module: of the harness.
        arguments: its own.
        cwd: the folder in which it runs.
        said: files for what it prints and for its errors.
    """

    def __init__(self, module: str, *arguments: str, cwd: Path, said: list[Path]) -> None:
        """Start it."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_IMPORTED)
        self._words = (module, *arguments)
        files = [str(path) for path in said]
        self._process = context.Process(target=_run, args=(self._words, str(cwd), files, dict(os.environ)))
        self._process.start()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave nothing of it."""
        self.kill()
        self._process.join()

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        return self._process.exitcode

    def wait(self, seconds: float) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: it took longer.
        """
        self._process.join(seconds)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(self._words, seconds)
        return code

    def terminate(self) -> None:
        """Send it SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """Send it SIGKILL."""
        self._process.kill()


def _run(words: tuple[str, ...], cwd: str, said: list[str], environ: dict[str, str]) -> None:
    for number, path in enumerate(said, start=1):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    if "lm_eval.evaluator" in sys.modules:
        # A third of a run would be lm-eval's asking pip for all that is installed.
        sys.modules["lm_eval.evaluator"].add_env_info = lambda _: None  # type: ignore[attr-defined]
    sys.argv = list(words)
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
