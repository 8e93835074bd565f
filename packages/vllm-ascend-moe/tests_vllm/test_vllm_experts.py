# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""AscendExperts, and vLLM's own CPU experts as a rank's, beside vLLM's kernel for all of them, in the `vllm` session."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm._custom_ops import cpu_fused_moe, cpu_prepack_moe_weight
from vllm.model_executor.layers.fused_moe import modular_kernel as mk
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import (
    FusedMoEConfig,
    FusedMoEParallelConfig,
    FusedMoEQuantConfig,
    RoutingMethodType,
    int8_w8a8_moe_quant_config,
)
from vllm.model_executor.layers.fused_moe.expert_map_manager import determine_expert_map
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
from vllm.model_executor.layers.quantization.utils.quant_utils import (
    kFp8Static128BlockSym,
    kInt8DynamicTokenSym,
    kInt8StaticChannelSym,
)

from expert_maps import generate_placement
from vllm_ascend_moe.backends.cpu_experts import LocalRows, local_rows, pack_reloaded
from vllm_ascend_moe.npu_ops import packed as packed_module
from vllm_ascend_moe.npu_ops.experts import ExpertWeights, apply_experts
from vllm_ascend_moe.npu_ops.limits import LimitError
from vllm_ascend_moe.npu_ops.modular_experts import AscendExperts
from vllm_ascend_moe.npu_ops.ops import map_to_physical
from vllm_ascend_moe.npu_ops.packed import PackedExperts, pack_experts

HIDDEN, INTERMEDIATE = 64, 32


def config(
    experts: int, local: int, top_k: int, dtype: torch.dtype = torch.float32, **changes: object
) -> FusedMoEConfig:
    options: dict[str, Any] = {
        "num_experts": experts,
        "experts_per_token": top_k,
        "hidden_dim": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_local_experts": local,
        "num_logical_experts": experts,
        "activation": MoEActivation.SILU,
        "device": "cpu",
        "routing_method": RoutingMethodType.Renormalize,
        "moe_parallel_config": FusedMoEParallelConfig.make_no_parallel(),
        "in_dtype": dtype,
    }
    return FusedMoEConfig(**{**options, **changes})


def problem(tokens: int, experts: int, top_k: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(tokens, experts, generator=generator).softmax(-1)
    weights, ids = scores.topk(top_k, dim=-1)
    return {
        "hidden": torch.randn(tokens, HIDDEN, generator=generator),
        "weights": weights.contiguous(),
        "ids": ids.to(torch.int32).contiguous(),
        "w13": torch.randn(experts, 2 * INTERMEDIATE, HIDDEN, generator=generator) / 8,
        "w2": torch.randn(experts, HIDDEN, INTERMEDIATE, generator=generator) / 8,
    }


def run(
    given_: dict[str, torch.Tensor],
    *,
    own: Any = slice(None),  # noqa: ANN401 - an index
    expert_map: torch.Tensor | None = None,
    quant: FusedMoEQuantConfig | None = None,
    on_input: bool = False,
    activation: MoEActivation = MoEActivation.SILU,
) -> torch.Tensor:
    w13, w2 = given_["w13"][own], given_["w2"][own]
    hidden, ids = given_["hidden"], given_["ids"]
    experts = AscendExperts(
        config(len(given_["w13"]), len(w13), ids.shape[1], hidden.dtype), quant or FusedMoEQuantConfig.make()
    )
    output = torch.full_like(hidden, torch.nan)
    empty = torch.empty(0)
    experts.apply(
        output,
        hidden,
        w13,
        w2,
        given_["weights"],
        ids,
        activation,
        len(given_["w13"]),
        expert_map,
        None,
        None,
        empty,
        empty,
        None,
        on_input,
    )
    return output


def vllms(given_: dict[str, torch.Tensor]) -> torch.Tensor:
    output = torch.empty_like(given_["hidden"])
    cpu_fused_moe(
        output,
        given_["hidden"],
        cpu_prepack_moe_weight(given_["w13"], "vec"),
        cpu_prepack_moe_weight(given_["w2"], "vec"),
        None,
        None,
        given_["weights"],
        given_["ids"],
        "silu",
        "vec",
    )
    return output


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(4, 24), st.integers(1, 4), st.integers(0, 2**32))
def test_the_layer_is_vllms(tokens: int, experts: int, top_k: int, seed: int) -> None:
    given_ = problem(tokens, experts, top_k, seed)
    torch.testing.assert_close(run(given_), vllms(given_), atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 40), st.integers(5, 16), st.integers(1, 4), st.integers(0, 2**32))
