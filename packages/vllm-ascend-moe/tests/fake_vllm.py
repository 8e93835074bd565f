# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A stand-in for vLLM: modules in `sys.modules` with the functions that the plugin's hooks name, and no more."""

from __future__ import annotations

import importlib.machinery
import inspect
import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from vllm_ascend_moe.core.activation import leave_resolved
from vllm_ascend_moe.hooks import table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import pytest

    from vllm_ascend_moe.core.activation import Activation

HOOKS = (*table.WATCHED, table.STOP_TIMEOUT, *table.EPLB, *table.CPU)


def function(name: str, parameters: Iterable[str]) -> Callable[..., Any]:
    """Make a function with these parameters, which returns what it was called with."""

    def called(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever is passed
        return name, args, kwargs

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(parameter, kind) for parameter in parameters])
    called.__signature__ = signature  # type: ignore[attr-defined]
    called.__name__ = called.__qualname__ = name
    return called


def without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide a vLLM that may be installed: importing it fails, and it is not found."""
    _forget(monkeypatch)
    monkeypatch.setitem(sys.modules, "vllm", None)


def install(
    monkeypatch: pytest.MonkeyPatch,
    hooks: Iterable[table.Hook] = HOOKS,
    *,
    version: str = "0.32.0+cpu",
    platform: str = "cpu",
) -> None:
    """Put a vLLM in place with these functions.

    Args:
        monkeypatch: takes all of it away again.
        hooks: the functions, each with the parameters that the hook names.
        version: vLLM's word of its version.
        platform: ``cpu``, ``cuda``, ``rocm``, ``xpu``, ``tpu`` or ``ascend`` (vllm-ascend's).
    """
    _forget(monkeypatch)
    _module(monkeypatch, "vllm")
    vars(_module(monkeypatch, "vllm.version"))["__version__"] = version
    vars(_module(monkeypatch, "vllm.platforms"))["current_platform"] = _platform(platform)
    for hook in hooks:
        replace(monkeypatch, hook, function(hook.name, hook.parameters))


def config(
    activation: Activation,
    *,
    num_experts: int,
    device: str,
    load_format: str,
    digest: str | None = None,
    **parallel: object,
) -> SimpleNamespace:
    """Return vLLM's configuration as a front end has left it for the other processes.

    Args:
        activation: what it has decided.
        num_experts: of the model.
        device: its type.
        load_format: vLLM's.
        digest: of the placement.
        parallel: more of what is in `parallel_config`.
    """
    sizes = {"tensor_parallel_size": 1, "data_parallel_size": 1, "worker_extension_cls": ""}
    made = SimpleNamespace(
        additional_config={},
        parallel_config=SimpleNamespace(**sizes, **parallel),
        model_config=SimpleNamespace(
            get_num_experts=lambda: num_experts, model="tiny", served_model_name="tiny"
        ),
        device_config=SimpleNamespace(device_type=device),
        load_config=SimpleNamespace(load_format=load_format),
    )
    leave_resolved(made, activation, digest)
    return made


def replace(monkeypatch: pytest.MonkeyPatch, hook: table.Hook, value: object) -> None:
    """Put something where a hook's function is looked for; classes on the way are made."""
    owner: Any = _module(monkeypatch, hook.module)
    *path, attribute = hook.name.split(".")
    for part in path:
        if not hasattr(owner, part):
            setattr(owner, part, type(part, (), {}))
        owner = getattr(owner, part)
    setattr(owner, attribute, value)


def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] in {"vllm", "vllm_ascend"}:
            monkeypatch.delitem(sys.modules, name)


def _module(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    """Return a module of this name; its parents are made with it."""
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    # Nothing more is found inside: a module that is not here does not exist.
    module.__path__ = []
    monkeypatch.setitem(sys.modules, name, module)
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(_module(monkeypatch, parent), last, module)
    return module


def _platform(name: str) -> object:
    def answer(*names: str) -> Callable[[object], bool]:
        return lambda _: name in names

    methods = {
        "device_type": "npu" if name == "ascend" else name,
        "is_cpu": answer("cpu"),
        "is_cuda_alike": answer("cuda", "rocm"),
        "is_xpu": answer("xpu"),
        "__module__": "vllm_ascend.platform" if name == "ascend" else f"vllm.platforms.{name}",
    }
    return type("Platform", (), methods)()
