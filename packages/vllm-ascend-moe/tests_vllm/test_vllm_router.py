# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""AscendRouter beside vLLM's own routers, in the `vllm` session."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.distributed.eplb.eplb_state import EplbLayerState
from vllm.model_executor.layers.fused_moe.config import RoutingMethodType
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter
from vllm.model_executor.layers.fused_moe.router.grouped_topk_router import grouped_topk

from expert_maps import generate_placement
from vllm_ascend_moe.core.replicas import build_routing_table
from vllm_ascend_moe.npu_ops.router import AscendRouter
from vllm_ascend_moe.npu_ops.routing import RoutingConfig

SETTINGS = settings(deadline=None, max_examples=60)


def by_id(weights: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Order each token's experts by id: vLLM does not sort them."""
    order = ids.argsort(dim=1)
    return weights.gather(1, order), ids.gather(1, order)


def assert_same(ours: tuple[torch.Tensor, torch.Tensor], theirs: tuple[torch.Tensor, torch.Tensor]) -> None:
    (weights, ids), (their_weights, their_ids) = by_id(*ours), by_id(*theirs)
    assert torch.equal(ids, their_ids.to(ids.dtype))
    torch.testing.assert_close(weights, their_weights, atol=1e-6, rtol=0)


def logits(tokens: int, experts: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(tokens, experts, generator=torch.Generator().manual_seed(seed)).to(dtype)


def route(router: Any, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ANN401 - vLLM's
    weights, ids = router.select_experts(torch.zeros(len(scores), 4), scores)
    return weights, ids


@SETTINGS
@given(st.integers(0, 70), st.integers(4, 128), st.integers(1, 4), st.booleans(), st.integers(0, 2**32))
def test_softmax_is_vllms(tokens: int, experts: int, top_k: int, renormalize: bool, seed: int) -> None:
    scores = logits(tokens, experts, seed)
    config = RoutingConfig(experts, top_k, "softmax", renormalize)
    theirs = CPURouter(top_k, experts, renormalize=renormalize, scoring_func="softmax")
    assert_same(route(AscendRouter(config), scores), route(theirs, scores))


@SETTINGS
@given(
    st.integers(1, 70),
    st.sampled_from([(16, 4, 2, 4), (64, 8, 3, 6), (160, 8, 3, 6), (256, 8, 4, 8), (12, 4, 4, 3)]),
    st.sampled_from(["softmax", "sigmoid"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1.0, 2.5]),
    st.integers(0, 2**32),
)
def test_groups_are_vllms(
    tokens: int,
    shape: tuple[int, int, int, int],
    scoring: Any,  # noqa: ANN401 - a Literal, drawn
    renormalize: bool,
    biased: bool,
    scaling: float,
    seed: int,
) -> None:
    experts, groups, kept, top_k = shape
    scores = logits(tokens, experts, seed)
    bias = logits(1, experts, seed + 1)[0] if biased else None
    config = RoutingConfig(experts, top_k, scoring, renormalize, groups, kept, scaling)
    theirs = CPURouter(
        top_k,
        experts,
        use_grouped_topk=True,
        num_expert_group=groups,
        topk_group=kept,
        renormalize=renormalize,
        scoring_func=scoring,
        routed_scaling_factor=scaling,
        e_score_correction_bias=bias,
    )
    assert_same(route(AscendRouter(config, e_score_correction_bias=bias), scores), route(theirs, scores))


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("biased", [False, True])
def test_groups_are_those_of_vllms_gpu_router_too(scoring: Any, biased: bool) -> None:  # noqa: ANN401
    scores = logits(200, 256, 3)
    bias = logits(1, 256, 4)[0] if biased else None
    config = RoutingConfig(256, 8, scoring, True, 8, 4, 2.5)
    # The function beneath torch.compile: what it computes is the question here.
    plain = (
        grouped_topk.__wrapped__
        if hasattr(grouped_topk, "__wrapped__")
        else grouped_topk._torchdynamo_orig_callable
    )
    theirs = plain(torch.zeros(200, 4), scores, 8, True, 8, 4, scoring, 2.5, bias)
    assert_same(route(AscendRouter(config, e_score_correction_bias=bias), scores), theirs)


def test_half_precision_logits_are_scored_in_float32() -> None:
    scores = logits(50, 64, 5, torch.bfloat16)
    config = RoutingConfig(64, 6, "sigmoid", True, 8, 4)
    theirs = CPURouter(6, 64, True, 8, 4, True, "sigmoid")
    weights, _ = route(AscendRouter(config), scores)
    assert weights.dtype == torch.float32
    assert_same(route(AscendRouter(config), scores), route(theirs, scores))


def test_vllm_names_the_routing() -> None:
    for renormalize in (False, True):
        ours = AscendRouter(RoutingConfig(8, 2, "softmax", renormalize)).routing_method_type
        assert ours == CPURouter(2, 8, renormalize=renormalize).routing_method_type
    grouped = AscendRouter(
        RoutingConfig(256, 8, "sigmoid", True, 8, 4), e_score_correction_bias=torch.zeros(256)
    )
    assert grouped.routing_method_type == RoutingMethodType.DeepSeekV3


# EPLB, which vLLM's router leaves out on this platform


def eplb_state(*, recording: bool = True, unpadded: int = 1000) -> EplbLayerState:
    placement = generate_placement("ring", num_experts=8, ep_size=4, num_redundant_experts=4)
    return EplbLayerState(
        expert_load_view=torch.zeros(12, dtype=torch.int32),
        logical_to_physical_map=torch.from_numpy(placement.logical_to_physical[0].copy()).long(),
        logical_replica_count=torch.from_numpy(placement.replica_count[0].copy()).long(),
        should_record_tensor=torch.tensor(recording),
        num_unpadded_tokens_tensors=[torch.tensor(unpadded, dtype=torch.int32)],
    )


def test_physical_ids_are_copies_in_turn_and_load_is_recorded() -> None:
    state, scores = eplb_state(), logits(40, 8, 6)
    _, logical = route(AscendRouter(RoutingConfig(8, 3)), scores)
    _, physical = route(AscendRouter(RoutingConfig(8, 3), eplb_state=state), scores)
    for token in range(40):
        for k in range(3):
            copies = [slot for slot in state.logical_to_physical_map[logical[token, k]].tolist() if slot >= 0]
            assert physical[token, k] == copies[token % len(copies)]
    assert torch.equal(state.expert_load_view, torch.bincount(physical.flatten(), minlength=12).int())


def test_padding_and_pauses_are_not_recorded() -> None:
    scores = logits(40, 8, 6)
    _, physical = route(AscendRouter(RoutingConfig(8, 3), eplb_state=eplb_state()), scores)
    padded, paused = eplb_state(unpadded=7), eplb_state(recording=False)
    route(AscendRouter(RoutingConfig(8, 3), eplb_state=padded), scores)
    route(AscendRouter(RoutingConfig(8, 3), eplb_state=paused), scores)
    assert torch.equal(padded.expert_load_view, torch.bincount(physical[:7].flatten(), minlength=12).int())
    assert not paused.expert_load_view.any()


def test_a_routing_table_is_followed() -> None:
    placement = generate_placement("ring", num_experts=8, ep_size=4, num_redundant_experts=4)
    table = build_routing_table(placement, 0, 3)
    scores = logits(9, 8, 7)
    _, logical = route(AscendRouter(RoutingConfig(8, 3)), scores)
    router = AscendRouter(RoutingConfig(8, 3), eplb_state=eplb_state(), routing_table=table)
    assert torch.equal(route(router, scores)[1], table[0][logical.long()])


def test_logical_ids_are_captured_before_they_are_mapped() -> None:
    captured: list[torch.Tensor] = []
    router = AscendRouter(RoutingConfig(8, 3), eplb_state=eplb_state())
    router.set_capture_fn(captured.append)
    scores = logits(9, 8, 8)
    route(router, scores)
    assert torch.equal(captured[0], route(AscendRouter(RoutingConfig(8, 3)), scores)[1])
