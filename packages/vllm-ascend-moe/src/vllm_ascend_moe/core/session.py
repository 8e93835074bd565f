# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""One engine in one worker: what it serves, in which state it is, and how a hook finds it.

Several engines may live in one process, active and inactive ones. A hook that stands around a function of vLLM's finds
its session by the object that the function is called with, or, while a model is loaded, by the loading.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import weakref
from contextvars import ContextVar
from multiprocessing import util
from typing import TYPE_CHECKING, Any

from expert_maps import ExpertMapsError
from vllm_ascend_moe._log import logger
from vllm_ascend_moe.core.agreement import require_agreement
from vllm_ascend_moe.core.exposition import open_files
from vllm_ascend_moe.core.meter import Meter
from vllm_ascend_moe.core.recorder import LoadRecorder
from vllm_ascend_moe.core.replicas import settings_weights
from vllm_ascend_moe.core.sources import PlacementSource, count_layers, find_source
from vllm_ascend_moe.eplb import EplbConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_ascend_moe.core.activation import Activation

# Set on objects of vLLM's that belong to an engine.
_ATTRIBUTE = "_vllm_ascend_moe_session"
_LONGEST_ERROR = 500
_loading: ContextVar[Session | None] = ContextVar("loading", default=None)
_alive: weakref.WeakSet[Session] = weakref.WeakSet()


class State(enum.Enum):
    """Where an engine is in its life; each is left for a later one only.

    Attributes:
        PREPARED: hooks are in place and there is no model yet.
        PLACED: the experts are where the placement says.
        SERVING: the model is loaded, and what was found wrong would have stopped it.
        STOPPING: the record is written, and nothing is counted any more.
    """

    PREPARED = 1
    PLACED = 2
    SERVING = 3
    STOPPING = 4


class StateError(ExpertMapsError):
    """A step that is not the next; a bug of the plugin's, or a vLLM that loads in an order that is not known."""


