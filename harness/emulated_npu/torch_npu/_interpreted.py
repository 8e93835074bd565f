# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A Triton that is there: vLLM's and vllm-ascend's own kernels, run by Triton's interpreter on the CPU.

Where the environment asks for it (`EMULATED_NPU_TRITON`), because vllm-ascend's runner V2 launches kernels at every step.
A kernel that is given in plain torch (`kernels`) is run by that: the interpreter takes milliseconds for each program.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from torch_npu import _names, kernels
from torch_npu._imports import AfterImport, ImportedOnly, add_module, find_first

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_EXTENSION = "triton.language.extra.cann"
# What triton-ascend has beside Triton's own language.
_ONLY_ASCEND = ("extract_slice", "get_element", "insert_slice")
# As an Ascend910B3 has them.
_CORES = {"num_aicore": 20, "num_vectorcore": 40}


class _Utils:
    """What triton-ascend's driver knows of a device."""

    @staticmethod
    def get_device_properties(device: object) -> dict[str, int]:  # noqa: ARG004 - triton-ascend's
        """Return the number of its cores."""
        return dict(_CORES)


class _Driver:
    """What is asked of triton-ascend's driver."""

    utils = _Utils

    def get_current_device(self) -> int:
        """Return the only one."""
        return 0

    def get_current_target(self) -> Any:  # noqa: ANN401 - Triton's
        """Return what kernels would be compiled for."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("npu", "Ascend910B3", 0)

    def get_device_interface(self) -> Any:  # noqa: ANN401 - a module
        """Return torch.npu."""
        return torch.npu  # type: ignore[attr-defined]

    def get_active_torch_device(self) -> torch.device:
        """Return where tensors are."""
        return torch.device("cpu")


def install() -> None:
    """Let vLLM find a Triton, and interpret its kernels.

    Raises:
        ImportError: there is no Triton.
    """
    os.environ["TRITON_INTERPRET"] = "1"
    import triton
    from triton.runtime.interpreter import InterpretedFunction

    kernels.load()
    triton.runtime.driver.set_active(_Driver())
    _take_any_size()
    add_module(_EXTENSION)
    names = {name: ImportedOnly(f"{_EXTENSION}.extension.{name}") for name in _ONLY_ASCEND}
    add_module(f"{_EXTENSION}.extension", **names)
    InterpretedFunction.run = _given_first(InterpretedFunction.run)
    find_first(AfterImport("vllm.triton_utils.importing", _is_there))


def _is_there(module: Any) -> None:  # noqa: ANN401 - vLLM's module
    # It looks for a device of Triton's own.
    module.HAS_TRITON = True


def _take_any_size() -> None:
    """Take ranges and shapes that are no powers of two, as triton-ascend does."""
    import triton._utils
    import triton.language as tl
    from triton.language.semantic import TritonSemantic

    def arange(self: Any, start: int, end: int, *, ret_ty: Any = None) -> Any:  # noqa: ANN401 - Triton's
        ret_ty = ret_ty or tl.block_type(tl.int32, [end - start])
        return self.tensor(self.builder.create_make_range(ret_ty.to_ir(self.builder), start, end), ret_ty)

    triton._utils.is_power_of_two = lambda _: True  # noqa: SLF001 - there is no public switch
    TritonSemantic.arange = arange


def _given_first(interpret: Callable[..., Any]) -> Callable[..., Any]:
    """Run a kernel in plain torch where there is one, else interpret it."""

    def run(self: Any, *args: Any, grid: Sequence[int] | Callable[..., Any], **kwargs: Any) -> Any:  # noqa: ANN401 - Triton's
        name = self.__name__
        _names.used(f"triton.{name}")
        if name not in kernels.GIVEN:
            return interpret(self, *args, grid=grid, **kwargs)
        return kernels.launch(name, self.arg_names, grid, *args, **kwargs)

    return run
