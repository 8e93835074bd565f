# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What is done to rows: sorted by expert, activated and quantised between the products, brought back to their tokens."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from harness.bench.npu import peers
from harness.bench.npu.checking import (
    DiffersError,
    require_close,
    require_count,
    require_equal,
    require_like,
    tolerance,
)
from harness.bench.npu.inputs import Case, Family, Implementation, activations, own, top_ids
from vllm_ascend_moe.npu_ops import ops

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.bench.npu.devices import Kind
    from harness.bench.npu.inputs import Outputs, Run, Tensors

_INT8_MAX = 127
# Rows that are computed, and tokens whose rows are compared, at a time.
_CHUNK_ROWS, _CHUNK_TOKENS = 2048, 256


class Permute(Family):
    """Rows [T, H] and ids int32 [T, K] → rows [T·K, H] in the order of the experts, where each entry went, counts [E]."""

    op = "permute"

    def make(self, case: Case) -> dict[str, torch.Tensor]:
        """Return rows and ids."""
        rows = activations(case, case.tokens, case.model.hidden_size)
        return {"rows": rows, "ids": top_ids(case, case.model.num_experts)}

    def reference(self, case: Case, tensors: Tensors) -> Outputs:
        """Sort entries by expert, then by entry; the rows themselves are compared with the input's."""
        ids = tensors["ids"].view(-1).long()
        order = torch.sort(ids * case.entries + torch.arange(case.entries)).indices
        row_idx = torch.empty(case.entries, dtype=torch.int32)
        row_idx[order] = torch.arange(case.entries, dtype=torch.int32)
        counts = torch.zeros(case.model.num_experts, dtype=torch.int64)
        counts.scatter_add_(0, ids, torch.ones_like(ids))
        return order // case.model.top_k, row_idx, counts

    def check(self, case: Case, tensors: Tensors, found: Outputs, wanted: Outputs) -> None:
        """Compare all outputs exactly."""
        require_count(found, ("expanded_x", "expanded_row_idx", "counts"))
        (expanded, row_idx, counts), (source, true_row_idx, true_counts) = found, wanted
        require_equal("expanded_row_idx", row_idx, true_row_idx, dtype=False)
        require_equal("counts", counts, true_counts, dtype=False)
        shape = [case.entries, case.model.hidden_size]
        if list(expanded.shape) != shape:
            msg = f"expanded_x has shape {list(expanded.shape)}; expected {shape}"
            raise DiffersError(msg)
        for start in range(0, case.entries, _CHUNK_TOKENS * case.model.top_k):
            part = slice(start, start + _CHUNK_TOKENS * case.model.top_k)
            require_equal(f"expanded_x[{start}:]", expanded[part], tensors["rows"][source[part]])

    def implementations(self, kind: Kind) -> list[Implementation]:
        """Return the twin, the kernel, torch_npu's op, and a sort."""
        found = own(ops.npu_moe_init_routing_v2, kind, "the plain-torch twin", _permute)
        about = "argsort, index_select, bincount"
        return [*found, Implementation("argsort", about, _argsort, is_peer=True)]

    def bytes_moved(self, case: Case) -> int:
        """Read each row once and write it K times; read ids, write where each went, and the counts."""
        row = case.model.hidden_size * case.dtype.itemsize
        return (case.tokens + case.entries) * row + 8 * case.entries + 8 * case.model.num_experts


