# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The tasks of a sweep on Ray, which is loaded only here."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from expert_maps.errors import ExpertMapsError
from expert_maps.load import ExpertLoad
from expert_maps.simulation.replay import attempt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from expert_maps.simulation.replay import Run
    from expert_maps.simulation.settings import Setting


def runs_on_ray(
    trace: ExpertLoad, todo: Sequence[Setting], how: dict[str, Any], workers: int
) -> Iterator[Run]:
    """Yield the runs as they end; the trace is sent once.

    Args:
        trace: what is replayed.
        todo: settings.
        how: as for `replay`.
        workers: CPUs of a Ray that is started here; one that runs already keeps its own.

    Raises:
        ExpertMapsError: Ray is not installed.
    """
    if not todo:
        return
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        msg = f"ray is not installed ({error}); expected it for sweeps on Ray: pip install 'expert-maps[ray]'"
        raise ExpertMapsError(msg) from error
    starts = not ray.is_initialized()
    if starts:
        cpus = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers, "include_dashboard": False}
        ray.init(log_to_driver=False, logging_level="error", **cpus)
    try:
        task = ray.remote(num_cpus=1)(_one)
        counts = ray.put(trace.counts)
        waiting = [task.remote(counts, setting, how) for setting in todo]
        while waiting:
            ended, waiting = ray.wait(waiting)
            yield from ray.get(ended)
    finally:
        if starts:
            ray.shutdown()


def _one(counts: NDArray[np.float64], setting: Setting, how: dict[str, Any]) -> Run:
    return attempt(ExpertLoad(counts), setting, **how)