def test_the_sum_over_ranks_is_the_layer_with_vllms_expert_map(
    tokens: int, experts: int, ranks: int, seed: int
) -> None:
    given_ = problem(tokens, experts, 3, seed)
    total = torch.zeros_like(given_["hidden"])
    for rank in range(ranks):
        expert_map = determine_expert_map(ranks, rank, experts, "linear")[1]
        own = slice(None) if expert_map is None else (expert_map >= 0).nonzero().flatten()
        total += run(given_, own=own, expert_map=expert_map)
    torch.testing.assert_close(total, run(given_), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("ranks", "redundant"), [(2, 2), (4, 4), (4, 8)])
def test_physical_ids_with_redundant_experts(ranks: int, redundant: int) -> None:
    given_ = problem(33, 8, 3, 5)
    placement = generate_placement("ring", num_experts=8, ep_size=ranks, num_redundant_experts=redundant)
    table = torch.from_numpy(placement.routing_table(0, 0).copy())
    physical = {**given_, "ids": map_to_physical(given_["ids"], table)}
    held = torch.from_numpy(placement.physical_to_logical[0].copy()).long()
    per_rank = len(held) // ranks
    total = torch.zeros_like(given_["hidden"])
    for rank in range(ranks):
        # vLLM's expert map has physical length under EPLB.
        expert_map = torch.full((len(held),), -1, dtype=torch.int32)
        expert_map[rank * per_rank : (rank + 1) * per_rank] = torch.arange(per_rank, dtype=torch.int32)
        own = held[rank * per_rank : (rank + 1) * per_rank]
        total += run(physical, own=own, expert_map=expert_map)
    torch.testing.assert_close(total, vllms(given_), atol=1e-5, rtol=1e-5)


def test_w8a8_is_close_to_the_float_layer() -> None:
    given_ = problem(50, 8, 2, 9)
    scales = {}
    quantised = dict(given_)
    for name in ("w13", "w2"):
        scales[name] = given_[name].abs().amax(-1, keepdim=True) / 127  # [slots, out, 1], as vLLM's
        quantised[name] = (given_[name] / scales[name]).round().to(torch.int8)
    quantised["hidden"] = given_["hidden"].to(torch.bfloat16)
    quant = int8_w8a8_moe_quant_config(scales["w13"], scales["w2"], None, None, per_act_token_quant=True)
    found, wanted = run(quantised, quant=quant).float(), run(given_)
    assert found.isfinite().all()
    assert (found - wanted).norm() / wanted.norm() < 0.03


def test_weights_on_the_input_are_not_applied_again() -> None:
    given_ = problem(10, 8, 1, 11)
    ones = {**given_, "weights": torch.ones_like(given_["weights"])}
    torch.testing.assert_close(run(given_, on_input=True), run(ones))


def test_vllm_asks_what_is_supported() -> None:
    def supported(weight: Any = None, activation: Any = None) -> tuple[bool, str | None]:  # noqa: ANN401
        return AscendExperts.is_supported_config(
            AscendExperts,
            config(8, 8, 2),
            weight,
            activation,
            mk.FusedMoEActivationFormat.Standard,
        )

    assert supported() == (True, None)
    assert supported(kInt8StaticChannelSym, kInt8DynamicTokenSym)[0]
    assert not supported(kFp8Static128BlockSym, None)[0]
    gelu = config(8, 8, 2, activation=MoEActivation.GELU)
    assert not AscendExperts.is_supported_config(
        AscendExperts, gelu, None, None, mk.FusedMoEActivationFormat.Standard
    )[0]


def test_what_the_ops_cannot_take_is_refused_before_the_first_token() -> None:
    with pytest.raises(LimitError, match="npu_moe_token_unpermute: top_k is 600"):
        AscendExperts(config(1024, 1024, 600), FusedMoEQuantConfig.make())
    with pytest.raises(LimitError, match=r"dtype with int8 weights is torch\.float32"):
        AscendExperts(config(8, 8, 2), int8_w8a8_moe_quant_config(torch.ones(1), torch.ones(1), None, None))
    with pytest.raises(ValueError, match="have biases"):
        AscendExperts(config(8, 8, 2, has_bias=True), FusedMoEQuantConfig.make())


def test_another_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="was given gelu; expected silu"):
        run(problem(2, 8, 2, 1), activation=MoEActivation.GELU)


