# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Putting functions around vLLM's and vllm-ascend's, setting them back, and noting whether they were called.

A hook replaces a function by one that calls it. Before that the names of its parameters are compared with
those that the plugin relies on; where one is missing, nothing is installed and the start is refused. What the
hooks do is written elsewhere (`frontend`, `backends`); this module only puts it in place.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
from typing import TYPE_CHECKING, Any

from packaging.version import InvalidVersion, Version

from expert_maps import ExpertMapsError
from vllm_ascend_moe import releases
from vllm_ascend_moe.core.activation import vllm_version
from vllm_ascend_moe.hooks import table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vllm_ascend_moe.hooks.table import Hook
    from vllm_ascend_moe.releases import Release


# What importing fails with where a device's libraries are missing.
IMPORT_ERRORS = (ImportError, OSError, RuntimeError)

_MARK = "_vllm_ascend_moe_wraps"


# Which hooks vLLM has called since `forget_calls`.
_called: set[Hook] = set()
# What `restore` sets back: owner, attribute and vLLM's own value.
_replaced: list[tuple[Any, str, Any]] = []


class UpstreamError(ExpertMapsError):
    """vLLM or vllm-ascend is not as the plugin knows it; the message names what was found and expected."""


def check_versions(*, ascend: bool) -> None:
    """Refuse a version that the hooks were not checked against; beside vllm-ascend, a pair that is not in the table.

    Raises:
        UpstreamError: see the class.
    """
    found = vllm_version()
    problem = releases.problem(vllm_ascend_version(), found) if ascend else _vllm_problem(found)
    if problem is not None:
        msg = (
            f"{problem}. Install one of these, or leave out expert_maps and VLLM_ASCEND_MOE_ENABLED to serve without "
            "the plugin"
        )
        raise UpstreamError(msg)


def _vllm_problem(found: str | None) -> str | None:
    try:
        # A build's local part (+cpu) says nothing of the source.
        fits = found is not None and Version(Version(found).public) in releases.VLLM
    except InvalidVersion:
        fits = False
    return None if fits else f"found vLLM {found}; vllm-ascend-moe supports {releases.VLLM}"


def vllm_ascend_version() -> str | None:
    """Return the version of vllm-ascend; None where it is not installed."""
    try:
        return importlib.metadata.version("vllm-ascend")
    except importlib.metadata.PackageNotFoundError:
        return None


def vllm_ascend_release() -> Release:
    """Return what the plugin knows of the vllm-ascend that is installed.

    Raises:
        UpstreamError: nothing.
    """
    found = vllm_ascend_version()
    release = releases.find(found)
    if release is None:
        raise UpstreamError(releases.problem(found, vllm_version()))
    return release


def problems(hooks: Iterable[Hook]) -> Iterator[str]:
    """Say of each hook what is not as the plugin relies on it; nothing where all is well."""
    for hook in hooks:
        try:
            function = _find(hook)[2]
            found = tuple(inspect.signature(function).parameters)
        except (AttributeError, SyntaxError, TypeError, ValueError, *IMPORT_ERRORS) as error:
            # TypeError and ValueError: what is there is no function, or shows no signature.
            yield f"{hook} is not there ({type(error).__name__}: {error})"
            continue
        if tuple(name for name in found if name in hook.parameters) != hook.parameters:
            expected = ", ".join(hook.parameters)
            yield f"{hook} has the parameters ({', '.join(found)}); expected ({expected}) among them"


def check_hooks(hooks: Iterable[Hook]) -> None:
    """Refuse to install anything where one hook does not fit.

    Raises:
        UpstreamError: see the class; every misfit is named.
    """
    found = list(problems(hooks))
    if found:
        msg = (
            f"vLLM {vllm_version()} is not as vllm-ascend-moe expects (supported: {releases.VLLM}, or a pair of "
            f"`vllm-ascend-moe releases`): {'; '.join(found)}"
        )
        raise UpstreamError(msg)


def _find(hook: Hook) -> tuple[Any, str, Callable[..., Any]]:
    """Return the owner, the attribute and the function."""
    owner: Any = importlib.import_module(hook.module)
    *path, attribute = hook.name.split(".")
    for part in path:
        owner = getattr(owner, part)
    return owner, attribute, getattr(owner, attribute)


def original(hook: Hook) -> Callable[..., Any]:
    """Return vLLM's function, whatever has been put around it."""
    function = _find(hook)[2]
    return getattr(function, _MARK, function)


def call(hook: Hook, *args: Any) -> Any:
    """Call vLLM's function."""
    return original(hook)(*args)


def wrap(hook: Hook, around: Callable[..., Any]) -> None:
    """Put a function around vLLM's: ``around(original, *args, **kwargs)``.

    A second time, in the same process, it replaces what the first put there.
    """
    owner, attribute, function = _find(hook)
    inner = getattr(function, _MARK, function)

    @functools.wraps(inner)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        _called.add(hook)
        return around(inner, *args, **kwargs)

    setattr(wrapper, _MARK, inner)
    replace(owner, attribute, wrapper, keep=hook in table.WATCHED)


def forget_calls() -> None:
    """Begin anew to note which hooks are called; before a model is loaded."""
    _called.clear()


def require_called(*hooks: Hook) -> None:
    """Refuse to serve where one of some hooks was not called while the model was loaded.

    That a function is there, with the parameters that are relied on, does not say that vLLM gets there: another model
    runner may have a function of its own.

    Raises:
        UpstreamError: none of them was; the message names them.
    """
    if _called.isdisjoint(hooks):
        msg = (
            f"{' or '.join(map(str, hooks))} was never called while the model was loaded; expected it: this engine takes "
            f"a way through vLLM {vllm_version()} that vllm-ascend-moe does not know (another model runner, a loader of "
            "its own), and its placement would not be served. Leave that out, or leave out expert_maps"
        )
        raise UpstreamError(msg)


def replace(owner: Any, attribute: str, value: object, *, keep: bool = False) -> None:
    """Set an attribute of vLLM's, such that `restore` sets it back unless it is kept."""
    if not keep and not any(entry[:2] == (owner, attribute) for entry in _replaced):
        function = getattr(owner, attribute)
        _replaced.append((owner, attribute, getattr(function, _MARK, function)))
    setattr(owner, attribute, value)


def restore() -> None:
    """Set back what an engine that was active in this process has replaced; what watches stays."""
    while _replaced:
        owner, attribute, value = _replaced.pop()
        setattr(owner, attribute, value)
