# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Every hook into vLLM and vllm-ascend: which function, and what is relied on.

What is put around them is written where it belongs (`frontend`, `backends`); `wrapping` only puts it in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm_ascend_moe.releases import Release

_FUSED_MOE = "vllm.model_executor.layers.fused_moe"
_EPLB_STATE = "vllm.distributed.eplb.eplb_state"


@dataclass(frozen=True)
class Hook:
    """A function of vLLM's that is replaced or called, and what is relied on.

    Attributes:
        module: where it is.
        name: of the function, or ``Class.method``.
        parameters: names that it must have, in this order.
    """

    module: str
    name: str
    parameters: tuple[str, ...]

    def __str__(self) -> str:
        """Name it as it is imported."""
        return f"{self.module}.{self.name}"


# What is watched in every process until the configuration is known; it works with any vLLM that has it.
CREATE_ENGINE_CONFIG = Hook("vllm.engine.arg_utils", "EngineArgs.create_engine_config", ("self",))
CREATE_MODEL_CONFIG = Hook("vllm.engine.arg_utils", "EngineArgs.create_model_config", ("self",))
EXECUTOR_INIT = Hook("vllm.v1.executor.abstract", "Executor.__init__", ("self", "vllm_config"))
WORKER_INIT = Hook("vllm.v1.worker.worker_base", "WorkerBase.__init__", ("self", "vllm_config"))
WATCHED = (CREATE_ENGINE_CONFIG, CREATE_MODEL_CONFIG, EXECUTOR_INIT, WORKER_INIT)
# How long engine processes may take to stop; what records its load must not be killed while it writes.
STOP_TIMEOUT = Hook(
    "vllm.v1.engine.utils", "get_engine_process_shutdown_timeout", ("request_timeout", "process_timeout")
)

# What a worker needs wherever vLLM's own EPLB state serves.
INITIALIZE_MODEL = Hook(
    "vllm.model_executor.model_loader.base_loader", "initialize_model", ("vllm_config", "model_config")
)
ADD_MODEL = Hook(_EPLB_STATE, "EplbState.add_model", ("self", "model", "model_config"))
STEP = Hook(_EPLB_STATE, "EplbState.step", ("self", "is_dummy", "is_profile", "log_stats"))
PREPARE_FORWARD = Hook(
    _EPLB_STATE, "EplbState.prepare_forward", ("self", "model_config", "num_unpadded_tokens")
)
SHOULD_RECORD = Hook(_EPLB_STATE, "EplbState._should_record_current_step", ("self",))
REARRANGE = Hook(_EPLB_STATE, "EplbState.rearrange", ("self", "is_profile"))
UPDATE_MAPPING = Hook(_EPLB_STATE, "EplbState.update_mapping", ("self", "model_config"))
COMMIT = Hook(_EPLB_STATE, "_commit_eplb_maps", ("model_state", "new_physical_to_logical_map"))
COMMIT_LAYER = Hook(
    _EPLB_STATE, "_commit_eplb_maps_for_layer", ("model_state", "new_physical_to_logical_map", "layer")
)
MOVE_WEIGHTS = Hook(
    "vllm.distributed.eplb.rebalance_execute",
    "rearrange_expert_weights_inplace",
    (
        "old_global_expert_indices",
        "new_global_expert_indices",
        "expert_weights",
        "expert_buffer",
        "ep_group",
        "communicator",
    ),
)
FIND_MOE_MODEL = Hook("vllm.model_executor.models.interfaces", "get_mixture_of_experts_model", ("model",))
EP_GROUP = Hook("vllm.distributed.parallel_state", "get_ep_group", ())
EPLB_GROUP = Hook("vllm.distributed.parallel_state", "get_eplb_group", ())
PP_GROUP = Hook("vllm.distributed.parallel_state", "get_pp_group", ())
NODE_COUNT = Hook("vllm.distributed.parallel_state", "get_node_count", ())
EPLB = (
    INITIALIZE_MODEL,
    ADD_MODEL,
    STEP,
    PREPARE_FORWARD,
    SHOULD_RECORD,
    REARRANGE,
    UPDATE_MAPPING,
    COMMIT,
    COMMIT_LAYER,
    MOVE_WEIGHTS,
    FIND_MOE_MODEL,
    EP_GROUP,
    EPLB_GROUP,
    PP_GROUP,
    NODE_COUNT,
)

# What a worker on a CPU needs beside: vLLM does none of expert parallelism there.
CREATE_ROUTER = Hook(
    f"{_FUSED_MOE}.layer",
    "create_fused_moe_router",
    (
        "top_k",
        "global_num_experts",
        "renormalize",
        "use_grouped_topk",
        "num_expert_group",
        "topk_group",
        "scoring_func",
        "routed_scaling_factor",
        "e_score_correction_bias",
        "custom_routing_function",
        "eplb_state",
        "zero_expert_type",
        "hash_indices_table",
    ),
)
MAP_AND_RECORD = Hook(
    f"{_FUSED_MOE}.router.base_router",
    "eplb_map_to_physical_and_record",
    (
        "topk_ids",
        "expert_load_view",
        "logical_to_physical_map",
        "logical_replica_count",
        "record_enabled",
        "num_unpadded_tokens",
    ),
)
EXPERTS_CLASS = Hook(f"{_FUSED_MOE}.oracle.unquantized", "backend_to_kernel_cls", ("backend",))
INT8_EXPERTS_CLASS = Hook(f"{_FUSED_MOE}.oracle.int8", "backend_to_kernel_cls", ("backend",))
SELECT_FORWARD = Hook(f"{_FUSED_MOE}.runner.moe_runner", "MoERunner._select_forward", ("self",))
LOAD_MODEL = Hook(
    "vllm.v1.worker.cpu_model_runner", "CPUModelRunner.load_model", ("self", "load_dummy_weights")
)
PREPARE_INPUTS = Hook(
    "vllm.v1.worker.gpu_model_runner",
    "GPUModelRunner._prepare_inputs",
    ("self", "scheduler_output", "num_scheduled_tokens"),
)
_COMMUNICATOR = "vllm.distributed.device_communicators.cpu_communicator"
ALL_GATHERV = Hook(_COMMUNICATOR, "CpuCommunicator.all_gatherv", ("self", "input_", "dim", "sizes"))
REDUCE_SCATTERV = Hook(_COMMUNICATOR, "CpuCommunicator.reduce_scatterv", ("self", "input_", "dim", "sizes"))
CPU = (
    CREATE_ROUTER,
    MAP_AND_RECORD,
    EXPERTS_CLASS,
    INT8_EXPERTS_CLASS,
    SELECT_FORWARD,
    LOAD_MODEL,
    PREPARE_INPUTS,
    ALL_GATHERV,
    REDUCE_SCATTERV,
)