class Finalize(Family):
    """Rows [T·K, H] by expert, where each entry is, weights [T, K] → each token's rows, added up by weight: [T, H]."""

    op = "finalize"

    def make(self, case: Case) -> dict[str, torch.Tensor]:
        """Return sorted rows, the row of each entry, and weights."""
        model = case.model
        order = top_ids(case, model.num_experts).view(-1).argsort(stable=True)
        probs = torch.rand(case.tokens, model.top_k, generator=case.generator())
        probs = probs / probs.sum(-1, keepdim=True) * model.scaling
        return {
            "rows": activations(case, case.entries, model.hidden_size),
            "row_idx": order.argsort().to(torch.int32),
            "probs": probs.to(case.dtype),
        }

    def reference(self, case: Case, tensors: Tensors) -> Outputs:
        """Add up in float32, of float32 inputs in float64, some tokens at a time."""
        wide = torch.float64 if case.dtype == torch.float32 else torch.float32
        rows, probs = tensors["rows"], tensors["probs"].to(wide)
        entry = tensors["row_idx"].view(case.tokens, case.model.top_k).long()
        total = torch.empty(case.tokens, case.model.hidden_size, dtype=wide)
        for start in range(0, case.tokens, _CHUNK_TOKENS):
            part = slice(start, start + _CHUNK_TOKENS)
            total[part] = rows[entry[part, 0]].to(wide) * probs[part, :1]
            for k in range(1, case.model.top_k):
                total[part] += rows[entry[part, k]].to(wide) * probs[part, k : k + 1]
        return (total,)

    def check(self, case: Case, tensors: Tensors, found: Outputs, wanted: Outputs) -> None:  # noqa: ARG002
        """Compare within the rounding of K products of the dtype."""
        require_count(found, ("rows",))
        near = tolerance(case.dtype)
        require_close("rows", found[0], wanted[0], relative=near, absolute=near * case.model.scaling)

    def implementations(self, kind: Kind) -> list[Implementation]:
        """Return the twin, the kernel, torch_npu's op, and two ways through [T, K, H]."""
        op = ops.npu_moe_token_unpermute
        # On a CPU what serves is plain torch too: an embedding bag, in 16 bits products of some tokens at a time.
        plain = op.fast if kind == "cpu" and op.fast is not None else op.twin
        about, serves = "plain torch", kind != "npu"
        found = [Implementation("torch", about, partial(_unpermute, plain), serves=serves)]
        if kind == "npu":
            npu = partial(_unpermute, torch.ops.npu.npu_moe_token_unpermute)
            found.append(Implementation("npu", "torch_npu's op", npu, serves=True))
        for name, about, combine in (
            ("bmm", "indexing, then bmm over [T, K, H]", _bmm),
            ("mul sum", "indexing, then a product and a sum", _mul_sum),
        ):
            found.append(Implementation(name, about, partial(_through, combine), is_peer=True))
        return found

    def bytes_moved(self, case: Case) -> int:
        """Read all rows, their places and weights, write a row a token."""
        row = case.model.hidden_size * case.dtype.itemsize
        return (case.tokens + case.entries) * row + (4 + case.dtype.itemsize) * case.entries


class Swiglu(Family):
    """silu(gate) · up: rows [T·K, 2·I] → [T·K, I]."""

    op = "swiglu"

    def make(self, case: Case) -> dict[str, torch.Tensor]:
        """Return rows."""
        return {"rows": activations(case, case.entries, 2 * case.model.intermediate_size)}

    def reference(self, case: Case, tensors: Tensors) -> Outputs:
        """Compute by the formula, in float32 or wider."""
        wide = torch.float64 if case.dtype == torch.float32 else torch.float32
        rows, inner = tensors["rows"], case.model.intermediate_size
        result = torch.empty(len(rows), inner, dtype=case.dtype)
        for start in range(0, len(rows), _CHUNK_ROWS):
            part = rows[start : start + _CHUNK_ROWS].to(wide)
            gate, up = part[:, :inner], part[:, inner:]
            result[start : start + _CHUNK_ROWS] = gate / (1 + (-gate).exp()) * up
        return (result,)

    def check(self, case: Case, tensors: Tensors, found: Outputs, wanted: Outputs) -> None:  # noqa: ARG002
        """Compare within the rounding of the dtype."""
        require_count(found, ("rows",))
        require_like("rows", found[0], wanted[0])
        near = tolerance(case.dtype)
        require_close("rows", found[0], wanted[0], relative=near, absolute=near / 16)

    def implementations(self, kind: Kind) -> list[Implementation]:
        """Return the twin, torch_npu's op, vLLM's, and what is written without either."""
        about = "the plain-torch twin, which rounds once"
        found = own(ops.npu_swiglu, kind, about, lambda by, _, given: partial(by, given["rows"], -1))
        plain = Implementation("silu mul", "silu(gate) * up, rounded twice", _silu_mul, is_peer=True)
        return [*found, plain, *peers.swiglu(kind)]

    def bytes_moved(self, case: Case) -> int:
        """Read both halves, write one."""
        return 3 * case.entries * case.model.intermediate_size * case.dtype.itemsize


