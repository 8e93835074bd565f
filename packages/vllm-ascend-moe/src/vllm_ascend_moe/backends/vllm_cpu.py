# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Expert parallelism and EPLB on a CPU, by the router that runs on Ascend and vLLM's own experts, int8 by the Ascend experts.

vLLM's CPU build has neither: its experts ignore the expert map (and read past their weights), its router
neither maps nor records, its model runner never makes an EPLB state, and its communicator lacks what data
parallelism needs. Importing this module loads vLLM.
"""

from __future__ import annotations

import inspect
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.config import CompilationMode, get_current_vllm_config
from vllm.distributed.eplb.eplb_state import EplbState
from vllm.model_executor.layers.fused_moe.oracle.int8 import Int8MoeBackend
from vllm.model_executor.layers.fused_moe.oracle.unquantized import UnquantizedMoeBackend

from vllm_ascend_moe._log import logger
from vllm_ascend_moe.backends.cpu_experts import LocalRows, local_rows, pack_reloaded
from vllm_ascend_moe.backends.cpu_support import all_gatherv, host_events, let_int8_move, reduce_scatterv
from vllm_ascend_moe.backends.vllm_eplb import VllmEplb
from vllm_ascend_moe.core.session import loading_session, session_of
from vllm_ascend_moe.eplb import EplbConfigError
from vllm_ascend_moe.hooks import table, wrapping
from vllm_ascend_moe.npu_ops.limits import LimitError
from vllm_ascend_moe.npu_ops.modular_experts import AscendExperts
from vllm_ascend_moe.npu_ops.ops import take_turns_and_record
from vllm_ascend_moe.npu_ops.router import AscendRouter
from vllm_ascend_moe.npu_ops.routing import RoutingConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from vllm_ascend_moe.core.session import Session
    from vllm_ascend_moe.hooks.table import Hook


# Of the engine whose batch was prepared last; its forward follows.
_stepping: weakref.ref[VllmCpu] | None = None


class VllmCpu(VllmEplb):
    """The experts of one engine on a CPU."""

    def __init__(self, session: Session) -> None:
        """Know nothing of a model yet."""
        super().__init__(session)
        # Which tokens of the present batch are counted, bool [tokens]; None for all of them.
        self._counted: torch.Tensor | None = None

    def install(self) -> None:
        """Put the hooks in place, and let int8 experts move; see `Backend`."""
        super().install()
        let_int8_move()

    def more_hooks(self) -> dict[Hook, Callable[..., Any]]:
        """Return what vLLM lacks on a CPU."""
        return _AROUND

    def rearranging(self) -> AbstractContextManager[None]:
        """Give vLLM a clock for its rearrangement."""
        return host_events()

    def finish_loading(self) -> None:
        """See that the hooks were called; see `Backend`."""
        super().finish_loading()
        wrapping.require_called(table.LOAD_MODEL)
        wrapping.require_called(table.EXPERTS_CLASS, table.INT8_EXPERTS_CLASS)
        wrapping.require_called(table.CREATE_ROUTER)

    def create_router(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Make the Ascend router where ids are mapped or recorded and its op has the model's way of routing; else vLLM's."""
        if not self.session.config.parallel_config.enable_eplb:
            return original(*args, **kwargs)
        bound = inspect.signature(original).bind(*args, **kwargs)
        bound.apply_defaults()
        options = bound.arguments
        theirs = ("custom_routing_function", "zero_expert_type", "hash_indices_table")
        known = options["scoring_func"] in {"softmax", "sigmoid"}
        fused_shared = options.get("num_fused_shared_experts", 0)
        if not known or fused_shared or any(options[name] is not None for name in theirs):
            return original(*args, **kwargs)
        grouped = options["use_grouped_topk"]
        bias = options["e_score_correction_bias"]
        state = options["eplb_state"]
        logical = options.get("num_logical_experts") or options["global_num_experts"]
        try:
            config = RoutingConfig(
                num_experts=logical,
                top_k=options["top_k"],
                scoring_func=options["scoring_func"],
                renormalize=options["renormalize"],
                num_expert_group=options["num_expert_group"] if grouped else 1,
                topk_group=options["topk_group"] if grouped else 1,
                # vLLM's plain softmax router does not scale.
                routed_scaling_factor=options["routed_scaling_factor"]
                if grouped or bias is not None
                else 1.0,
            )
        except LimitError as error:
            logger.warning("vLLM's router serves this layer: an NPU would refuse it, %s", error)
            return original(*args, **kwargs)
        return AscendRouter(
            config, e_score_correction_bias=bias, eplb_state=state, map_and_record=self.map_and_record
        )

    def map_and_record(
        self,
        topk_ids: torch.Tensor,
        expert_load_view: torch.Tensor,
        logical_to_physical_map: torch.Tensor,
        logical_replica_count: torch.Tensor,
        record_enabled: torch.Tensor,
        num_unpadded_tokens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Map logical to physical ids and count them; vLLM's arguments."""
        # On a CPU asking costs nothing, and counting does.
        tokens = 0
        counted = None
        if record_enabled:
            splits = self.session.ranks.splits_tokens
            first = self.session.ranks.tp_rank * len(topk_ids) if splits else 0
            tokens = len(topk_ids) if num_unpadded_tokens is None else int(num_unpadded_tokens) - first
            if self._counted is not None:
                counted = self._counted[first : first + len(topk_ids)]
        return take_turns_and_record(
            topk_ids,
            logical_to_physical_map,
            logical_replica_count,
            expert_load_view,
            num_tokens=tokens,
            counted=counted,
        )

    def experts_class(self, original: Callable[..., Any], backend: Any) -> list[Any]:
        """Offer vLLM's unquantised experts, and the Ascend experts where these do not serve a layer and for int8."""
        if backend == UnquantizedMoeBackend.CPU:
            return [*map(local_rows, original(backend)), _ServedExperts]
        return [_ServedExperts] if backend == Int8MoeBackend.CPU else list(original(backend))

    def select_forward(self, original: Callable[..., Any], runner: Any) -> Any:
        """Keep the layer one op for the compiler: how many rows an expert gets is data."""
        if get_current_vllm_config().compilation_config.mode in {None, CompilationMode.NONE}:
            return original(runner)
        # As vLLM does on devices.
        return (
            torch.ops.vllm.moe_forward if runner.shared_experts is None else torch.ops.vllm.moe_forward_shared
        )

    def load_model(self, original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
        """After loading, make the EPLB state that vLLM's runners for devices make."""
        result = original(runner, *args, **kwargs)
        self.session.attach(runner)
        global _stepping  # noqa: PLW0603 - vLLM's function is called with nothing that tells whose it is
        _stepping = weakref.ref(self)
        self._check_experts(runner.model)
        for module in runner.model.modules():
            if type(module).__name__ == "RoutedExperts":
                pack_reloaded(module)
        if runner.parallel_config.enable_eplb:
            moe = wrapping.call(table.FIND_MOE_MODEL, runner.model)
            assert moe is not None  # checked when the model was made
            runner._moe_model = moe  # noqa: SLF001 - as vLLM's runners do
            with host_events():
                runner.eplb_state = EplbState(runner.parallel_config, runner.device)
                runner.eplb_state.add_model(moe, runner.model_config)
        return result

    def _check_experts(self, model: Any) -> None:
        """Refuse layers whose experts would be vLLM's own: on a CPU they do not know of other ranks."""
        if self.session.ranks.ep_size == 1:
            return
        for name, module in model.named_modules():
            method = getattr(module, "quant_method", None)
            kernel = getattr(method, "moe_kernel", None)
            experts = getattr(kernel, "fused_experts", None)
            if type(module).__name__ == "RoutedExperts" and not isinstance(
                experts, (AscendExperts, LocalRows)
            ):
                found = type(experts or method).__name__
                msg = (
                    f"{name} runs {found}; expected unquantised experts, or W8A8 with int8: on a CPU no others serve "
                    "several expert-parallel ranks. Start with one rank, or another checkpoint"
                )
                raise EplbConfigError(msg)

    def prepare_inputs(
        self, original: Callable[..., Any], runner: Any, scheduler_output: Any, num_scheduled_tokens: Any
    ) -> Any:
        """Note which tokens of the batch are of the phase that is counted."""
        global _stepping  # noqa: PLW0603 - as above
        _stepping = weakref.ref(self)
        phase = self.session.settings.load_collection_phase
        if phase != "all":
            batch = runner.input_batch
            scheduled = np.asarray(num_scheduled_tokens)
            request = np.repeat(np.arange(batch.num_reqs), scheduled)
            within = np.arange(len(request)) - np.repeat(np.cumsum(scheduled) - scheduled, scheduled)
            position = batch.num_computed_tokens_cpu[request] + within
            is_prompt = position < batch.num_prompt_tokens[request]
            self._counted = torch.from_numpy(is_prompt if phase == "prefill" else ~is_prompt)
        return original(runner, scheduler_output, num_scheduled_tokens)


class _ServedExperts(AscendExperts):
    """The Ascend experts; a layer that they cannot serve stops the start with the reason."""

    @staticmethod
    def is_supported_config(cls: type[AscendExperts], moe_config: Any, *args: Any) -> tuple[bool, str | None]:  # noqa: PLW0211 - vLLM's
        supported, reason = AscendExperts.is_supported_config(cls, moe_config, *args)
        if not supported:
            msg = f"AscendExperts cannot serve this layer: {reason}"
            raise EplbConfigError(msg)
        return supported, reason


def _while_loading(method: str) -> Callable[..., Any]:
    """Return what is put around a function that vLLM calls while it makes and loads a model."""

    def around(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        session = loading_session()
        if session is None:
            return original(*args, **kwargs)
        return getattr(session.backend, method)(original, *args, **kwargs)

    return around


def _around_select_forward(original: Callable[..., Any], runner: Any) -> Any:
    session = loading_session() or session_of(runner)
    if session is None:
        return original(runner)
    session.attach(runner)
    return session.backend.select_forward(original, runner)


def _around_prepare_inputs(original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
    session = session_of(runner)
    if session is None:
        return original(runner, *args, **kwargs)
    return session.backend.prepare_inputs(original, runner, *args, **kwargs)


def _around_map_and_record(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Map logical to physical ids and count them, which vLLM leaves out on a CPU."""
    backend = None if _stepping is None else _stepping()
    return original(*args, **kwargs) if backend is None else backend.map_and_record(*args, **kwargs)


_AROUND: dict[Hook, Callable[..., Any]] = {
    table.CREATE_ROUTER: _while_loading("create_router"),
    table.MAP_AND_RECORD: _around_map_and_record,
    table.EXPERTS_CLASS: _while_loading("experts_class"),
    table.INT8_EXPERTS_CLASS: _while_loading("experts_class"),
    table.SELECT_FORWARD: _around_select_forward,
    table.LOAD_MODEL: _while_loading("load_model"),
    table.PREPARE_INPUTS: _around_prepare_inputs,
    table.ALL_GATHERV: all_gatherv,
    table.REDUCE_SCATTERV: reduce_scatterv,
}