# vLLM's own experts


class Layer(torch.nn.Module):
    """What a layer has for its experts."""

    def __init__(self, w13: torch.Tensor, w2: torch.Tensor) -> None:
        super().__init__()
        self.w13_weight = torch.nn.Parameter(w13.clone(), requires_grad=False)
        self.w2_weight = torch.nn.Parameter(w2.clone(), requires_grad=False)


def kept(
    given_: dict[str, torch.Tensor],
    own: Any = slice(None),  # noqa: ANN401 - an index
    expert_map: torch.Tensor | None = None,
    *,
    moved: torch.Tensor | None = None,
    on_input: bool = False,
) -> torch.Tensor:
    """Run vLLM's experts as one rank's; `moved` reorders its slots after they were packed."""
    layer = Layer(given_["w13"][own], given_["w2"][own])
    hidden, ids = given_["hidden"], given_["ids"]
    made: Any = local_rows(CPUUnquantizedExperts)
    experts = made(
        config(len(given_["w13"]), len(layer.w13_weight), ids.shape[1], hidden.dtype),
        FusedMoEQuantConfig.make(),
    )
    experts.process_weights_after_loading(layer)
    w13, w2 = layer.w13_weight.data, layer.w2_weight.data
    if moved is not None:
        w13, w2 = w13[moved].contiguous(), w2[moved].contiguous()
    output, empty = torch.full_like(hidden, torch.nan), torch.empty(0)
    experts.apply(
        output, hidden, w13, w2, given_["weights"], ids, MoEActivation.SILU, len(given_["w13"]), expert_map, None, None,
        empty, empty, None, on_input,
    )  # fmt: skip
    return output


def test_vllms_experts_are_made_once_and_take_expert_maps() -> None:
    made: Any = local_rows(CPUUnquantizedExperts)
    assert made is local_rows(CPUUnquantizedExperts)
    assert {LocalRows, CPUUnquantizedExperts} <= set(made.__mro__)
    assert made.__name__ == "LocalCPUUnquantizedExperts"
    assert made(config(4, 4, 2), FusedMoEQuantConfig.make()).supports_expert_map()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 60), st.integers(4, 24), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32))
def test_the_sum_over_ranks_of_vllms_experts_is_the_layer(
    tokens: int, experts: int, top_k: int, ranks: int, seed: int
) -> None:
    given_ = problem(tokens, experts, top_k, seed)
    total = torch.zeros_like(given_["hidden"])
    order = torch.randperm(experts, generator=torch.Generator().manual_seed(seed))
    for rank in range(ranks):
        own = order[rank::ranks]
        expert_map = torch.full((experts,), -1, dtype=torch.int32)
        expert_map[own] = torch.arange(len(own), dtype=torch.int32)
        total += kept(given_, own, expert_map)
    whole = vllms(given_) if tokens else given_["hidden"]
    torch.testing.assert_close(total, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rank_with_all_experts_is_vllm(dtype: torch.dtype) -> None:
    given_ = {
        name: t if name in {"ids", "weights"} else t.to(dtype) for name, t in problem(33, 8, 2, 3).items()
    }
    assert torch.equal(kept(given_), vllms(given_))
    # Through rows of one expert each: added in 32 bits, so but for rounding.
    rows = kept(given_, expert_map=torch.arange(8, dtype=torch.int32))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(rows, vllms(given_), atol=tolerance, rtol=tolerance)


def test_packed_slots_move_as_they_are() -> None:
    given_ = problem(20, 6, 2, 1)
    moved = torch.tensor([3, 0, 5, 1, 4, 2])
    expert_map = torch.empty(6, dtype=torch.int32)
    expert_map[moved] = torch.arange(6, dtype=torch.int32)
    found = kept(given_, expert_map=expert_map, moved=moved)
    torch.testing.assert_close(found, vllms(given_), atol=1e-5, rtol=1e-5)


def test_a_weight_on_the_input_is_not_weighed_again() -> None:
    given_ = problem(9, 4, 1, 2)
    given_["hidden"] = given_["hidden"] * given_["weights"]
    wanted = run(given_, on_input=True)
    everything = torch.arange(4, dtype=torch.int32)
    for found in (kept(given_, on_input=True), kept(given_, expert_map=everything, on_input=True)):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_weights_that_are_loaded_anew_are_packed_again() -> None:
    made: Any = local_rows(CPUUnquantizedExperts)
    experts = made(config(4, 4, 2), FusedMoEQuantConfig.make())
    calls: list[object] = []
    method = SimpleNamespace(
        moe_kernel=SimpleNamespace(fused_experts=experts), process_weights_after_loading=calls.append
    )
    pack_reloaded(SimpleNamespace(quant_method=method))
    layer = Layer(*(torch.randn(4, *shape) for shape in ((2 * INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE))))
    plain = layer.w13_weight.clone()
    method.process_weights_after_loading(layer)
    assert calls == [layer]
    assert torch.equal(layer.w13_weight, cpu_prepack_moe_weight(plain, "vec"))
    # Other experts, or none yet, are left alone.
    for other in (SimpleNamespace(fused_experts=object()), None):
        method = SimpleNamespace(moe_kernel=other, process_weights_after_loading=calls.append)
        pack_reloaded(SimpleNamespace(quant_method=method))
        assert method.process_weights_after_loading == calls.append


def packed_and_plain(
    given_: dict[str, torch.Tensor], own: slice = slice(None)
) -> tuple[PackedExperts, ExpertWeights]:
    weights = ExpertWeights(given_["w13"][own].transpose(1, 2), given_["w2"][own].transpose(1, 2))
    packed = pack_experts(weights.w13, weights.w2)
    assert packed is not None
    return packed, weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [0, 1, 16, 40])
