# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What is expected of their tests: how many there are, and those that do not pass with ours, each with a reason."""

from __future__ import annotations

from functools import partial

from expert_maps import POLICY_NAMES
from harness.peers.judge import Expected
from harness.peers.suites import ASCEND, NEWEST_ASCEND, VLLM

COUNTS: dict[tuple[str, str, str], int] = {
    **{(VLLM.name, "policy", policy): 17 for policy in POLICY_NAMES},
    (VLLM.name, "maps", ""): 22,
    (VLLM.name, "expert map", ""): 5,
    (VLLM.name, "execution", ""): 42,
    (ASCEND.name, "maps", ""): 4,
    (ASCEND.name, "policy factory", ""): 2,
    (ASCEND.name, "updator, adaptor, loader", ""): 13,
    (ASCEND.name, "layer", ""): 49,
    (NEWEST_ASCEND.name, "maps", ""): 9,
    (NEWEST_ASCEND.name, "initial layout", ""): 3,
    (NEWEST_ASCEND.name, "replica routing", ""): 3,
    (NEWEST_ASCEND.name, "policy factory", ""): 2,
    (NEWEST_ASCEND.name, "updator, adaptor, loader", ""): 14,
    (NEWEST_ASCEND.name, "routed experts", ""): 21,
}

_policy = partial(Expected, VLLM.name, "policy")
_maps = partial(Expected, VLLM.name, "maps")
_execution = partial(Expected, VLLM.name, "execution")
_NO_DEVICE = "a device that is not here"

_OF_VLLM = (
    _policy(
        "test_basic_rebalance",
        "differs",
        "asks for DeepSeek's own placement, slot by slot, of groups on nodes; this policy gives another one",
        "tensor(False)",
        ("balanced", "deepseek_global"),
    ),
    _policy(
        "test_extreme_weight_imbalance",
        "differs",
        "asks for a third copy of an expert on a node of two ranks; a second copy on a rank would be wasted",
        "should have more replicas",
        ("balanced", "deepseek", "deepseek_hierarchical"),
    ),
    _policy(
        "test_parameter_validation",
        "differs",
        "three groups on two nodes: by its name this policy keeps groups on nodes, and the plugin refuses it at the start",
        "expected a multiple of num_nodes 2",
        ("deepseek_hierarchical",),
    ),
    _policy(
        "test_parameter_validation",
        "differs",
        "falls back where groups do not divide by nodes, as asked; then wants an `AssertionError` for slots that do not "
        "divide by ranks, where ours is a `LayoutError` that names the nearest counts",
        "num_physical_experts is 7; expected a multiple of ep_size 4",
    ),
    _policy(
        "test_global_load_balance_fallback",
        "differs",
        "three groups on two nodes: by its name this policy keeps groups on nodes, and the plugin refuses it at the start",
        "expected a multiple of num_nodes 2",
        ("deepseek_hierarchical",),
    ),
    _policy("test_device_compatibility[cuda]", "cannot run", _NO_DEVICE, "CUDA not available"),
    _policy("test_device_compatibility[xpu]", "cannot run", _NO_DEVICE, "XPU not available"),
    _policy("test_eplb_load_stats_reduce_across_ranks", "not ours", "adds up load; no policy in it"),
    _policy("test_compute_logical_maps_with_negative_indices", "not ours", "derives maps; no policy in it"),
    _maps(
        "test_compute_logical_maps_with_negative_indices",
        "differs",
        "slots without an expert (−1), which vLLM has while ranks are added; a placement has an expert in every slot",
        "expert -1 is out of range",
    ),
    _maps("test_device_compatibility[cuda]", "cannot run", _NO_DEVICE, "CUDA not available"),
    _maps("test_device_compatibility[xpu]", "cannot run", _NO_DEVICE, "XPU not available"),
    _maps("test_eplb_load_stats_reduce_across_ranks", "not ours", "adds up load; no map in it"),
    _maps("test_preserve_intragpu_slots*", "not ours", "keeps slots; no map in it"),
    _maps("test_commit_eplb_maps_for_layer_shape_assert", "not ours", "refused before a map is derived"),
    Expected(
        VLLM.name,
        "expert map",
        "test_expert_placement_edge_cases*",
        "differs",
        "one rank as asked; then wants an `AssertionError` for no rank at all, where ours is a `LayoutError`",
        "ep_size is 0; expected at least 1",
    ),
    _execution(
        "test_gloo_receive_staging_does_not_force_gpu_sync", "cannot run", _NO_DEVICE, "requires CUDA"
    ),
    _execution(
        "test_rearrange_expert_weights_with_redundancy[nixl*",
        "cannot run",
        "a library that is not here",
        "NIXL",
    ),
    _execution(
        "test_async_transfer_layer_without_mtp[nixl*", "cannot run", "a library that is not here", "NIXL"
    ),
    _execution(
        "test_rearrange_expert_weights_with_redundancy[torch_xccl*", "cannot run", _NO_DEVICE, "requires XPU"
    ),
    _execution("test_async_transfer_layer_without_mtp[torch_xccl*", "cannot run", _NO_DEVICE, "requires XPU"),
    *(
        _execution(
            f"test_rearrange_expert_weights_with_redundancy[{name}-4*",
            "cannot run",
            "four ranks; two are run",
            "Need at least 4",
        )
        for name in ("torch_nccl", "torch_gloo", "pynccl")
    ),
    _execution(
        "test_rearrange_expert_weights_with_redundancy[pynccl-2*",
        "cannot run",
        _NO_DEVICE,
        "works with GPUs only",
    ),
    _execution(
        "test_rearrange_expert_weights_with_redundancy[torch_gloo-2*",
        "cannot run",
        "this communicator stages through an accelerator; on a CPU vLLM's plain one takes gloo, as in the plugin",
        "stages through an accelerator",
    ),
    _execution(
        "test_async_transfer_layer_without_mtp[torch_gloo*",
        "cannot run",
        "the asynchronous way needs a device with streams",
        "stages through an accelerator",
    ),
    _execution(
        "test_rearrange_expert_weights_no_change[4]",
        "cannot run",
        "four ranks; two are run",
        "Need at least 4",
    ),
    _execution(
        "test_rearrange_expert_weights_profile_mode[4]",
        "cannot run",
        "four ranks; two are run",
        "Need at least 4",
    ),
    _execution(
        "test_eplb_communicator_pipeline_parallel[torch_nccl-2]",
        "cannot run",
        "names the device `cuda`",
        "CUDA enabled",
    ),
    _execution(
        "test_eplb_communicator_pipeline_parallel[torch_gloo-2]",
        "cannot run",
        "names the device `cuda`",
        "accelerator",
    ),
    _execution(
        "test_eplb_communicator_pipeline_parallel[torch_nccl-4]",
        "cannot run",
        "four ranks; two are run",
        "Need at least 4",
    ),
    _execution(
        "test_eplb_communicator_pipeline_parallel[torch_gloo-4]",
        "cannot run",
        "four ranks; two are run",
        "Need at least 4",
    ),
)

