# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""One worker: the placement it serves, moved to right after loading, checked, and counted.

vLLM owns the weights, the placement's state and the transfer of weights between ranks. It loads in a layout of
its own; then its own rearrangement moves every layer to where the placement says, and the routing tables
follow the weights, never before.
"""

from __future__ import annotations

import functools
import hashlib
from multiprocessing import util
from typing import TYPE_CHECKING, Any

import torch

from expert_maps import ExpertMapsError
from vllm_ascend_moe import releases
from vllm_ascend_moe._log import logger
from vllm_ascend_moe.backends import moving
from vllm_ascend_moe.backends.policy import check_policy, make_policy
from vllm_ascend_moe.backends.ranks import Ranks
from vllm_ascend_moe.core.activation import Activation, log_active, read_resolved, vllm_version
from vllm_ascend_moe.core.agreement import require_agreement
from vllm_ascend_moe.core.recorder import LoadRecorder
from vllm_ascend_moe.core.settings import VLLM_POLICY
from vllm_ascend_moe.core.slots import SlotRule, settings_weights
from vllm_ascend_moe.core.sources import PlacementSource, count_layers, find_source
from vllm_ascend_moe.eplb import EplbConfigError
from vllm_ascend_moe.frontend import describe, say_inactive
from vllm_ascend_moe.hooks import table, wrapping
from vllm_ascend_moe.platforms import platform_kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from expert_maps import Placement
    from vllm_ascend_moe.backends.ascend.worker import AscendWorker

_current: Serving | None = None


def current() -> Serving | None:
    """Return what this process serves; None where the plugin is inactive or the process is no worker."""
    return _current


def around_worker_init(
    original: Callable[..., Any], worker: Any, vllm_config: Any, *args: Any, **kwargs: Any
) -> Any:
    """Hook: in a worker, put the other hooks in place before it is made."""
    global _current  # noqa: PLW0603 - a process has one worker, and vLLM's hooks have no other place for it
    activation = read_resolved(vllm_config)
    if not activation.is_active:
        # An engine before this one, in the same process, may have been active.
        wrapping.restore()
        _current = None
        say_inactive(activation)
        return original(worker, vllm_config, *args, **kwargs)
    _current = Serving(vllm_config, activation)
    _current.install()
    result = original(worker, vllm_config, *args, **kwargs)
    _current.follow_shutdown(worker)
    _current.refuse_reloads(worker)
    if _current.ascend is not None:
        # Whatever loads the model: this is around all of it.
        worker.load_model = functools.partial(_current.ascend.load, worker.load_model)
    return result


class Serving:
    """The plugin in one worker.

    Attributes:
        config: vLLM's.
        settings: the plugin's.
        ranks: this worker among the others.
        source: the placement asked for; None where it could not be read.
        rearrangements: how often experts have moved since they were placed.
        recorder: None where nothing is recorded, or on a rank that does not write.
        ascend: its part beside vllm-ascend; None elsewhere.
    """

    def __init__(self, vllm_config: Any, activation: Activation) -> None:
        """Read the placement; what is wrong with it is kept until all ranks can be told."""
        assert activation.settings is not None
        self.config = vllm_config
        self.settings = activation.settings
        self.kind = platform_kind()
        self.way = activation.way
        self.ranks = Ranks(vllm_config)
        self.source: PlacementSource | None = None
        self.rearrangements = 0
        self.recorder: LoadRecorder | None = None
        self._error: str | None = None
        self._expected_digest = activation.digest
        self._first_layer = 0
        self._rule: SlotRule | None = None
        self._weights_digest = "none"
        self._has_agreed = False
        self._main_state: Any = None
        self.ascend: AscendWorker | None = None
        try:
            num_experts = int(vllm_config.model_config.get_num_experts())
            num_layers = count_layers(vllm_config.model_config)
            self.source = find_source(self.settings, num_experts, self.ranks.ep_size, num_layers)
            weights = settings_weights(self.settings)
            if weights is not None:
                self._weights_digest = hashlib.sha256(weights.tobytes()).hexdigest()
        except ExpertMapsError as error:
            self._error = str(error)

    @property
    def model(self) -> Any:
        """The model whose experts are placed, vLLM's MixtureOfExperts; None without vLLM's EPLB state."""
        return None if self._main_state is None else self._main_state.model

    def live_placement(self) -> Placement:
        """Return the placement that tokens are routed by now."""
        return moving.live_placement(self._main_state, self.ranks.ep_size)

    # Putting hooks in place.

    def install(self) -> None:
        """Check vLLM and put the hooks in place.

        Raises:
            UpstreamError: a version or a function does not fit; nothing is installed.
        """
        wrapping.check_versions(ascend=self.kind == "ascend")
        if self.way == "vllm-ascend":
            self._install_ascend()
            return  # its own EPLB, not vLLM's
        wrapping.check_hooks((*table.EPLB, *(table.CPU if self.kind == "cpu" else ())))
        for hook, around in (
            (table.INITIALIZE_MODEL, self._around_initialize_model),
            (table.ADD_MODEL, self._around_add_model),
            (table.STEP, self._around_step),
            (table.PREPARE_FORWARD, self._around_prepare_forward),
            (table.SHOULD_RECORD, self._around_should_record),
            (table.REARRANGE, self._around_rearrange),
            (table.UPDATE_MAPPING, self._around_update_mapping),
            (table.COMMIT, self._around_commit),
            (table.COMMIT_LAYER, self._around_commit_layer),
        ):
            wrapping.wrap(hook, around)
        if self.kind == "cpu":
            from vllm_ascend_moe.backends.vllm_cpu import install

            install(self)

    def _install_ascend(self) -> None:
        from vllm_ascend_moe.backends.ascend.worker import AscendWorker

        found = wrapping.vllm_ascend_version()
        release = releases.find(found)
        if release is None:
            raise wrapping.UpstreamError(releases.problem(found, vllm_version()))
        ascend = AscendWorker(self, release)
        ascend.install(self._around_initialize_model)
        self.ascend = ascend

    def refuse_reloads(self, worker: Any) -> None:
        """Refuse to load weights anew: vLLM would load them in its own layout, under tables for another."""
        for name in ("reload_weights", "start_weight_update", "start_draft_weight_update"):
            if hasattr(worker, name):
                setattr(worker, name, functools.partial(self._reload, name, getattr(worker, name)))

    def _reload(self, name: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._main_state is not None or (self.ascend is not None and self.ascend.has_maps):
            msg = (
                f"{name} was called while experts stand where the plugin has put them; expected no new weights: vLLM "
                "loads them in a layout of its own. Start the server again"
            )
            raise EplbConfigError(msg)
        return original(*args, **kwargs)

    def follow_shutdown(self, worker: Any) -> None:
        """Write the record when the worker stops, however it does that short of being killed."""
        if self.settings.record_path is None or not hasattr(worker, "shutdown"):
            return
        shutdown = worker.shutdown

        def flush_and_shut_down(*args: Any, **kwargs: Any) -> Any:
            self._flush()
            return shutdown(*args, **kwargs)

        worker.shutdown = flush_and_shut_down
        # Runs at the end of a child of multiprocessing, where atexit does not, and of a main process.
        util.Finalize(None, self._flush, exitpriority=100)

    def _flush(self) -> None:
        """Write what was recorded; a failure is logged, because the process is stopping."""
        if self.recorder is not None:
            try:
                self.recorder.flush()
            except (ExpertMapsError, OSError, RuntimeError):
                logger.exception("the record %s could not be written", self.recorder.path)

    # Loading.

    def _around_initialize_model(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Check the model as soon as it exists: before the weights are read, which may take minutes."""
        if self is not _current:
            return original(*args, **kwargs)  # of an engine before this one, in the same process
        make = functools.partial(original, *args, **kwargs)
        is_draft = self._is_draft(kwargs.get("model_config"))
        if not is_draft:
            self._require_same_source()
        if self.ascend is not None:
            model = self.ascend.build(make, draft=is_draft)
            if not is_draft:
                assert self.source is not None
                self._log_active(self.source.digest)
            return model
        model = make()
        if not is_draft:
            self._check_model(model)
        return model

    def _is_draft(self, model_config: Any) -> bool:
        if model_config is None or model_config is self.config.model_config:
            return False
        # A loader of vllm-ascend's that falls back to another makes the main model by a copy of its configuration.
        return self.ascend is None or getattr(model_config, "runner_type", None) == "draft"

    def _require_same_source(self) -> None:
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
        self._has_agreed = True

    def _check_model(self, model: Any) -> None:
        assert self.source is not None
        moe = wrapping.call(table.FIND_MOE_MODEL, model)
        if self.config.parallel_config.enable_eplb and moe is None:
            msg = (
                f"{type(model).__name__} does not implement vLLM's MixtureOfExperts, without which vLLM cannot "
                "move its experts; leave out everything but expert parallelism"
            )
            raise EplbConfigError(msg)
        digest = self.source.digest
        if moe is not None:
            placement = self.source.layers(*self.ranks.stage(moe.num_moe_layers))
            digest = placement.digest
            if self.settings.dynamic and self.settings.policy != VLLM_POLICY:
                check_policy(
                    self.settings.policy,
                    placement,
                    moe.num_expert_groups,
                    self.ranks.num_nodes,
                    self.settings.max_moves,
                )
        self._log_active(digest)

    def _log_active(self, digest: str) -> None:
        log_active(
            f"worker (expert-parallel rank {self.ranks.ep_rank} of {self.ranks.ep_size})",
            self.config.device_config.device_type,
            describe(self.settings),
            digest,
        )

    def _around_add_model(
        self,
        original: Callable[..., Any],
        state: Any,
        model: Any,
        model_config: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Once vLLM has set up its state in its own layout, move to the placement."""
        result = original(state, model, model_config, *args, **kwargs)
        if self.settings.policy != VLLM_POLICY:
            state.policy = make_policy(self.settings.policy, self.settings.max_moves)
        model_state = next(reversed(state.model_states.values()))
        if self._main_state is None and model_config is self.config.model_config:
            self.ranks.read_layers(model)
            self._main_state = model_state
            self._place(model, model_state)
            self._start_recording(model)
        self._write_slots(model_state)
        return result

    def _place(self, model: Any, model_state: Any) -> None:
        if not self._has_agreed:  # a loader that makes its model by itself
            self._require_same_source()
        assert self.source is not None
        stage = self.ranks.stage(model.num_moe_layers)
        self._first_layer = stage[0]
        moving.move_experts(
            self.source.layers(*stage),
            self.source.name,
            model,
            model_state,
            self.ranks,
            checks=self.config.load_config.load_format != "dummy",
        )
        live = self.live_placement().digest
        require_agreement("live placements", live, "vLLM's EPLB state", self.ranks.cpu_group)
        if model.num_redundant_experts:
            size = moving.redundant_bytes(model) / 2**20
            logger.info("redundant experts take %.1f MiB of this rank's memory", size)

    def _write_slots(self, model_state: Any, layer: int | None = None) -> None:
        if self._rule is None:
            self._rule = SlotRule.from_settings(
                self.settings,
                ep_size=self.ranks.ep_size,
                tp_size=self.ranks.tp_size,
                ep_rank=self.ranks.ep_rank,
                splits_tokens=self.ranks.splits_tokens,
            )
        rule = self._rule
        if model_state is not self._main_state and rule.choice == "weighted":
            rule = SlotRule("rank_offset", rule.turn)  # a draft model, for which there are no weights
        moving.write_slots(rule, model_state, self.ranks.ep_size, self._first_layer, layer)

    # Moving.

    def _around_commit(
        self, original: Callable[..., Any], model_state: Any, *args: Any, **kwargs: Any
    ) -> Any:
        result = original(model_state, *args, **kwargs)
        self._write_slots(model_state)
        self.rearrangements += 1
        return result

    def _around_commit_layer(
        self,
        original: Callable[..., Any],
        model_state: Any,
        new_physical_to_logical_map: Any,
        layer: int,
    ) -> Any:
        result = original(model_state, new_physical_to_logical_map, layer)
        self._write_slots(model_state, layer)
        self.rearrangements += layer == model_state.model.num_moe_layers - 1
        return result

    def _around_update_mapping(
        self, original: Callable[..., Any], state: Any, *args: Any, **kwargs: Any
    ) -> Any:
        result = original(state, *args, **kwargs)
        for model_state in state.model_states.values():
            self._write_slots(model_state)
        return result

    def _around_rearrange(self, original: Callable[..., Any], state: Any, *args: Any, **kwargs: Any) -> Any:
        is_profile = kwargs.get("is_profile", bool(args and args[0]))
        if not self.settings.dynamic and not is_profile:
            return None  # a static placement stays
        if self.kind == "cpu":
            from vllm_ascend_moe.backends.vllm_cpu import host_events

            with host_events():
                return original(state, *args, **kwargs)
        return original(state, *args, **kwargs)

    # Recording.

    def _start_recording(self, model: Any) -> None:
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
                    path, model.num_moe_layers, model.num_logical_experts, self.settings.record_interval
                )
            except ExpertMapsError as found:
                error = str(found)
        require_agreement("records", "", "", self.ranks.cpu_group, error)

    def _around_should_record(
        self, original: Callable[..., Any], state: Any, *args: Any, **kwargs: Any
    ) -> bool:
        return self.settings.record_path is not None or bool(original(state, *args, **kwargs))

    def _around_prepare_forward(
        self, original: Callable[..., Any], state: Any, *args: Any, **kwargs: Any
    ) -> Any:
        # Warm-up runs that skip the EPLB step leave their tokens behind. A draft model's forward comes after
        # the main model's, whose tokens must stay.
        model_config = kwargs.get("model_config", args[0] if args else None)
        is_main = model_config is self.config.model_config and self._main_state is not None
        if is_main and self.settings.record_path is not None:
            self._main_state.expert_load_pass.zero_()
        return original(state, *args, **kwargs)

    def _around_step(
        self,
        original: Callable[..., Any],
        state: Any,
        is_dummy: bool = False,
        is_profile: bool = False,
        **kwargs: Any,
    ) -> Any:
        if self.settings.record_path is not None and not is_profile and self._main_state is not None:
            self._record(is_dummy=is_dummy)
        return original(state, is_dummy, is_profile, **kwargs)

    def _record(self, *, is_dummy: bool) -> None:
        """Add up what this step's tokens were routed to, by logical expert, over the ranks that saw them."""
        state = self._main_state
        counts = state.expert_load_pass
        shape = (counts.shape[0], state.model.num_logical_experts)
        load = torch.zeros(shape, dtype=torch.int64, device=counts.device)
        if not is_dummy and self.ranks.counts_tokens:
            load.scatter_add_(1, state.physical_to_logical_map.long(), counts.long())
        if not self.ranks.share_all_tokens:
            torch.distributed.all_reduce(load, group=self.ranks.ep_group.device_group)
        # A step in which no rank had a token is none.
        if self.recorder is not None and bool(load.any()):
            self.recorder.add(load)


__all__ = ["Serving", "around_worker_init", "current"]
