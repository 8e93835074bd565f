# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""An emulated device: the twins registered as CPU implementations of torch_npu's schemas.

So the call sites that run on an NPU, `torch.ops.npu.*`, are executed where there is none, and what the real
schema would refuse (an unknown keyword, a wrong type) is refused.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from vllm_ascend_moe.npu_ops.ops import OPS, registered_ops

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@contextlib.contextmanager
def emulated_npu(schemas: Mapping[str, str] | None = None) -> Iterator[None]:
    """Register the ops for the time of a `with` block and send all calls to them.

    Args:
        schemas: name → schema, as a wheel of torch_npu declares it; by default the ops' own record of its
            newest tested wheel.

    Raises:
        RuntimeError: torch_npu or another registration is there already.
    """
    if hasattr(torch.ops.npu, next(iter(OPS))):
        msg = "torch.ops.npu is registered already; expected no torch_npu and no other emulation"
        raise RuntimeError(msg)
    schemas = schemas or {name: op.schema for name, op in OPS.items()}
    library = torch.library.Library("npu", "DEF")  # type: ignore[no-untyped-call]
    try:
        for name, op in OPS.items():
            library.define(schemas[name])  # type: ignore[no-untyped-call]
            library.impl(name, op.run_twin, "CPU")  # type: ignore[no-untyped-call]
        with registered_ops():
            yield
    finally:
        # torch offers no public way to undo a registration.
        library._destroy()  # type: ignore[no-untyped-call]  # noqa: SLF001
        for name in OPS:
            # The namespace remembers what it resolved.
            torch.ops.npu.__dict__.pop(name, None)
