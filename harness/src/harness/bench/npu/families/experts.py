# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The products: one for all experts of a rank, and a rank's whole share of the layer."""

from __future__ import annotations

import functools
import zlib
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from harness.bench.npu import peers
from harness.bench.npu.checking import require_close, require_count, tolerance
from harness.bench.npu.inputs import Case, Family, Implementation, activations, rank_ids
from vllm_ascend_moe.npu_ops import ops
from vllm_ascend_moe.npu_ops.experts import ExpertWeights, apply_experts

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.bench.npu.devices import Kind
    from harness.bench.npu.inputs import Outputs, Run, Tensors
    from harness.bench.npu.models import Model

# One output, rows grouped, by counts.
_GROUPING: dict[str, Any] = {"split_item": 2, "group_type": 0, "group_list_type": 1}


@functools.lru_cache(maxsize=1)
def _weights(model: Model) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a rank's experts as vLLM keeps them: w13 [L, 2·I, H] and w2 [L, H, I].

    One expert is drawn; the others are its columns, moved on by another number each: no two are the same, and
    a gigabyte takes a second to make.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(model.name.encode()))
    dtype: torch.dtype = getattr(torch, model.dtype)
    found = []
    for rows, columns in (
        (2 * model.intermediate_size, model.hidden_size),
        (model.hidden_size, model.intermediate_size),
    ):
        one = (torch.randn(rows, columns, generator=generator) / columns**0.5).to(dtype)
        whole = torch.empty(model.local_experts, rows, columns, dtype=dtype)
        for expert in range(model.local_experts):
            whole[expert] = one.roll(expert, dims=1)
        found.append(whole)
    return found[0], found[1]


class GroupedMatmul(Family):
    """Each expert's rows times its matrix: [T·K, H] by expert times gate and up of E/ep_size experts, [H, 2·I] each."""

    op = "grouped_matmul"

    def make(self, case: Case) -> dict[str, torch.Tensor]:
        """Return sorted rows, how many each expert has, and the weights as views [L, H, 2·I]."""
        model = case.model
        counts = torch.bincount(rank_ids(case).view(-1), minlength=model.local_experts)
        rows = activations(case, case.entries, model.hidden_size)
        return {"rows": rows, "counts": counts, "w13": _weights(model)[0].transpose(1, 2)}

    def reference(self, case: Case, tensors: Tensors) -> Outputs:
        """Multiply by expert, in float32; of float32 inputs in float64."""
        wide = torch.float64 if case.dtype == torch.float32 else torch.float32
        parts = torch.split(tensors["rows"], tensors["counts"].tolist())
        return (
            torch.cat([part.to(wide) @ w.to(wide) for part, w in zip(parts, tensors["w13"], strict=True)]),
        )

    def check(self, case: Case, tensors: Tensors, found: Outputs, wanted: Outputs) -> None:  # noqa: ARG002
        """Compare within the rounding of the dtype; the products are of size one."""
        require_count(found, ("rows",))
        near = tolerance(case.dtype)
        require_close("rows", found[0], wanted[0], relative=near, absolute=near)

    def implementations(self, kind: Kind) -> list[Implementation]:
        """Return the twin, torch_npu's op, and a loop."""
        op, about = ops.npu_grouped_matmul, "the plain-torch twin: one call on a CPU"
        found = [Implementation("torch", about, partial(_product, op.twin), serves=kind != "npu")]
        if kind == "npu":
            npu = partial(_product, torch.ops.npu.npu_grouped_matmul)
            found.append(Implementation("npu", "torch_npu's op", npu, serves=True))
        return [*found, Implementation("loop", "a product for each expert", _loop, is_peer=True)]

    def bytes_moved(self, case: Case) -> int:
        """Read rows and the matrices of experts that have some, write rows."""
        model = case.model
        used = len(torch.bincount(rank_ids(case).view(-1)).nonzero())
        inner, outer = model.hidden_size, 2 * model.intermediate_size
        return (case.entries * (inner + outer) + used * inner * outer) * case.dtype.itemsize

    def flops(self, case: Case) -> int:
        """Count a multiplication and an addition for each entry of a row and column."""
        return 4 * case.entries * case.model.hidden_size * case.model.intermediate_size


