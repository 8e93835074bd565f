# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""From a worker to vLLM's own ``/metrics``: by prometheus_client's files for several processes.

One rank counts, in files that are mapped into its memory: a count costs a write of 16 bytes, asks nobody, and is seen by the
next scrape. Several API servers read the same files, so that none counts twice.

Where vLLM has such a folder (several API servers, or one that the user names in ``PROMETHEUS_MULTIPROC_DIR``) its own
collector reads every file there, these among them. Elsewhere the front end makes a folder, and registers a collector for it in
the registry that vLLM's ``/metrics`` shows. Nothing of vLLM's is hooked or replaced for this. Of prometheus_client one module
is used that its pages do not describe, `mmap_dict`: its own metrics choose between memory and files when it is imported, which
has happened in a worker before this plugin can say anything.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from multiprocessing import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_ascend_moe._log import logger
from vllm_ascend_moe.core.metric_table import COMMON_LABELS, METRICS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_ascend_moe.core.metric_table import Metric

# prometheus_client's variable, which vLLM sets for several API servers.
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
# How a file's name tells prometheus_client what is in it. One process writes a value, so that their sum is that value.
_PREFIXES = {"counter": "counter", "gauge": "gauge_sum", "summary": "summary"}
# What is registered in this process: the collector of the engine before this one goes when a new one is made.
_registered: list[Any] = []


def prepare_folder() -> str | None:
    """Return the folder that workers write to, and let vLLM's ``/metrics`` of this process show it.

    Called where vLLM's configuration is made: before a worker starts, and in each API server.

    Returns:
        None where prometheus_client is not installed.
    """
    withdraw()
    given = os.environ.get(FOLDER_VARIABLE)
    if given:
        return given  # read by vLLM's collector
    try:
        from prometheus_client import REGISTRY
        from prometheus_client.multiprocess import MultiProcessCollector
    except ImportError:
        return None
    folder = tempfile.mkdtemp(prefix="expert-maps-metrics-")
    # Runs at the end of a child of multiprocessing, where atexit does not, and of a main process; in the maker only.
    util.Finalize(None, shutil.rmtree, args=(folder,), kwargs={"ignore_errors": True}, exitpriority=0)
    collector = MultiProcessCollector(None, folder)
    REGISTRY.register(collector)
    _registered.append(collector)
    return folder


def withdraw() -> None:
    """Take what was registered in this process out of the registry."""
    while _registered:
        from prometheus_client import REGISTRY

        REGISTRY.unregister(_registered.pop())


class MetricFiles:
    """The values of one engine, on the rank that counts."""

    def __init__(self, folder: Path, labels: Mapping[str, str]) -> None:
        """Begin at 0.

        Args:
            folder: as `prepare_folder` returned it.
            labels: a value for each of `COMMON_LABELS`.

        Raises:
            ImportError: prometheus_client is not installed, or is not as this module knows it.
            OSError: the folder is not there, or cannot be written to.
        """
        from prometheus_client.mmap_dict import MmapedDict, mmap_key

        self._make_key = mmap_key
        self._labels = {name: labels[name] for name in COMMON_LABELS}
        self._keys: dict[tuple[str, str | None], str] = {}
        self._lock = threading.Lock()  # a plan is made, and a record written, in threads of their own
        self._files = {}
        for kind, prefix in _PREFIXES.items():
            path = folder / f"{prefix}_expert-maps-{labels['stage']}.db"
            path.unlink(missing_ok=True)
            self._files[kind] = MmapedDict(str(path))
        for metric in METRICS:
            for value in metric.values or (None,):
                for sample in metric.samples if not metric.waits else ():
                    self.write(metric, sample, 0.0, value)

    def write(self, metric: Metric, sample: str, value: float, label: str | None = None) -> None:
        """Set a sample."""
        with self._lock:
            self._files[metric.kind].write_value(self._key(metric, sample, label), value, 0.0)

    def add(self, metric: Metric, sample: str, amount: float, label: str | None = None) -> None:
        """Add to a sample."""
        with self._lock:
            file, key = self._files[metric.kind], self._key(metric, sample, label)
            file.write_value(key, file.read_value(key)[0] + amount, 0.0)

    def _key(self, metric: Metric, sample: str, label: str | None) -> str:
        key = self._keys.get((sample, label))
        if key is None:
            labels = self._labels if metric.label is None else {**self._labels, metric.label: str(label)}
            key = self._make_key(metric.name, sample, list(labels), list(labels.values()), metric.help)
            self._keys[sample, label] = key
        return key


def open_files(folder: str | None, labels: Mapping[str, str]) -> MetricFiles | None:
    """Return the files of a worker that counts; None, with a line that says why, where there can be none.

    Serving does not depend on being watched.
    """
    try:
        if folder is None:
            msg = "the front end has no prometheus_client"
            raise ImportError(msg)  # noqa: TRY301 - one place says what follows
        return MetricFiles(Path(folder), labels)
    except (ImportError, OSError) as error:
        logger.warning(
            "no metrics are exported: %s (%s); expected prometheus_client, and a folder that this worker shares with the "
            "API server on one machine",
            str(error),  # not the error, whose frames hold the engine
            folder,
        )
        return None


__all__ = ["FOLDER_VARIABLE", "MetricFiles", "open_files", "prepare_folder", "withdraw"]
