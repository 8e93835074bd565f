# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""vLLM's own functions for the same ops, on a CPU and on CUDA; those that are not here are left out."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

import torch

from harness.bench.npu.inputs import Implementation
from vllm_ascend_moe.npu_ops.packed import pack_experts

if TYPE_CHECKING:
    from harness.bench.npu.devices import Kind
    from harness.bench.npu.inputs import Case, Outputs, Run, Tensors
    from harness.bench.npu.models import Model
    from vllm_ascend_moe.npu_ops.packed import PackedExperts

_ROUTERS = "vllm.model_executor.layers.fused_moe.router"


@functools.cache
def find(module: str, name: str) -> Any | None:  # noqa: ANN401 - vLLM's
    """Return a function of vLLM's, or None where this vLLM has none of that name or none is installed."""
    if importlib.util.find_spec("vllm") is None:
        return None
    try:
        return getattr(importlib.import_module(module), name, None)
    except (ImportError, OSError, RuntimeError):
        return None


def find_op(name: str) -> Any | None:  # noqa: ANN401 - an op of torch's
    """Return a compiled op of vLLM's, or None."""
    if find("vllm._custom_ops", "cpu_fused_moe") is None:
        return None
    return getattr(torch.ops._C, name, None)  # noqa: SLF001 - vLLM's namespace


def gating(kind: Kind) -> list[Implementation]:
    """Return vLLM's choice of experts: its CPU router's, on CUDA its GPU routers'."""
    if kind == "cuda":
        grouped = find(f"{_ROUTERS}.grouped_topk_router", "grouped_topk")
        plain = find(f"{_ROUTERS}.fused_topk_router", "fused_topk")
        about = "vLLM's grouped_topk with a bias, fused_topk without"
    else:
        grouped = find(f"{_ROUTERS}.cpu_router", "_grouped_topk")
        plain = find(f"{_ROUTERS}.cpu_router", "_softmax_topk")
        about = "vLLM's cpu_router: _grouped_topk with a bias, _softmax_topk without"
    if grouped is None or plain is None:
        return []

    def prepare(case: Case, tensors: Tensors) -> Run:
        model, logits = case.model, tensors["logits"]
        hidden = (logits.new_zeros(len(logits), 1),) if kind == "cuda" else ()
        if not model.biased:
            return lambda: plain(*hidden, logits, model.top_k, model.renormalize)[:2]
        groups = (model.num_groups, model.topk_group, model.scoring_func, model.scaling, tensors["bias"])
        return lambda: grouped(*hidden, logits, model.top_k, model.renormalize, *groups)

    return [Implementation("vllm", about, prepare, is_peer=True)]


def map_and_record(kind: Kind) -> list[Implementation]:
    """Return vLLM's kernel for both, which it has on CUDA only; a log2phy is its table of one copy each."""
    fused = find(f"{_ROUTERS}.base_router", "eplb_map_to_physical_and_record") if kind == "cuda" else None
    if fused is None:
        return []

    def prepare(_: Case, tensors: Tensors) -> Run:
        ids, load = tensors["ids"], tensors["load"].clone()
        slots = tensors["log2phy"].long().unsqueeze(1)
        count = torch.ones_like(slots[:, 0])
        enabled = torch.ones((), dtype=torch.bool, device=ids.device)
        return lambda: (fused(ids, load, slots, count, enabled), load)

    about = "vLLM's Triton kernel, with one copy of each expert"
    return [Implementation("vllm", about, prepare, is_peer=True)]


def swiglu(kind: Kind) -> list[Implementation]:
    """Return vLLM's compiled activation."""
    op = find_op("silu_and_mul") if kind in {"cpu", "cuda"} else None
    if op is None:
        return []

    def prepare(_: Case, tensors: Tensors) -> Run:
        rows = tensors["rows"]

        def run() -> torch.Tensor:
            output = rows.new_empty(len(rows), rows.shape[1] // 2)
            op(output, rows)
            return output

        return run

    return [Implementation("vllm", "vLLM's silu_and_mul", prepare, is_peer=True)]


def dynamic_quant(kind: Kind) -> list[Implementation]:
    """Return vLLM's quantisation to int8 by row."""
    quantise = find("vllm._custom_ops", "scaled_int8_quant") if find_op("dynamic_scaled_int8_quant") else None
    if quantise is None or kind not in {"cpu", "cuda"}:
        return []

    def prepare(_: Case, tensors: Tensors) -> Run:
        rows = tensors["rows"]

        def run() -> Outputs:
            quantised, scale, _ = quantise(rows)
            return quantised, scale.squeeze(1)

        return run

    return [Implementation("vllm", "vLLM's scaled_int8_quant", prepare, is_peer=True)]


def experts(kind: Kind) -> list[Implementation]:
    """Return vLLM's whole MoE: on a CPU with its packed weights, as its CPU experts call it."""
    if kind == "cuda":
        fused = find("vllm.model_executor.layers.fused_moe.fused_moe", "fused_experts")
        return [] if fused is None else [_fused_experts(fused)]
    fused = find("vllm._custom_ops", "cpu_fused_moe")
    if kind != "cpu" or fused is None:
        return []

    def prepare(case: Case, tensors: Tensors) -> Run:
        experts = packed(case, tensors)
        assert experts is not None  # it has the kernel, and is tried with it
        weights = experts.w13, experts.w2, None, None, tensors["weights"], tensors["ids"]

        def run() -> Outputs:
            output = torch.empty_like(tensors["hidden"])
            fused(output, tensors["hidden"], *weights, "silu", experts.instructions)
            return (output,)

        return run

    return [Implementation("vllm", "vLLM's cpu_fused_moe, weights packed before", prepare, is_peer=True)]


def packed(case: Case, tensors: Tensors) -> PackedExperts | None:
    """Return a rank's experts packed by vLLM, once for all that reads them so; None where it has no kernel for them."""
    return _packed(case.model, tensors["w13"], tensors["w2"])


@functools.lru_cache(maxsize=1)
def _packed(_: Model, w13: torch.Tensor, w2: torch.Tensor) -> PackedExperts | None:
    return pack_experts(w13.transpose(1, 2), w2.transpose(1, 2))


def _fused_experts(fused: Any) -> Implementation:  # noqa: ANN401 - vLLM's
    def prepare(_: Case, tensors: Tensors) -> Run:
        names = ("hidden", "w13", "w2", "weights", "ids")
        arguments = [tensors[name] for name in names]
        return lambda: (fused(*arguments),)

    return Implementation("vllm", "vLLM's fused_experts, in Triton", prepare, is_peer=True)