class DynamicQuant(Family):
    """int8 rows, each with a scale: rows [T·K, I] → int8 [T·K, I] and scales float32 [T·K]."""

    op = "dynamic_quant"

    def make(self, case: Case) -> dict[str, torch.Tensor]:
        """Return rows."""
        return {"rows": activations(case, case.entries, case.model.intermediate_size)}

    def reference(self, case: Case, tensors: Tensors) -> Outputs:  # noqa: ARG002 - the rows say it all
        """Divide by the row's scale in float64, not yet rounded."""
        rows = tensors["rows"]
        scale = torch.empty(len(rows), dtype=torch.float32)
        exact = torch.empty(rows.shape, dtype=torch.float32)
        for start in range(0, len(rows), _CHUNK_ROWS):
            part = rows[start : start + _CHUNK_ROWS].double()
            largest = part.abs().amax(1) / _INT8_MAX
            scale[start : start + _CHUNK_ROWS] = largest
            exact[start : start + _CHUNK_ROWS] = part / largest.clamp(min=1e-30).unsqueeze(1)
        return exact, scale

    def check(self, case: Case, tensors: Tensors, found: Outputs, wanted: Outputs) -> None:  # noqa: ARG002
        """Let what lies halfway between two numbers be rounded to either."""
        require_count(found, ("quantised", "scale"))
        if found[0].dtype != torch.int8:
            msg = f"quantised is {found[0].dtype}; expected torch.int8"
            raise DiffersError(msg)
        require_close("quantised", found[0], wanted[0], relative=0, absolute=0.5 + 1e-3)
        require_close("scale", found[1], wanted[1], relative=1e-5)

    def implementations(self, kind: Kind) -> list[Implementation]:
        """Return the twin, torch_npu's op and vLLM's."""
        bind = lambda by, _, given: partial(by, given["rows"], smooth_scales=None)  # noqa: E731 - in one place
        found = own(ops.npu_dynamic_quant, kind, "the plain-torch twin", bind)
        return [*found, *peers.dynamic_quant(kind)]

    def bytes_moved(self, case: Case) -> int:
        """Read the rows, write a byte an entry and a scale a row."""
        return case.entries * (case.model.intermediate_size * (case.dtype.itemsize + 1) + 4)


def _permute(function: Callable[..., Any], case: Case, tensors: Tensors) -> Run:
    rows, ids = tensors["rows"], tensors["ids"]
    arguments: dict[str, Any] = {
        "scale": None,
        "offset": None,
        "active_num": case.entries,
        "expert_capacity": -1,
        "expert_num": case.model.num_experts,
        "drop_pad_mode": 0,
        "expert_tokens_num_type": 1,
        "expert_tokens_num_flag": True,
        "quant_mode": -1,
        "active_expert_range": [0, case.model.num_experts],
        "row_idx_type": 0,
    }
    return lambda: function(rows, ids, **arguments)[:3]


def _argsort(case: Case, tensors: Tensors) -> Run:
    rows, ids = tensors["rows"], tensors["ids"]
    experts, top_k = case.model.num_experts, case.model.top_k

    def run() -> Outputs:
        flat = ids.view(-1)
        order = torch.argsort(flat, stable=True)
        row_idx = torch.empty_like(flat)
        row_idx[order] = torch.arange(len(flat), dtype=flat.dtype, device=flat.device)
        return rows.index_select(0, order // top_k), row_idx, torch.bincount(flat, minlength=experts)

    return run


def _unpermute(function: Callable[..., Any], _: Case, tensors: Tensors) -> Run:
    rows, row_idx, probs = tensors["rows"], tensors["row_idx"], tensors["probs"]
    return partial(function, rows, row_idx, probs, False)  # noqa: FBT003 - torch_npu's signature


def _through(combine: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], _: Case, tensors: Tensors) -> Run:
    rows, row_idx, probs = tensors["rows"], tensors["row_idx"], tensors["probs"]
    return lambda: combine(probs, rows[row_idx].view(*probs.shape, -1))


def _bmm(probs: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return torch.bmm(probs.unsqueeze(1), rows).squeeze(1)


def _mul_sum(probs: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return (rows * probs.unsqueeze(-1)).sum(1)


def _silu_mul(_: Case, tensors: Tensors) -> Run:
    rows = tensors["rows"]

    def run() -> torch.Tensor:
        gate, up = rows.chunk(2, dim=-1)
        return functional.silu(gate) * up

    return run
