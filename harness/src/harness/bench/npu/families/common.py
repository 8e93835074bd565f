# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What families share: an op in each of its forms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from harness.bench.npu.inputs import Implementation

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.bench.npu.devices import Kind
    from harness.bench.npu.inputs import Case, Run, Tensors
    from vllm_ascend_moe.npu_ops.ops import Op


def function_of(op: Op[..., Any], how: str) -> Callable[..., Any]:
    """Return an op's "twin", its kernel ("fast"), or torch_npu's op ("npu"), which take the same arguments."""
    found: Callable[..., Any] = getattr(torch.ops.npu, op.name) if how == "npu" else getattr(op, how)
    return found


def own(
    op: Op[..., Any], kind: Kind, twin: str, by: Callable[[str], Callable[[Case, Tensors], Run]]
) -> list[Implementation]:
    """Return an op's forms on a device; the last one is what the plugin runs there.

    Args:
        op: which.
        kind: of the device.
        twin: what the twin is, for the table.
        by: prepares a form.
    """
    forms = [("torch", twin, "twin")]
    if kind == "cpu" and op.fast is not None:
        forms.append(("numba", "the kernel for a CPU", "fast"))
    if kind == "npu":
        forms.append(("npu", "torch_npu's op", "npu"))
    return [Implementation(name, about, by(how), serves=how == forms[-1][2]) for name, about, how in forms]
