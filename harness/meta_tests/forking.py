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

# What takes ten seconds to import; what is not installed is left out.
_IMPORTED = [
    "scipy.stats",
    "harness.accuracy.run",
    "harness.accuracy.compare",
    "harness.accuracy.questions",
    "lm_eval.evaluator",
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
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    with tempfile.TemporaryDirectory() as folder:
        said = [str(Path(folder) / name) for name in ("stdout", "stderr")]
        words = (module, *arguments)
        process = context.Process(target=_run, args=(words, str(cwd), said, dict(os.environ)))
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(list(words), seconds)
        code = process.exitcode
        assert code is not None
        stdout, stderr = (Path(path).read_text(encoding="utf-8") for path in said)
    return subprocess.CompletedProcess(list(words), code, stdout, stderr)


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
