# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How an op is called: torch_npu's on an NPU, a kernel or the plain-torch twin elsewhere, by one signature."""

from __future__ import annotations

import contextlib
import functools
import inspect
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

import torch

from vllm_ascend_moe.npu_ops.kernels import have_kernels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

P = ParamSpec("P")
R = TypeVar("R")

# Whether calls go to torch.ops.npu whatever the device: the emulated device and the contract set it.
_registered: ContextVar[bool] = ContextVar("registered", default=False)

# Whether twins run where kernels could.
_twins: ContextVar[bool] = ContextVar("twins", default=False)

OPS: dict[str, Op[..., Any]] = {}


class Op(Generic[P, R]):
    """An op of torch_npu.

    Called with tensors on an NPU it is `torch.ops.npu.<name>`, which torch_npu registers when it is
    loaded (and a tensor cannot be on an NPU before that); this module never imports torch_npu. With tensors
    on a CPU it is the fast function, if there is one, with any others the twin. Either way it takes the
    schema's arguments: those that the twin does not have may be passed with their default, or None where the
    schema takes it, and are refused with another value.

    Attributes:
        name: torch_npu's name.
        schema: torch_npu's schema, as its newest tested wheel declares it.
        twin: the plain-torch function.
        fast: the same for tensors on a CPU; None where the twin is fast enough.
        needs_kernel: whether the fast function needs a kernel, which not every installation has.
    """

    def __init__(self, schema: str, twin: Callable[P, R]) -> None:
        """Name the op after its schema."""
        self.name = schema.partition("(")[0]
        self.schema = schema
        self.twin = twin
        # Once and of this twin: tests put others in its place, whose parameters must not stay behind.
        self._twin_parameters = frozenset(inspect.signature(twin).parameters)
        self.fast: Callable[P, R] | None = None
        self.needs_kernel = False
        self.__doc__ = twin.__doc__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the op where its first tensor is."""
        if _registered.get() or _device_type(args[0]) == "npu":
            result: R = getattr(torch.ops.npu, self.name)(*args, **kwargs)
            return result
        fits = can_use_kernel if self.needs_kernel else is_on_cpu
        if self.fast is not None and fits(args[0]):
            return self.fast(*args, **self._known(kwargs))
        return self.run_twin(*args, **kwargs)

    def on_cpu(self, fast: Callable[P, R]) -> Callable[P, R]:
        """Make a function, of the twin's signature, the one for tensors on a CPU."""
        self.fast = fast
        return fast

    def by_kernel(self, fast: Callable[P, R]) -> Callable[P, R]:
        """Do the same with a function that calls a kernel; where there are none the twin serves."""
        self.needs_kernel = True
        return self.on_cpu(fast)

    def run_twin(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the twin with arguments of the schema.

        Raises:
            ValueError: an argument that the twin does not have is not at its default.
            TypeError: the schema has no such argument.
        """
        return self.twin(*args, **self._known(kwargs))

    def _known(self, kwargs: Any) -> Any:  # noqa: ANN401 - P's keyword arguments, fewer of them
        if kwargs.keys() <= self._twin_parameters:
            return kwargs
        for name in sorted(kwargs.keys() - self._twin_parameters):
            self._require_default(name, kwargs[name])
        return {name: value for name, value in kwargs.items() if name in self._twin_parameters}

    @functools.cached_property
    def __signature__(self) -> inspect.Signature:
        """torch_npu's signature, from the schema."""
        schema = torch._C.parse_schema(f"npu::{self.schema}")  # noqa: SLF001 - torch has no public parser
        return inspect.Signature(
            [
                inspect.Parameter(
                    argument.name,
                    inspect.Parameter.KEYWORD_ONLY
                    if argument.kwarg_only
                    else inspect.Parameter.POSITIONAL_OR_KEYWORD,
                    default=argument.default_value
                    if argument.has_default_value()
                    else inspect.Parameter.empty,
                )
                for argument in schema.arguments
            ]
        )

    @functools.cached_property
    def _optional(self) -> frozenset[str]:
        """Arguments that take None, which then means their default."""
        schema = torch._C.parse_schema(f"npu::{self.schema}")  # noqa: SLF001 - as above
        return frozenset(a.name for a in schema.arguments if isinstance(a.type, torch.OptionalType))

    def _require_default(self, name: str, value: object) -> None:
        parameter = self.__signature__.parameters.get(name)
        if parameter is None:
            msg = f"{self.name}() got an unexpected keyword argument {name!r}"
            raise TypeError(msg)
        optional = name in self._optional
        if isinstance(value, torch.Tensor) or (
            value != parameter.default and not (optional and value is None)
        ):
            shown = "a tensor" if isinstance(value, torch.Tensor) else value
            expected = f"{parameter.default!r}, its default; the plain-torch twin does nothing else"
            raise refuse(self.name, name, shown, expected)

    def __repr__(self) -> str:
        """Name the op."""
        return f"<op {self.name}>"


def op(schema: str) -> Callable[[Callable[P, R]], Op[P, R]]:
    """Make a twin the op of that schema."""

    def decorate(twin: Callable[P, R]) -> Op[P, R]:
        made = Op(schema, twin)
        OPS[made.name] = made
        return made

    return decorate


@contextlib.contextmanager
def registered_ops() -> Iterator[None]:
    """Send every call to `torch.ops.npu`, where something else than torch_npu has registered the ops."""
    token = _registered.set(True)
    try:
        yield
    finally:
        _registered.reset(token)


@contextlib.contextmanager
def twins_only() -> Iterator[None]:
    """Run the plain-torch twins where a kernel could be used."""
    token = _twins.set(True)
    try:
        yield
    finally:
        _twins.reset(token)


def can_use_kernel(tensor: object) -> bool:
    """Return whether a kernel for a CPU can read a tensor, and there are kernels."""
    return is_on_cpu(tensor) and have_kernels()


def is_on_cpu(tensor: object) -> bool:
    """Return whether a tensor is a real one on a CPU, of which no graph is being made, and twins are not asked for."""
    return (
        type(tensor) is torch.Tensor
        and tensor.is_cpu
        and not _registered.get()
        and not _twins.get()
        and not torch.compiler.is_compiling()
    )


def _device_type(first: object) -> str:
    tensor = first[0] if isinstance(first, (list, tuple)) else first
    return tensor.device.type if isinstance(tensor, torch.Tensor) else "cpu"


def refuse(op_name: str, quantity: str, value: object, expected: str) -> ValueError:
    """Return the error for an argument that a twin does not take."""
    return ValueError(f"{op_name}: {quantity} is {value}; expected {expected}")
