# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""One worker: the placement it serves, moved to right after loading, checked, and counted.

vLLM owns the weights, the placement's state and the transfer of weights between ranks. It loads in a layout of
its own; then its own rearrangement moves every layer to where the placement says, and the routing tables
follow the weights, never before.
"""

from __future__ import annotations

from multiprocessing import util
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from expert_maps import ExpertMapsError, Placement
from vllm_ascend_moe import upstream
from vllm_ascend_moe._log import logger
from vllm_ascend_moe.activation import Activation, log_active, read_activation
from vllm_ascend_moe.agreement import DisagreementError, gather, require_agreement
from vllm_ascend_moe.checksums import slot_checksums, slot_tensors
from vllm_ascend_moe.eplb import EplbConfigError
from vllm_ascend_moe.frontend import describe, say_inactive
from vllm_ascend_moe.platforms import platform_kind
from vllm_ascend_moe.recorder import LoadRecorder
from vllm_ascend_moe.settings import VLLM_POLICY
from vllm_ascend_moe.slots import SlotRule
from vllm_ascend_moe.sources import PlacementSource, find_source

if TYPE_CHECKING:
    from collections.abc import Callable

_current: Serving | None = None


def current() -> Serving | None:
    """Return what this process serves; None where the plugin is inactive or the process is no worker."""
    return _current


def around_worker_init(original: Callable[..., Any], worker: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - vLLM's
    """Hook: in a worker, put the other hooks in place before it is made."""
    global _current  # noqa: PLW0603 - a process has one worker, and vLLM's hooks have no other place for it
    activation = read_activation(vllm_config.additional_config)
    if not activation.is_active:
        say_inactive(activation)
        return original(worker, vllm_config, *args, **kwargs)
    _current = Serving(vllm_config, activation)
    _current.install()
    result = original(worker, vllm_config, *args, **kwargs)
    _current.follow_shutdown(worker)
    return result


class Serving:
    """The plugin in one worker.

    Attributes:
        config: vLLM's.
        settings: the plugin's.
        source: the placement asked for; None where it could not be read (`error` says why).
        placement: this stage's layers as they were placed after loading; None before that.
        rearrangements: how often experts have moved since.
        recorder: None where nothing is recorded, or on a rank that does not write.
    """

    def __init__(self, vllm_config: Any, activation: Activation) -> None:  # noqa: ANN401 - vLLM's
        """Read the placement; what is wrong with it is kept until all ranks can be told."""
        assert activation.settings is not None
        self.config = vllm_config
        self.settings = activation.settings
        self.kind = platform_kind()
        self.source: PlacementSource | None = None
        self.error: str | None = None
        self.placement: Placement | None = None
        self.rearrangements = 0
        self.recorder: LoadRecorder | None = None
        self._first_layer = 0
        self._rule: SlotRule | None = None
        self._expected_digest = activation.digest
        self._main_state: Any = None
        try:
            num_experts = int(vllm_config.model_config.get_num_experts())
            self.source = find_source(self.settings, num_experts, self.ep_size)
        except ExpertMapsError as error:
            self.error = str(error)

    # What the ranks are to each other.

    @property
    def ep_size(self) -> int:
        """R."""
        parallel = self.config.parallel_config
        pcp = getattr(parallel, "prefill_context_parallel_size", 1)
        return int(parallel.tensor_parallel_size * parallel.data_parallel_size * pcp)

    @property
    def splits_tokens(self) -> bool:
        """Whether the ranks of a tensor-parallel group see different tokens (sequence parallelism)."""
        return bool(getattr(self.config.parallel_config, "use_sequence_parallel_moe", False))

    @property
    def tp_rank(self) -> int:
        """This rank's place in its tensor-parallel group."""
        return self.ep_rank % int(self.config.parallel_config.tensor_parallel_size)

    @property
    def ep_rank(self) -> int:
        """This rank's place in the expert-parallel group, or 0."""
        return int(self._ep_group.rank_in_group) if self.ep_size > 1 else 0

    @property
    def _ep_group(self) -> Any:  # noqa: ANN401 - vLLM's
        return upstream.call(upstream.EP_GROUP)

    @property
    def _cpu_group(self) -> Any:  # noqa: ANN401 - torch's, or None
        return self._ep_group.cpu_group if self.ep_size > 1 else None

    @property
    def model(self) -> Any:  # noqa: ANN401 - vLLM's MixtureOfExperts
        """The model whose experts are placed; None without vLLM's EPLB state."""
        return None if self._main_state is None else self._main_state.model

    # Putting hooks in place.

    def install(self) -> None:
        """Check vLLM and put the hooks in place.

        Raises:
            UpstreamError: a version or a function does not fit; nothing is installed.
        """
        upstream.check_versions(ascend=self.kind == "ascend")
        if self.kind == "ascend":
            from vllm_ascend_moe.ascend import around_init_eplb_config

            # The layer of one version imports the function into a module of its own.
            hooks = (*upstream.ASCEND, *upstream.present(upstream.ASCEND_OPTIONAL))
            upstream.check_hooks(hooks)
            for hook in hooks:
                upstream.wrap(hook, around_init_eplb_config)
            return
        upstream.check_hooks((*upstream.EPLB, *(upstream.CPU if self.kind == "cpu" else ())))
        for hook, around in (
            (upstream.INITIALIZE_MODEL, self._around_initialize_model),
            (upstream.ADD_MODEL, self._around_add_model),
            (upstream.STEP, self._around_step),
            (upstream.PREPARE_FORWARD, self._around_prepare_forward),
            (upstream.SHOULD_RECORD, self._around_should_record),
            (upstream.REARRANGE, self._around_rearrange),
            (upstream.UPDATE_MAPPING, self._around_update_mapping),
            (upstream.COMMIT, self._around_commit),
            (upstream.COMMIT_LAYER, self._around_commit_layer),
        ):
            upstream.wrap(hook, around)
        if self.kind == "cpu":
            from vllm_ascend_moe.cpu import install

            install(self)

    def follow_shutdown(self, worker: Any) -> None:  # noqa: ANN401 - vLLM's
        """Write the record when the worker stops, however it does that short of being killed."""
        if self.settings.record_path is None or not hasattr(worker, "shutdown"):
            return
        shutdown = worker.shutdown

        def flush_and_shut_down(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - vLLM's
            self.flush()
            return shutdown(*args, **kwargs)

        worker.shutdown = flush_and_shut_down
        # Runs at the end of a child of multiprocessing, where atexit does not, and of a main process.
        util.Finalize(None, self.flush, exitpriority=100)

    def flush(self) -> None:
        """Write what was recorded; a failure is logged, because the process is stopping."""
        if self.recorder is not None:
            try:
                self.recorder.flush()
            except (ExpertMapsError, OSError, RuntimeError):
                logger.exception("the record %s could not be written", self.recorder.path)

    # Loading.

    def _around_initialize_model(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - vLLM's
        """Check the model as soon as it exists: before the weights are read, which may take minutes."""
        model_config = kwargs.get("model_config")
        if model_config is not None and model_config is not self.config.model_config:
            return original(*args, **kwargs)  # a draft model
        self._require_same_source()
        model = original(*args, **kwargs)
        self._check_model(model)
        return model

    def _require_same_source(self) -> None:
        detail, digest = "no placement", None
        if self.source is not None:
            detail, digest = self.source.name, self.source.digest
            if self._expected_digest not in {None, digest}:
                self.error = (
                    f"{detail} has digest {digest[:12]} here; expected {str(self._expected_digest)[:12]}, as the "
                    "front end read it: give every node the same file"
                )
        require_agreement("placements", digest, detail, self._cpu_group, self.error)
        ignored = {"record_path", "expert_map_path", "replica_weights_path"}
        options = self.settings.model_dump_json(exclude=ignored)
        require_agreement("options", options, "expert_maps", self._cpu_group)

    def _check_model(self, model: Any) -> None:  # noqa: ANN401 - vLLM's
        assert self.source is not None
        moe = upstream.call(upstream.FIND_MOE_MODEL, model)
        if self.config.parallel_config.enable_eplb and moe is None:
            msg = (
                f"{type(model).__name__} does not implement vLLM's MixtureOfExperts, without which vLLM cannot "
                "move its experts; leave out everything but expert parallelism"
            )
            raise EplbConfigError(msg)
        if moe is not None and self.source.is_file:
            self.source.layers(*self._stage(moe.num_moe_layers))
        log_active(
            f"worker (expert-parallel rank {self.ep_rank} of {self.ep_size})",
            self.config.device_config.device_type,
            describe(self.settings),
            self.source.digest,
        )

    def _stage(self, num_layers: int) -> tuple[int, int, int]:
        """Return (first MoE layer, number, number in all stages) of this pipeline stage."""
        group = upstream.call(upstream.PP_GROUP)
        counts = [num_layers]
        if group.world_size > 1:
            counts = [int(str(count)) for count in gather(num_layers, group.cpu_group)]
        first = sum(counts[: group.rank_in_group])
        return first, num_layers, sum(counts)

    def _around_add_model(self, original: Callable[..., Any], state: Any, model: Any, model_config: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401, E501, PLR0913 - vLLM's
        """Once vLLM has set up its state in its own layout, move to the placement."""
        result = original(state, model, model_config, *args, **kwargs)
        if self.settings.policy != VLLM_POLICY:
            from vllm_ascend_moe.policy import make_policy

            state.policy = make_policy(self.settings.policy)
        model_state = next(reversed(state.model_states.values()))
        if self._main_state is None and model_config is self.config.model_config:
            self._main_state = model_state
            self._place(model, model_state)
            self._start_recording(model)
        self._write_slots(model_state)
        return result

    def _place(self, model: Any, model_state: Any) -> None:  # noqa: ANN401 - vLLM's
        assert self.source is not None
        first, count, total = self._stage(model.num_moe_layers)
        self._first_layer = first
        target = self.source.layers(first, count, total)
        initial = model_state.physical_to_logical_map.cpu()
        wanted = torch.from_numpy(target.physical_to_logical.astype(np.int64))
        if wanted.shape != initial.shape:
            msg = (
                f"{self.source.name} has [layers, slots] {list(wanted.shape)}; expected {list(initial.shape)}, as "
                "vLLM has set up"
            )
            raise EplbConfigError(msg)
        # 1. What the loader left in the slots: copies must be alike.
        before = self._checksums(model)
        experts = _checksum_by_expert(initial.numpy(), before, "the loader")
        # 2. Move, then commit.
        if not torch.equal(wanted, initial):
            upstream.original(upstream.MOVE_WEIGHTS)(
                model_state.physical_to_logical_map,
                wanted,
                model.expert_weights,
                model_state.expert_buffer,
                self._ep_group.device_group,
                model_state.communicator,
            )
            upstream.original(upstream.COMMIT)(model_state, wanted.to(initial.dtype))
        # 3. Every slot must now hold its expert's bytes, and every rank the same placement.
        _require_checksums(wanted.numpy(), self._checksums(model), experts)
        self.placement = target
        self.check_live()
        self._log_memory(model)

    def check_live(self) -> None:
        """Compare the placement that is being served over all ranks.

        Raises:
            DisagreementError: ranks differ.
        """
        live = self.live_placement()
        require_agreement("live placements", live.digest, "vLLM's EPLB state", self._cpu_group)

    def live_placement(self) -> Placement:
        """Return the placement in vLLM's EPLB state, which is what tokens are routed by."""
        assert self._main_state is not None
        return self._as_placement(self._main_state.physical_to_logical_map, self._main_state)

    def _as_placement(self, rows: torch.Tensor, model_state: Any) -> Placement:  # noqa: ANN401 - vLLM's
        return Placement(
            rows.cpu().numpy(),
            self.ep_size,
            num_logical_experts=model_state.model.num_logical_experts,
            allow_duplicates=True,
        )

    def _checksums(self, model: Any) -> np.ndarray[Any, np.dtype[np.int64]]:  # noqa: ANN401 - vLLM's
        """Return the checksum of every slot of every rank: int64 [L, P]."""
        own = self.local_checksums(model)
        ranks = gather(own, self._cpu_group)
        return np.concatenate([np.asarray(rank) for rank in ranks], axis=1)

    def local_checksums(self, model: Any) -> np.ndarray[Any, np.dtype[np.int64]]:  # noqa: ANN401 - vLLM's
        """Return the checksum of every slot of this rank: int64 [L, slots]."""
        slots = model.num_local_physical_experts
        sums = [slot_checksums(slot_tensors(layer.routed_experts, slots), slots) for layer in model.moe_layers]
        return torch.stack(sums).numpy()

    def _log_memory(self, model: Any) -> None:  # noqa: ANN401 - vLLM's
        redundant = model.num_redundant_experts
        if redundant:
            slots = model.num_local_physical_experts
            size = sum(
                tensor.numel() * tensor.element_size()
                for layer in model.moe_layers
                for tensor in slot_tensors(layer.routed_experts, slots)
            )
            share = redundant / model.num_physical_experts
            logger.info("redundant experts take %.1f MiB of this rank's memory", size * share / 2**20)

    # Serving.

    def _slot_rule(self) -> SlotRule:
        if self._rule is None:
            self._rule = SlotRule.from_settings(
                self.settings,
                ep_size=self.ep_size,
                tp_size=int(self.config.parallel_config.tensor_parallel_size),
                ep_rank=self.ep_rank,
                splits_tokens=self.splits_tokens,
            )
        return self._rule

    def _write_slots(self, model_state: Any, layer: int | None = None) -> None:  # noqa: ANN401 - vLLM's
        """Write the replica choice over the tables that vLLM has just committed."""
        rule = self._slot_rule()
        if model_state is not self._main_state and rule.choice == "weighted":
            rule = SlotRule("rank_offset", rule.turn)  # a draft model, for which there are no weights
        rows = slice(None) if layer is None else slice(layer, layer + 1)
        placement = self._as_placement(model_state.physical_to_logical_map[rows], model_state)
        slots, count = rule.tables(placement, self._first_layer + (layer or 0))
        table = model_state.logical_to_physical_map
        table[rows, :, : slots.shape[2]].copy_(torch.from_numpy(slots))
        model_state.logical_replica_count[rows].copy_(torch.from_numpy(count))

    def _around_commit(self, original: Callable[..., Any], model_state: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - vLLM's
        result = original(model_state, *args, **kwargs)
        self._write_slots(model_state)
        self.rearrangements += 1
        return result

    def _around_commit_layer(self, original: Callable[..., Any], model_state: Any, new_physical_to_logical_map: Any, layer: int) -> Any:  # noqa: ANN401, E501 - vLLM's
        result = original(model_state, new_physical_to_logical_map, layer)
        self._write_slots(model_state, layer)
        self.rearrangements += layer == model_state.model.num_moe_layers - 1
        return result

    def _around_update_mapping(self, original: Callable[..., Any], state: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - vLLM's
        result = original(state, *args, **kwargs)
        for model_state in state.model_states.values():
            self._write_slots(model_state)
        return result

    def _around_rearrange(self, original: Callable[..., Any], state: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - vLLM's
        is_profile = kwargs.get("is_profile", bool(args and args[0]))
        if not self.settings.dynamic and not is_profile:
            return None  # a static placement stays
        if self.kind == "cpu":
            from vllm_ascend_moe.cpu import host_events

            with host_events():
                return original(state, *args, **kwargs)
        return original(state, *args, **kwargs)

    # Recording.

    def _start_recording(self, model: Any) -> None:  # noqa: ANN401 - vLLM's
        if self.settings.record_path is None:
            return
        if upstream.call(upstream.PP_GROUP).world_size > 1:
            msg = f"record_path is {self.settings.record_path} with pipeline stages; expected one stage: leave it out"
            raise EplbConfigError(msg)
        error = None
        if self.ep_rank == 0:
            try:
                self.recorder = LoadRecorder(
                    self.settings.record_path,
                    model.num_moe_layers,
                    model.num_logical_experts,
                    self.settings.record_interval,
                )
            except ExpertMapsError as found:
                error = str(found)
        require_agreement("records", "", "", self._cpu_group, error)

    def _around_should_record(self, original: Callable[..., Any], state: Any, *args: Any, **kwargs: Any) -> bool:  # noqa: ANN401 - vLLM's
        return self.settings.record_path is not None or bool(original(state, *args, **kwargs))

    def _around_prepare_forward(self, original: Callable[..., Any], state: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - vLLM's
        # Warm-up runs that skip the EPLB step leave their tokens behind.
        if self._main_state is not None:
            self._main_state.expert_load_pass.zero_()
        return original(state, *args, **kwargs)

    def _around_step(self, original: Callable[..., Any], state: Any, is_dummy: bool = False, is_profile: bool = False, **kwargs: Any) -> Any:  # noqa: ANN401, E501, FBT001, FBT002 - vLLM's
        if self.settings.record_path is not None and not is_profile and self._main_state is not None:
            self._record(is_dummy=is_dummy)
        return original(state, is_dummy, is_profile, **kwargs)

    def _record(self, *, is_dummy: bool) -> None:
        """Add up what this step's tokens were routed to, by logical expert, over the ranks that saw them."""
        state = self._main_state
        counts = state.expert_load_pass
        load = torch.zeros(
            counts.shape[0], state.model.num_logical_experts, dtype=torch.int64, device=counts.device
        )
        # Ranks of a tensor-parallel group see the same tokens: one of them counts.
        if not is_dummy and (self.splits_tokens or self.tp_rank == 0):
            load.scatter_add_(1, state.physical_to_logical_map.long(), counts.long())
        if self.splits_tokens or self.ep_size > int(self.config.parallel_config.tensor_parallel_size):
            torch.distributed.all_reduce(load, group=self._ep_group.device_group)
        # A step in which no rank had a token is none.
        if self.recorder is not None and bool(load.any()):
            self.recorder.add(load)


def _checksum_by_expert(
    rows: np.ndarray[Any, np.dtype[np.int64]], sums: np.ndarray[Any, np.dtype[np.int64]], who: str
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return each expert's checksum, int64 [L, E]; copies that differ are an error."""
    experts = np.zeros((len(rows), int(rows.max()) + 1), dtype=np.int64)
    np.put_along_axis(experts, rows, sums, axis=1)
    found = np.argwhere(np.take_along_axis(experts, rows, axis=1) != sums)
    if found.size:
        layer, slot = found[0]
        msg = (
            f"{who} left other weights in slot {slot} of MoE layer {layer} than in another copy of expert "
            f"{rows[layer, slot]} ({len(found)} such slots); expected the same bytes"
        )
        raise DisagreementError(msg)
    return experts


def _require_checksums(
    rows: np.ndarray[Any, np.dtype[np.int64]],
    sums: np.ndarray[Any, np.dtype[np.int64]],
    experts: np.ndarray[Any, np.dtype[np.int64]],
) -> None:
    found = np.argwhere(np.take_along_axis(experts, rows, axis=1) != sums)
    if found.size:
        layer, slot = found[0]
        msg = (
            f"slot {slot} of MoE layer {layer} does not hold the weights of expert {rows[layer, slot]} after "
            f"vLLM's rearrangement ({len(found)} such slots); expected its bytes, scales included"
        )
        raise DisagreementError(msg)


__all__ = ["Serving", "around_worker_init", "current"]
