# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Many settings over one trace: on several cores, and going on where it was interrupted."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from expert_maps.errors import FormatError
from expert_maps.load import ExpertLoad, as_load
from expert_maps.simulation.on_ray import runs_on_ray
from expert_maps.simulation.replay import Run, attempt
from expert_maps.simulation.saving import run_from, run_record
from expert_maps.validation import as_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import ArrayLike

    from expert_maps.simulation.settings import Costs, Setting

# The trace that this worker replays: sent once, not with every setting.
_OWN: dict[str, ExpertLoad] = {}


def simulate(  # noqa: PLR0913 - options by keyword
    load: ArrayLike | ExpertLoad,
    settings: Sequence[Setting],
    *,
    window: int | None = None,
    first: int | None = None,
    costs: Costs | None = None,
    workers: int = 1,
    on_ray: bool = False,
    resume: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> list[Run]:
    """Replay a trace under several settings.

    Args:
        load: [steps, L, E].
        settings: what to run; `sweep` makes every combination.
        window: as for `replay`.
        first: as for `replay`.
        costs: as for `replay`.
        workers: processes at most. With more than 1, a script must guard its own start with
            ``if __name__ == "__main__":``, as Python's ``multiprocessing`` says.
        on_ray: run the same tasks on Ray, one CPU each: on the cluster that this process is connected to, or that
            ``RAY_ADDRESS`` names, else on one of ``workers`` CPUs that is started and ended here. Its machines need this
            package.
        resume: a file of finished runs, one JSON object a line; those of the same trace and options are taken from it,
            the others are added as they end.
        progress: called with (runs done, runs).

    Returns:
        A run for each setting, in order; one that has no placement says why in ``reason``.

    Raises:
        ExpertMapsError: the load or a count is invalid, the file is not such a file, or Ray is not installed.
    """
    trace = as_load(load)
    how = {"window": window, "first": first, "costs": costs}
    key = _key(trace, how)
    found = {} if resume is None else _finished(Path(resume), key)
    todo = [setting for setting in dict.fromkeys(settings) if setting not in found]
    if progress is not None and found:
        progress(len(settings) - len(todo), len(settings))
    runner = runs_on_ray if on_ray else _runs
    for run in runner(trace, todo, how, as_count("workers", workers, 1)):
        found[run.setting] = run
        if resume is not None:
            _add(Path(resume), {"key": key, **run_record(run)})
        if progress is not None:
            progress(sum(setting in found for setting in settings), len(settings))
    return [found[setting] for setting in settings]


def _runs(trace: ExpertLoad, todo: list[Setting], how: dict[str, Any], workers: int) -> Iterator[Run]:
    """Yield the runs as they end."""
    if min(workers, len(todo)) <= 1:
        for setting in todo:
            yield attempt(trace, setting, **how)
        return
    # A process of its own start, not a fork: the caller may have threads.
    pool = ProcessPoolExecutor(
        min(workers, len(todo)),
        multiprocessing.get_context("spawn"),
        initializer=_take,
        initargs=(trace.counts,),
    )
    with pool:
        tasks = [pool.submit(_one, setting, how) for setting in todo]
        for task in as_completed(tasks):
            yield task.result()


def _take(counts: np.ndarray[Any, np.dtype[np.float64]]) -> None:
    """Start a worker: Ctrl-C ends it without a word, and the end of whoever started it does, too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _OWN["trace"] = ExpertLoad(counts)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _one(setting: Setting, how: dict[str, Any]) -> Run:
    return attempt(_OWN["trace"], setting, **how)


def _key(trace: ExpertLoad, how: dict[str, Any]) -> str:
    """SHA-256 in hex over the counts and options: runs of the same key and setting are the same."""
    content = hashlib.sha256(repr((trace.shape, sorted(how.items()))).encode())
    content.update(np.ascontiguousarray(trace.counts, dtype="<f8").tobytes())
    return content.hexdigest()


def _finished(path: Path, key: str) -> dict[Setting, Run]:
    """Read the runs of this key; a last line without an end was being written when the program was stopped.

    Raises:
        FormatError: another line is no run.
    """
    if not path.exists():
        return {}
    found = {}
    lines = path.read_bytes().split(b"\n")
    if lines[-1]:  # cut off: what follows must not stand behind it
        path.write_bytes(b"".join(line + b"\n" for line in lines[:-1]))
    for number, line in enumerate(lines[:-1], 1):
        try:
            record = json.loads(line)
            if record["key"] == key:
                run = run_from(record)
                found[run.setting] = run
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            msg = f"{path} line {number} is no finished run ({type(error).__name__}); expected a file of --resume"
            raise FormatError(msg) from error
    return found


def _add(path: Path, record: dict[str, object]) -> None:
    try:
        with path.open("ab") as stream:
            stream.write(json.dumps(record).encode() + b"\n")
    except OSError as error:
        msg = f"{path}: cannot be written ({error.strerror})"
        raise FormatError(msg) from error