class WholeMoe(Family):
    """A rank's share of the layer: sort, multiply, gate, multiply, add up.

    hidden [T·K, H], a weight and one of a rank's E/ep_size experts each → [T·K, H]: the rows that a rank is sent where each
    rank has T tokens and ranks are balanced, its experts uneven.
    """

    op = "moe"

    def make(self, case: Case) -> dict[str, torch.Tensor]:
        """Return the rows, each one's expert and weight, and the experts as vLLM keeps them."""
        w13, w2 = _weights(case.model)
        return {
            "hidden": activations(case, case.entries, case.model.hidden_size),
            "ids": rank_ids(case),
            "weights": torch.rand(case.entries, 1, generator=case.generator()),
            "w13": w13,
            "w2": w2,
        }

    def reference(self, case: Case, tensors: Tensors) -> Outputs:
        """Go through the experts, in float32; of float32 inputs in float64."""
        wide = torch.float64 if case.dtype == torch.float32 else torch.float32
        hidden, ids, weights = tensors["hidden"].to(wide), tensors["ids"], tensors["weights"].to(wide)
        total = torch.zeros_like(hidden)
        for expert, (w13, w2) in enumerate(zip(tensors["w13"], tensors["w2"], strict=True)):
            token, k = (ids == expert).nonzero(as_tuple=True)
            gate, up = (hidden[token] @ w13.T.to(wide)).chunk(2, dim=-1)
            output = (functional.silu(gate) * up) @ w2.T.to(wide)
            total.index_add_(0, token, output * weights[token, k].unsqueeze(1))
        return (total,)

    def check(self, case: Case, tensors: Tensors, found: Outputs, wanted: Outputs) -> None:  # noqa: ARG002
        """Compare within the rounding of three products, by the size of what is added up."""
        require_count(found, ("hidden",))
        near = tolerance(case.dtype)
        size = float(wanted[0].square().mean().sqrt())
        require_close("hidden", found[0], wanted[0], relative=near, absolute=2 * near * size)

    def implementations(self, kind: Kind) -> list[Implementation]:
        """Return this project's layer and vLLM's."""
        about = "apply_experts, on torch_npu's ops" if kind == "npu" else "apply_experts, which serves"
        found = [Implementation("apply_experts", about, _apply, serves=True)]
        if kind == "cpu":
            about, unpacked = "apply_experts without vLLM's packed kernel", partial(_apply, is_packed=False)
            found.append(Implementation("unpacked", about, unpacked))
        return [*found, *peers.experts(kind)]

    def bytes_moved(self, case: Case) -> int:
        """Read hidden states, routing and the experts that are used, write hidden states."""
        model = case.model
        used = len(torch.bincount(rank_ids(case).view(-1)).nonzero())
        weights = used * 3 * model.hidden_size * model.intermediate_size
        return (2 * case.entries * model.hidden_size + weights) * case.dtype.itemsize + 8 * case.entries

    def flops(self, case: Case) -> int:
        """Count the three products of each entry."""
        return 6 * case.entries * case.model.hidden_size * case.model.intermediate_size


def _product(function: Callable[..., Any], _: Case, tensors: Tensors) -> Run:
    return partial(function, [tensors["rows"]], [tensors["w13"]], group_list=tensors["counts"], **_GROUPING)


def _loop(_: Case, tensors: Tensors) -> Run:
    rows, weight, counts = tensors["rows"], tensors["w13"], tensors["counts"]

    def run() -> torch.Tensor:
        output = rows.new_empty(len(rows), weight.shape[2])
        start = 0
        for expert, count in enumerate(counts.tolist()):
            torch.mm(rows[start : start + count], weight[expert], out=output[start : start + count])
            start += count
        return output

    return run


def _apply(case: Case, tensors: Tensors, *, is_packed: bool = True) -> Run:
    packed = peers.packed(case, tensors) if is_packed else None
    weights = ExpertWeights(tensors["w13"].transpose(1, 2), tensors["w2"].transpose(1, 2))
    hidden, probs, ids = tensors["hidden"], tensors["weights"], tensors["ids"]
    return partial(apply_experts, hidden, probs, ids, weights, packed=packed)