# vllm-ascend's layer asks this one function for its maps, by the name that its module imported.
INIT_EPLB_CONFIG = Hook(
    "vllm_ascend.eplb.core.eplb_utils", "init_eplb_config", ("eplb_config", "layer_id", "moe_config")
)
# Its dynamic EPLB: where a layer's experts are exchanged and its maps committed, and the processes that it starts.
MOVE_EXPERTS = Hook(
    "vllm_ascend.eplb.core.eplb_device_transfer_loader",
    "D2DExpertWeightLoader.update_expert_map_and_weight",
    ("self", "reqs"),
)
EPLB_PROCESS = Hook(
    "vllm_ascend.eplb.core.eplb_worker", "EplbProcess.worker_process", ("self", "planner_q", "block_update_q")
)
EPLB_MANAGER = Hook("vllm_ascend.worker.model_runner_v1", "Manager", ())
# Where a batch enters the path on which every rank has all tokens.
_DISPATCHER = "vllm_ascend.ops.fused_moe.token_dispatcher"
_DISPATCHED = ("self", "token_dispatch_input")
GATHER = Hook(_DISPATCHER, "TokenDispatcherWithAllGather.token_dispatch", _DISPATCHED)
# And where it enters one on which each has its own.
EXCHANGES = (
    Hook(_DISPATCHER, "TokenDispatcherWithMC2.token_dispatch", _DISPATCHED),
    Hook(_DISPATCHER, "TokenDispatcherWithAll2AllV.token_dispatch", _DISPATCHED),
)
# Where vllm-ascend's runner and that process have been made known to each other, and nothing has been planned yet.
EPLB_WARM_UP = Hook("vllm_ascend.eplb.eplb_updator", "EplbUpdator.warm_up_eplb", ("self",))
# Where a forward's load has been counted, and nothing has been planned, moved or cleared by it yet.
EPLB_FORWARD_END = Hook("vllm_ascend.eplb.eplb_updator", "EplbUpdator.forward_end", ("self",))
# Whether the next forward asks for the plan.
EPLB_PLAN_DUE = Hook("vllm_ascend.eplb.eplb_updator", "EplbUpdator.get_update_info_flag", ("self",))
DUMMY_RUN = Hook("vllm_ascend.worker.model_runner_v1", "NPUModelRunner._dummy_run", ("self", "num_tokens"))
# vLLM's function where it is defined: its loaders for tensors over the network import it by name from here.
INITIALIZE_MODEL_UTIL = Hook(
    "vllm.model_executor.model_loader.utils", "initialize_model", ("vllm_config", "model_config")
)
# Its runner V2 serves by vLLM's EPLB state, and commits what has moved by a function of its own in this one's place.
MOVE_TO_WORKSPACE = Hook(_EPLB_STATE, "_move_to_workspace", ("model_state", "ep_rank"))
BESIDE_V2 = (MOVE_TO_WORKSPACE, INITIALIZE_MODEL_UTIL)
# Beside vllm-ascend: what is hooked or called of vLLM's, and of its own; its layers ask by the names that each release has.
BESIDE_VLLM = (*WATCHED, INITIALIZE_MODEL, INITIALIZE_MODEL_UTIL, EP_GROUP, PP_GROUP, NODE_COUNT)
BESIDE_ASCEND = (
    INIT_EPLB_CONFIG,
    MOVE_EXPERTS,
    EPLB_PROCESS,
    EPLB_MANAGER,
    EPLB_WARM_UP,
    EPLB_FORWARD_END,
    EPLB_PLAN_DUE,
    DUMMY_RUN,
    GATHER,
    *EXCHANGES,
)


def init_in_layers(modules: Iterable[str]) -> list[Hook]:
    """Return the hooks into the modules whose layers ask for their maps, by the name that each has imported."""
    return [Hook(module, INIT_EPLB_CONFIG.name, INIT_EPLB_CONFIG.parameters) for module in modules]


def beside(release: Release) -> tuple[Hook, ...]:
    """Return every hook that is used beside a release of vllm-ascend: vLLM's EPLB is none of them."""
    return (*BESIDE_VLLM, *BESIDE_ASCEND, *init_in_layers(release.layers))


def beside_v2(release: Release) -> tuple[Hook, ...]:
    """Return every hook that is used beside the runner V2 of a release; none where the plugin does not serve by it."""
    return (*WATCHED, STOP_TIMEOUT, *EPLB, *BESIDE_V2) if release.serves_v2 else ()