class Session:
    """The plugin in one worker, for one engine.

    Attributes:
        config: vLLM's.
        settings: the plugin's.
        ranks: this worker among the others, `vllm_ascend_moe.backends.ranks.Ranks`.
        source: the placement asked for; None where it could not be read.
        rearrangements: how often experts have moved since they were placed.
        recorder: None where nothing is recorded, or on a rank that does not write.
        meter: of the metrics; counts nothing on a rank that does not export.
        backend: what serves, `vllm_ascend_moe.backends.interface.Backend`.
        state: see `State`.
    """

    def __init__(self, vllm_config: Any, activation: Activation, ranks: Any) -> None:
        """Read the placement; what is wrong with it is kept until all ranks can be told."""
        assert activation.settings is not None
        self.config = vllm_config
        self.settings = activation.settings
        self.ranks = ranks
        self.source: PlacementSource | None = None
        self.rearrangements = 0
        self.recorder: LoadRecorder | None = None
        self.meter = Meter()
        self.backend: Any = None
        self.state = State.PREPARED
        self.has_agreed = False
        self._error: str | None = None
        self._expected_digest = activation.digest
        self._metrics_folder = activation.metrics_folder
        self._weights_digest = "none"
        _alive.add(self)
        try:
            num_experts = int(vllm_config.model_config.get_num_experts())
            num_layers = count_layers(vllm_config.model_config)
            # The front has refused an expert twice on a rank where that is not served.
            self.source = find_source(
                self.settings, num_experts, ranks.ep_size, num_layers, allow_duplicates=True
            )
            weights = settings_weights(self.settings, self.source)
            if weights is not None:
                self._weights_digest = hashlib.sha256(weights.tobytes()).hexdigest()
        except ExpertMapsError as error:
            self._error = str(error)

    def advance(self, state: State) -> None:
        """Enter a later state.

        Raises:
            StateError: it is none.
        """
        if state.value < self.state.value:
            msg = f"the engine is {self.state.name.lower()}; expected a state before {state.name.lower()}"
            raise StateError(msg)
        self.state = state

    # How a hook finds it.

    def attach(self, *owners: Any) -> None:
        """Let the hooks around functions of these objects find this session."""
        for owner in owners:
            setattr(owner, _ATTRIBUTE, self)

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """Let every hook that is called in a `with` block, around loading, find this session."""
        token = _loading.set(self)
        try:
            yield
        finally:
            _loading.reset(token)

    @contextlib.contextmanager
    def naming(self, phase: str) -> Iterator[None]:
        """Say of an error in a `with` block on which rank and in which phase it was; it is raised as it is.

        Args:
            phase: such as ``loading``.
        """
        try:
            yield
        except Exception as error:
            said = " ".join(str(error).split())[:_LONGEST_ERROR]
            place = (self.ranks.ep_rank, self.ranks.ep_size)
            logger.error("rank %d of %d failed while %s: %s: %s", *place, phase, type(error).__name__, said)
            raise

    # What all ranks must agree on.

    def require_same_source(self) -> None:
        """Compare placement and options over all ranks.

        Raises:
            DisagreementError: they differ, or a rank could not read them; on all ranks.
        """
        detail, digest, error = "no placement", None, self._error
        if self.source is not None:
            detail, digest = self.source.name, self.source.digest
            if self._expected_digest not in {None, digest}:
                error = (
                    f"{detail} has digest {digest[:12]} here; expected {str(self._expected_digest)[:12]}, as the "
                    "front end read it: give every node the same file"
                )
        require_agreement("placements", digest, detail, self.ranks.cpu_group, error)
        # Paths may differ from node to node.
        paths = {"record_path", "expert_map_path", "replica_weights_path"}
        options = self.settings.model_dump_json(exclude=paths, exclude_defaults=True)
        options += f" records: {self.settings.record_path is not None}, weights: {self._weights_digest[:12]}"
        digest = hashlib.sha256(options.encode()).hexdigest()
        require_agreement("options", digest, options, self.ranks.cpu_group)
        self.has_agreed = True

    # Metrics.

    def start_metrics(self) -> None:
        """Export this engine's metrics, from the first rank of each pipeline stage; once its groups are there."""
        if not self.settings.metrics or self.ranks.ep_rank != 0:
            return
        model_name = self.config.model_config.served_model_name
        files = open_files(
            self._metrics_folder, {"model_name": str(model_name), "stage": str(self.ranks.stage_rank)}
        )
        self.meter = Meter(files)

    # The record.

    def start_recording(self, num_layers: int, num_experts: int) -> None:
        """Open the record where one is asked for.

        Args:
            num_layers: L.
            num_experts: E, logical.

        Raises:
            EplbConfigError: there are pipeline stages.
            DisagreementError: it cannot be written; on all ranks.
        """
        path = self.settings.record_path
        if path is None:
            return
        if self.ranks.num_stages > 1:
            msg = f"record_path is {path} with pipeline stages; expected one stage: leave it out"
            raise EplbConfigError(msg)
        error = None
        if self.ranks.ep_rank == 0:
            try:
                self.recorder = LoadRecorder(
                    path,
                    num_layers,
                    num_experts,
                    self.settings.record_interval,
                    is_on=self.settings.record_at_start,
                    meter=self.meter,
                )
            except ExpertMapsError as found:
                error = str(found)
        require_agreement("records", "", "", self.ranks.cpu_group, error)

    def follow_shutdown(self, worker: Any) -> None:
        """Write the record when the worker stops, however it does that short of being killed."""
        if self.settings.record_path is None or not hasattr(worker, "shutdown"):
            return
        shutdown = worker.shutdown

        def stop_and_shut_down(*args: Any, **kwargs: Any) -> Any:
            self.stop()
            return shutdown(*args, **kwargs)

        worker.shutdown = stop_and_shut_down
        # Runs at the end of a child of multiprocessing, where atexit does not, and of a main process.
        util.Finalize(None, _stop, args=(weakref.ref(self),), exitpriority=100)

    def stop(self) -> None:
        """Write what was recorded; a failure is logged, because the process is stopping."""
        self.advance(State.STOPPING)
        if self.recorder is not None:
            try:
                self.recorder.close()
            except (ExpertMapsError, OSError, RuntimeError):
                logger.exception("the record %s could not be written", self.recorder.path)


def _stop(session: weakref.ref[Session]) -> None:
    found = session()
    if found is not None:
        found.stop()


def session_of(owner: Any) -> Session | None:
    """Return the session that an object of vLLM's belongs to; None where that is of an inactive engine."""
    found: Session | None = getattr(owner, _ATTRIBUTE, None)
    return found


def loading_session() -> Session | None:
    """Return the session whose model is being loaded; None where that is of an inactive engine, or nothing is."""
    return _loading.get()


def has_sessions() -> bool:
    """Return whether an engine of this process is active."""
    return bool(_alive)


__all__ = ["Session", "State", "StateError", "has_sessions", "loading_session", "session_of"]