_newest = partial(Expected, NEWEST_ASCEND.name)
_CACHE = "looks into a cache of vllm-ascend's own function"
_OF_ASCEND = (
    *(
        Expected(
            ASCEND.name,
            "layer",
            f"TestTokenDispatcherWith{path}.test_token_*",
            "cannot run",
            "skipped by its source, always",
            "CANN 8.5.0",
        )
        for path in ("AllGather", "All2AllV")
    ),
    _newest(
        "maps",
        "TestLinearExpertMapCache.test_different_rank_is_a_different_entry",
        "differs",
        _CACHE,
        "0 != 2",
    ),
    _newest(
        "maps", "TestLinearExpertMapCache.test_each_layer_gets_its_own_copy", "differs", _CACHE, "(2, 0, 8)"
    ),
    _newest(
        "maps", "TestLinearExpertMapCache.test_map_is_built_once_per_key", "differs", _CACHE, "called once"
    ),
    _newest("maps", "TestLinearExpertMapCache.test_none_map_is_not_cloned", "differs", _CACHE, "is not None"),
    _newest(
        "initial layout",
        "test_initial_replicas_are_spread_across_ep_ranks",
        "differs",
        "three copies for two ranks: it gives the first ranks one more, `ring` the last ones; the same where they divide",
        "At index 4 diff: 3 != 2",
    ),
    _newest(
        "initial layout",
        "test_initial_layout_preserves_v1_and_zero_redundancy",
        "differs",
        "copies on a single rank, where a second one is wasted",
        "stands twice on this rank",
    ),
    _newest(
        "initial layout",
        "test_weight_mapping_ep_size_is_scoped_to_the_call",
        "not ours",
        "a wrapper; no layout in it",
    ),
    _newest(
        "replica routing",
        "test_build_expert_replica_routing_table_applies_rank_and_expert_offsets",
        "differs",
        "it starts each expert's turn one copy further on than the expert before; ours by rank alone, with the same shares",
        "Tensor-likes are not equal",
    ),
    _newest(
        "replica routing",
        "test_map_and_record_operator_counts",
        "not ours",
        "its own mapping, that for a device",
    ),
)

EXPECTED: tuple[Expected, ...] = (*_OF_VLLM, *_OF_ASCEND)
