# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Permute and finalize: rows sorted by expert, and brought back to their tokens by weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from harness.bench.npu.checking import DiffersError, require_close, require_count, require_equal, tolerance
from harness.bench.npu.families.common import function_of, own
from harness.bench.npu.inputs import Case, Family, Implementation, activations, top_ids
from vllm_ascend_moe.npu_ops import ops

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.bench.npu.devices import Kind
    from harness.bench.npu.inputs import Outputs, Run, Tensors

# Tokens whose rows are compared at a time.
_CHUNK = 256


class Permute(Family):
    """A row for each entry, in the order of the experts."""

    op = "permute"
    about = "rows [T, H] and ids int32 [T, K] → rows [T·K, H] by expert, where each entry went, counts [E]"

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
        for start in range(0, case.entries, _CHUNK * case.model.top_k):
            part = slice(start, start + _CHUNK * case.model.top_k)
            require_equal(f"expanded_x[{start}:]", expanded[part], tensors["rows"][source[part]])

    def implementations(self, kind: Kind) -> list[Implementation]:
        """Return the twin, the kernel, torch_npu's op, and a sort."""
        found = [*own(ops.npu_moe_init_routing_v2, kind, "the plain-torch twin", _permute_by)]
        about = "argsort, index_select, bincount"
        return [*found, Implementation("argsort", about, _argsort, is_peer=True)]

    def bytes_moved(self, case: Case) -> int:
        """Read each row once and write it K times; read ids, write where each went, and the counts."""
        row = case.model.hidden_size * case.dtype.itemsize
        return (case.tokens + case.entries) * row + 8 * case.entries + 8 * case.model.num_experts


class Finalize(Family):
    """Each token's rows, added up by weight."""

    op = "finalize"
    about = "rows [T·K, H] by expert, where each entry is, weights [T, K] → rows [T, H]"

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
        for start in range(0, case.tokens, _CHUNK):
            part = slice(start, start + _CHUNK)
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
        # On a CPU what serves is plain torch too: an embedding bag, in 16 bits products of some tokens at a time.
        how = "fast" if kind == "cpu" else "twin"
        found = [Implementation("torch", "plain torch", _unpermute_by(how), serves=kind != "npu")]
        if kind == "npu":
            found.append(Implementation("npu", "torch_npu's op", _unpermute_by("npu"), serves=True))
        return [
            *found,
            Implementation("bmm", "indexing, then bmm over [T, K, H]", _through(_bmm), is_peer=True),
            Implementation("mul sum", "indexing, then a product and a sum", _through(_mul_sum), is_peer=True),
        ]

    def bytes_moved(self, case: Case) -> int:
        """Read all rows, their places and weights, write a row a token."""
        row = case.model.hidden_size * case.dtype.itemsize
        return (case.tokens + case.entries) * row + (4 + case.dtype.itemsize) * case.entries


def _permute_by(how: str) -> Callable[[Case, Tensors], Run]:
    def prepare(case: Case, tensors: Tensors) -> Run:
        function = function_of(ops.npu_moe_init_routing_v2, how)
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

    return prepare


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


def _unpermute_by(how: str) -> Callable[[Case, Tensors], Run]:
    def prepare(_: Case, tensors: Tensors) -> Run:
        function = function_of(ops.npu_moe_token_unpermute, how)
        rows, row_idx, probs = tensors["rows"], tensors["row_idx"], tensors["probs"]
        return lambda: (function(rows, row_idx, probs, False),)  # noqa: FBT003 - torch_npu's signature

    return prepare


def _through(combine: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[[Case, Tensors], Run]:
    def prepare(_: Case, tensors: Tensors) -> Run:
        rows, row_idx, probs = tensors["rows"], tensors["row_idx"], tensors["probs"]
        return lambda: (combine(probs, rows[row_idx].view(*probs.shape, -1)),)

    return prepare


def _bmm(probs: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return torch.bmm(probs.unsqueeze(1), rows).squeeze(1)


def _mul_sum(probs: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return (rows * probs.unsqueeze(-1)).sum(1)