def test_our_layer_by_vllms_packed_kernel_is_our_layer(dtype: torch.dtype, tokens: int) -> None:
    given_ = {
        name: t if name in {"ids", "weights"} else t.to(dtype) for name, t in problem(tokens, 8, 2, 3).items()
    }
    packed, weights = packed_and_plain(given_)
    arguments = given_["hidden"], given_["weights"], given_["ids"], weights
    wanted, found = apply_experts(*arguments), apply_experts(*arguments, packed=packed)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)
    # The kernel serves where it is the quicker one, and only there.
    assert packed.is_quicker(given_["hidden"], 128)
    assert packed.is_quicker(given_["hidden"], 129) == (dtype == torch.float32)
    if tokens and packed.is_quicker(given_["hidden"], tokens * 2):
        assert torch.equal(found, vllms(given_))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(4, 24), st.integers(1, 4), st.booleans(), st.integers(0, 2**32))
def test_the_sum_over_ranks_by_the_packed_kernel_is_the_layer(
    tokens: int, experts: int, top_k: int, physical: bool, seed: int
) -> None:
    """By logical ids with a map and by physical ids; some entries inactive, ranks uneven, experts perhaps unused."""
    given_ = problem(tokens, experts, top_k, seed)
    given_["ids"][torch.rand(given_["ids"].shape) < 0.2] = -1
    whole = ExpertWeights(given_["w13"].transpose(1, 2), given_["w2"].transpose(1, 2))
    wanted = apply_experts(given_["hidden"], given_["weights"], given_["ids"], whole)
    total, cut = torch.zeros_like(wanted), experts // 3
    for own in (slice(0, cut), slice(cut, experts)):
        packed, weights = packed_and_plain(given_, own)
        expert_map = torch.full((experts,), -1, dtype=torch.int32)
        expert_map[own] = torch.arange(weights.num_slots, dtype=torch.int32)
        where: dict[str, Any] = {"first_physical": own.start} if physical else {"expert_map": expert_map}
        total += apply_experts(
            given_["hidden"], given_["weights"], given_["ids"], weights, packed=packed, **where
        )
    torch.testing.assert_close(total, wanted, atol=1e-5, rtol=1e-5)


def test_what_the_packed_kernel_cannot_serve_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    def pack(hidden: int, inner: int, dtype: torch.dtype = torch.float32) -> object:
        w13, w2 = torch.ones(2, hidden, 2 * inner, dtype=dtype), torch.ones(2, inner, hidden, dtype=dtype)
        return pack_experts(w13, w2)

    assert pack(64, 32) is not None
    assert pack(48, 32) is None
    assert pack(64, 48) is None
    assert pack(64, 32, torch.int8) is None
    # A kernel that answers wrongly, as that of another release might, is found out before it serves.
    functions = packed_module._functions()
    wrong = SimpleNamespace(
        cpu_prepack_moe_weight=functions.cpu_prepack_moe_weight, cpu_fused_moe=lambda out, *_: out.zero_()
    )
    monkeypatch.setattr(packed_module, "_functions", lambda: wrong)
    packed_module._works.cache_clear()
    assert pack(64, 32) is None
    packed_module._works.cache_clear()
