# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What is done to the rows between the products: the gated activation, and int8 with a scale a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from harness.bench.npu import peers
from harness.bench.npu.checking import DiffersError, require_close, require_count, require_like, tolerance
from harness.bench.npu.families.common import function_of, own
from harness.bench.npu.inputs import Case, Family, Implementation, activations
from vllm_ascend_moe.npu_ops import ops

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.bench.npu.devices import Kind
    from harness.bench.npu.inputs import Outputs, Run, Tensors

_INT8_MAX = 127
# Rows that are computed at a time.
_CHUNK = 2048


class Swiglu(Family):
    """silu(gate) · up."""

    op = "swiglu"
    about = "rows [T·K, 2·I] → [T·K, I]"

    def make(self, case: Case) -> dict[str, torch.Tensor]:
        """Return rows."""
        return {"rows": activations(case, case.entries, 2 * case.model.intermediate_size)}

    def reference(self, case: Case, tensors: Tensors) -> Outputs:
        """Compute by the formula, in float32 or wider."""
        wide = torch.float64 if case.dtype == torch.float32 else torch.float32
        rows, inner = tensors["rows"], case.model.intermediate_size
        result = torch.empty(len(rows), inner, dtype=case.dtype)
        for start in range(0, len(rows), _CHUNK):
            part = rows[start : start + _CHUNK].to(wide)
            gate, up = part[:, :inner], part[:, inner:]
            result[start : start + _CHUNK] = gate / (1 + (-gate).exp()) * up
        return (result,)

    def check(self, case: Case, tensors: Tensors, found: Outputs, wanted: Outputs) -> None:  # noqa: ARG002
        """Compare within the rounding of the dtype."""
        require_count(found, ("rows",))
        require_like("rows", found[0], wanted[0])
        near = tolerance(case.dtype)
        require_close("rows", found[0], wanted[0], relative=near, absolute=near / 16)

    def implementations(self, kind: Kind) -> list[Implementation]:
        """Return the twin, torch_npu's op, vLLM's, and what is written without either."""
        found = own(ops.npu_swiglu, kind, "the plain-torch twin, which rounds once", _swiglu)
        plain = Implementation("silu mul", "silu(gate) * up, rounded twice", _silu_mul, is_peer=True)
        return [*found, plain, *peers.swiglu(kind)]

    def bytes_moved(self, case: Case) -> int:
        """Read both halves, write one."""
        return 3 * case.entries * case.model.intermediate_size * case.dtype.itemsize


class DynamicQuant(Family):
    """int8 rows, each with a scale."""

    op = "dynamic_quant"
    about = "rows [T·K, I] → int8 [T·K, I] and scales float32 [T·K]"

    def make(self, case: Case) -> dict[str, torch.Tensor]:
        """Return rows."""
        return {"rows": activations(case, case.entries, case.model.intermediate_size)}

    def reference(self, case: Case, tensors: Tensors) -> Outputs:  # noqa: ARG002 - the rows say it all
        """Divide by the row's scale in float64, not yet rounded."""
        rows = tensors["rows"]
        scale = torch.empty(len(rows), dtype=torch.float32)
        exact = torch.empty(rows.shape, dtype=torch.float32)
        for start in range(0, len(rows), _CHUNK):
            part = rows[start : start + _CHUNK].double()
            largest = part.abs().amax(1) / _INT8_MAX
            scale[start : start + _CHUNK] = largest
            exact[start : start + _CHUNK] = part / largest.clamp(min=1e-30).unsqueeze(1)
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
        found = own(ops.npu_dynamic_quant, kind, "the plain-torch twin", _quant)
        return [*found, *peers.dynamic_quant(kind)]

    def bytes_moved(self, case: Case) -> int:
        """Read the rows, write a byte an entry and a scale a row."""
        return case.entries * (case.model.intermediate_size * (case.dtype.itemsize + 1) + 4)


def _swiglu(how: str) -> Callable[[Case, Tensors], Run]:
    def prepare(_: Case, tensors: Tensors) -> Run:
        function, rows = function_of(ops.npu_swiglu, how), tensors["rows"]
        return lambda: (function(rows, -1),)

    return prepare


def _silu_mul(_: Case, tensors: Tensors) -> Run:
    rows = tensors["rows"]

    def run() -> Outputs:
        gate, up = rows.chunk(2, dim=-1)
        return (functional.silu(gate) * up,)

    return run


def _quant(how: str) -> Callable[[Case, Tensors], Run]:
    def prepare(_: Case, tensors: Tensors) -> Run:
        function, rows = function_of(ops.npu_dynamic_quant, how), tensors["rows"]
        return lambda: function(rows, smooth_scales=None)

    return prepare
