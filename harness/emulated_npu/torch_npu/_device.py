# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The device "npu": the name is real to torch (PrivateUse1), what is allocated on it are CPU tensors."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import backend_registration

from torch_npu._npu import NpuModule

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_NAME = "npu"
# Functions of torch's that take pin_memory.
_FACTORIES = (
    "arange",
    "empty",
    "empty_like",
    "empty_strided",
    "full",
    "full_like",
    "ones",
    "ones_like",
    "rand",
    "randint",
    "randn",
    "tensor",
    "zeros",
    "zeros_like",
)
# And methods of a tensor's.
_METHODS = ("new_empty", "new_full", "new_ones", "new_tensor", "new_zeros")


def set_up() -> tuple[NpuModule, torch.library.Library]:
    """Make "npu" a device of this process's torch.

    Returns:
        torch.npu, and what keeps the device's functions registered.
    """
    torch._C._rename_privateuse1_backend(_NAME)  # noqa: SLF001 - what torch.utils calls
    module = NpuModule()
    backend_registration._setup_privateuseone_for_python_backend(  # noqa: SLF001 - the only way without C++
        _NAME,
        module,
        backend_registration._DummyPrivateUse1Hook(),  # noqa: SLF001
        backend_registration._DummyDeviceGuard(),  # noqa: SLF001
    )
    torch.npu = module  # type: ignore[attr-defined]
    sys.modules["torch.npu"] = sys.modules["torch_npu.npu"] = module
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    library.impl("empty.memory_format", _empty, "PrivateUse1")  # type: ignore[no-untyped-call]
    library.impl("empty_strided", _empty_strided, "PrivateUse1")  # type: ignore[no-untyped-call]
    torch.accelerator.synchronize = _no_wait
    # No memory is given back while a stream may use it: there is one.
    torch.Tensor.record_stream = _no_record  # type: ignore[method-assign, assignment]
    _register_for_cpu()
    _forget_pinning()
    _count_integers()
    return module, library


def _empty(
    size: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,  # noqa: ARG001 - torch's signature
    device: torch.device | None = None,  # noqa: ARG001
    pin_memory: bool | None = None,  # noqa: ARG001
    memory_format: torch.memory_format | None = None,
) -> torch.Tensor:
    if memory_format is None:
        return torch.empty(size, dtype=dtype, device="cpu")
    return torch.empty(size, dtype=dtype, device="cpu", memory_format=memory_format)


def _empty_strided(
    size: Sequence[int],
    stride: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,  # noqa: ARG001 - torch's signature
    device: torch.device | None = None,  # noqa: ARG001
    pin_memory: bool | None = None,  # noqa: ARG001
) -> torch.Tensor:
    return torch.empty_strided(size, stride, dtype=dtype, device="cpu")


def _no_wait(device: object = None) -> None:
    """Wait for nothing: what is called has been done."""


def _no_record(self: torch.Tensor, stream: object) -> None:
    """Do nothing."""


def _same(self: torch.Tensor, device: object = None) -> torch.Tensor:  # noqa: ARG001 - torch's signature
    return self


def _is_pinned(self: torch.Tensor, device: object = None) -> bool:  # noqa: ARG001 - torch's signature
    return False


def _register_for_cpu() -> None:
    """Register for the CPU what is registered for the NPU: tensors of the NPU are on the CPU."""
    register = torch.library.Library.impl
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key  # noqa: SLF001 - torch has no public one
    redirected: set[str] = set()

    @functools.wraps(register)
    def impl(
        self: torch.library.Library,
        op_name: Any,  # noqa: ANN401 - torch's signature
        fn: Any,  # noqa: ANN401
        dispatch_key: str = "",
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> object:
        if dispatch_key not in {"PrivateUse1", "CPU"}:
            return register(self, op_name, fn, dispatch_key, *args, **kwargs)  # type: ignore[no-untyped-call]
        name = op_name if isinstance(op_name, str) else op_name.name()
        name = f"{self.ns}::{name.rpartition('::')[2]}"
        if name in redirected or (dispatch_key == "PrivateUse1" and has_kernel(name, "CPU")):
            return None  # torch's own register one function for both
        if dispatch_key == "PrivateUse1":
            redirected.add(name)
        return register(self, op_name, fn, "CPU", *args, **kwargs)  # type: ignore[no-untyped-call]

    torch.library.Library.impl = impl  # type: ignore[method-assign]


def _forget_pinning() -> None:
    """Pin no memory: that needs hooks in C++, and every tensor is in the CPU's memory anyway."""

    def unpinned(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        @functools.wraps(function)
        def call(*args: object, **kwargs: object) -> torch.Tensor:
            kwargs.pop("pin_memory", None)
            relevant = (*args, *kwargs.values())
            if torch.overrides.has_torch_function(relevant):
                # A subclass or a mode compares what it is handed with the name in torch, which is this function now.
                return torch.overrides.handle_torch_function(call, relevant, *args, **kwargs)
            return function(*args, **kwargs)

        return call

    for name in _FACTORIES:
        setattr(torch, name, unpinned(getattr(torch, name)))
    for name in _METHODS:
        setattr(torch.Tensor, name, unpinned(getattr(torch.Tensor, name)))
    torch.Tensor.pin_memory = _same  # type: ignore[method-assign, assignment]
    torch.Tensor.is_pinned = _is_pinned  # type: ignore[method-assign, assignment]


def _count_integers() -> None:
    """Let torch.histc count integers, as an NPU's does and a CPU's does not; in bins of width 1 only."""
    of_floats = torch.histc

    def histc(
        input: torch.Tensor,  # noqa: A002 - torch's signature
        bins: int = 100,
        min: float = 0,  # noqa: A002
        max: float = 0,  # noqa: A002
        **kwargs: Any,  # noqa: ANN401
    ) -> torch.Tensor:
        if input.is_floating_point():
            return of_floats(input, bins, min, max, **kwargs)
        if min != 0 or max != bins or kwargs:
            msg = (
                f"torch.histc: bins {bins} from {min} to {max}; expected bins of width 1 from 0, for integers"
            )
            raise NotImplementedError(msg)
        flat = input.reshape(-1).long()
        inside = flat[(flat >= 0) & (flat <= max)].clamp(
            max=bins - 1
        )  # as for floats, max falls in the last bin
        return torch.bincount(inside, minlength=bins).to(input.dtype)

    torch.histc = histc  # type: ignore[assignment]
