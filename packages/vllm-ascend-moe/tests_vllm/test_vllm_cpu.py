# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The hooks on a CPU one by one, with as little of vLLM around them as they need."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.distributed.eplb.eplb_state import EplbLayerState
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
from vllm.model_executor.layers.fused_moe.oracle.int8 import Int8MoeBackend
from vllm.model_executor.layers.fused_moe.oracle.unquantized import UnquantizedMoeBackend
from vllm.model_executor.layers.fused_moe.router.router_factory import create_fused_moe_router

from vllm_ascend_moe.backends import vllm_cpu as cpu
from vllm_ascend_moe.backends.cpu_support import host_events
from vllm_ascend_moe.core.settings import Phase, Settings
from vllm_ascend_moe.eplb import EplbConfigError
from vllm_ascend_moe.npu_ops.modular_experts import AscendExperts
from vllm_ascend_moe.npu_ops.router import AscendRouter


def hooks(
    *,
    phase: Phase = "all",
    tp_rank: int = 0,
    splits_tokens: bool = False,
    ep_size: int = 2,
    enable_eplb: bool = True,
) -> cpu.VllmCpu:
    ranks = SimpleNamespace(tp_rank=tp_rank, splits_tokens=splits_tokens, ep_size=ep_size)
    config = SimpleNamespace(parallel_config=SimpleNamespace(enable_eplb=enable_eplb))
    session: Any = SimpleNamespace(settings=Settings(load_collection_phase=phase), ranks=ranks, config=config)
    return cpu.VllmCpu(session)


def prepare(found: cpu.VllmCpu) -> None:
    """A batch: one request that generates, the second part of a prompt, and one that ends its prompt."""
    runner = SimpleNamespace(
        input_batch=SimpleNamespace(
            num_reqs=3,
            num_computed_tokens_cpu=np.array([9, 4, 2, 0]),
            num_prompt_tokens=np.array([5, 20, 4, 0]),
        )
    )
    assert found.prepare_inputs(lambda *_: "vllm's", runner, None, np.array([1, 3, 2])) == "vllm's"


@pytest.mark.parametrize(
    ("phase", "counted"), [("prefill", [1, 2, 3, 4, 5]), ("decode", [0]), ("all", [0, 1, 2, 3, 4, 5])]
)
def test_tokens_of_the_phase_are_counted(phase: Phase, counted: list[int]) -> None:
    found = hooks(phase=phase)
    prepare(found)
    load = torch.zeros(8, dtype=torch.int32)
    ids = torch.arange(8, dtype=torch.int32).unsqueeze(1)  # the last two rows are padding
    table, count = torch.arange(8).unsqueeze(1), torch.ones(8, dtype=torch.long)
    physical = found.map_and_record(ids, load, table, count, torch.tensor(True), torch.tensor(6))
    assert torch.equal(physical, ids)
    assert load.nonzero().flatten().tolist() == counted


def test_each_rank_counts_its_part_where_tokens_are_split() -> None:
    # Five tokens and one of padding, three a rank.
    loads = []
    for rank in range(2):
        found = hooks(tp_rank=rank, splits_tokens=True)
        load = torch.zeros(4, dtype=torch.int32)
        ids = torch.full((3, 1), 2 + rank, dtype=torch.int32)
        table, count = torch.arange(4).unsqueeze(1), torch.ones(4, dtype=torch.long)
        found.map_and_record(ids, load, table, count, torch.tensor(True), torch.tensor(5))
        loads.append(load.tolist())
    assert loads == [[0, 0, 3, 0], [0, 0, 0, 2]]


def make_router(**changes: Any) -> Any:  # noqa: ANN401 - vLLM's
    options: dict[str, Any] = {
        "top_k": 2,
        "global_num_experts": 16,
        "eplb_state": EplbLayerState(),
        **changes,
    }
    return hooks().create_router(create_fused_moe_router, **options)


def test_the_ascend_router_serves_what_its_op_has() -> None:
    plain = make_router(routed_scaling_factor=2.5)
    assert isinstance(plain, AscendRouter)
    # vLLM's plain softmax router does not scale.
    assert plain.config.routed_scaling_factor == 1.0
    grouped = make_router(
        use_grouped_topk=True,
        num_expert_group=4,
        topk_group=2,
        scoring_func="sigmoid",
        routed_scaling_factor=2.5,
        e_score_correction_bias=torch.zeros(16),
    )
    assert grouped.config.num_expert_group == 4
    assert grouped.config.routed_scaling_factor == 2.5


def test_vllms_router_serves_where_nothing_is_mapped_or_recorded() -> None:
    options = {"top_k": 2, "global_num_experts": 16, "eplb_state": EplbLayerState()}
    found = hooks(enable_eplb=False).create_router(create_fused_moe_router, **options)
    assert not isinstance(found, AscendRouter)


def test_vllms_router_serves_the_rest() -> None:
    assert not isinstance(make_router(custom_routing_function=lambda **_: None), AscendRouter)
    # Two experts a group, which torch_npu's op does not take.
    options = {"use_grouped_topk": True, "num_expert_group": 8, "topk_group": 2}
    assert not isinstance(make_router(**options), AscendRouter)


def test_experts_are_vllms_for_this_rank_and_else_the_ascend_ones() -> None:
    theirs, ascend = hooks().experts_class(lambda _: [CPUUnquantizedExperts], UnquantizedMoeBackend.CPU)
    assert issubclass(theirs, CPUUnquantizedExperts)
    assert issubclass(ascend, AscendExperts)
    (int8,) = hooks().experts_class(lambda _: ["vllm's"], Int8MoeBackend.CPU)
    assert int8 is ascend
    assert hooks().experts_class(lambda _: ["vllm's"], UnquantizedMoeBackend.TRITON) == ["vllm's"]


class RoutedExperts(torch.nn.Module):
    def __init__(self, experts: object) -> None:
        super().__init__()
        self.quant_method = SimpleNamespace(moe_kernel=SimpleNamespace(fused_experts=experts))


def test_experts_that_do_not_know_of_other_ranks_are_refused() -> None:
    layer = torch.nn.ModuleDict({"mlp": RoutedExperts(SimpleNamespace())})
    with pytest.raises(
        EplbConfigError, match="mlp runs SimpleNamespace; expected unquantised experts, or W8A8"
    ):
        hooks()._check_experts(layer)
    hooks(ep_size=1)._check_experts(layer)


def test_events_of_the_host_stand_in_while_experts_move() -> None:
    untyped: Any = torch
    real = untyped.Event
    with host_events():
        start, end = untyped.Event(enable_timing=True), untyped.cuda.Event(enable_timing=True)
        start.record()
        end.record()
        end.synchronize()
        assert start.elapsed_time(end) >= 0
    assert untyped.Event is real
