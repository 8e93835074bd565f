# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What the plugin relies on in vllm-ascend beside hooks: how its layer asks for maps, and its options."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.version import Version

from harness.contract.source import SourceError, bindings, parameters
from vllm_ascend_moe import ascend, ascend_options, releases, upstream
from vllm_ascend_moe.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.contract.source import Sources
    from vllm_ascend_moe.upstream import Hook

LAYER_CALL = upstream.INIT_IN_LAYER
# What vllm-ascend calls what it passes, by position; ascend.py takes them by position too.
_ARGUMENTS = (
    ("eplb_config",),
    ("layer_id", "moe_instance_id", "moe_counter"),
    ("moe_config",),
)
# What each of the four results is stored as; part of the name.
_RESULTS = ("global_expert_map", "expert_map", "log2phy", "redundant")
_CONFIG = ("vllm_ascend.ascend_config", "EplbConfig", "_defaults")
# Options that vllm-ascend has from a version on. The plugin may write them only where the user asks for what
# they do, which older versions refuse by name.
SINCE = {"eplb_heat_collection_stage": ("0.23", "load_collection_phase is not 'all'")}


@dataclass
class Findings:
    """What one check found: counts, what is wrong, and what is absent but need not be there."""

    num_found: int = 0
    num_expected: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_layer(sources: Sources, hook: Hook, hooked: set[str]) -> Findings:
    """Check every call of `init_eplb_config` against what ascend.py takes and returns.

    Args:
        sources: of vllm-ascend.
        hook: the function by the name under which the layer calls it.
        hooked: the modules in which the plugin replaces it.
    """
    result = Findings()
    for module in sources.mentioning(hook.name):
        try:
            tree = sources.parse(module)
        except SourceError as error:
            result.problems.append(str(error))
            continue
        path = sources.path(module)
        if module not in hooked:
            result.problems += [
                f"{path}:{line}: takes {hook.name} under a name that the plugin does not replace; it does in "
                f"{', '.join(sorted(hooked))}"
                for line in _imports(tree, hook.name)
            ]
        for call, targets in _calls(tree, hook.name):
            result.num_found += 1
            where = f"{path}:{call.lineno}: {hook.name}"
            result.problems += [f"{where} {problem}" for problem in _misfits(sources, hook, call, targets)]
    path = sources.path(hook.module)
    if path is not None and not list(_calls(sources.parse(hook.module), hook.name)):
        result.problems.append(f"{path}: {hook.name} is never called under that name; expected the layer to")
    return result


def _imports(tree: ast.Module, name: str) -> Iterator[int]:
    """Yield the lines that import a name for good; in a function it is looked up anew at each call."""
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            yield node.lineno
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            nodes += ast.iter_child_nodes(node)


def _calls(tree: ast.Module, name: str) -> Iterator[tuple[ast.Call, ast.expr | None]]:
    """Yield every call, and what its result is assigned to."""
    assigned = {node.value: node.targets[0] for node in ast.walk(tree) if isinstance(node, ast.Assign)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _last_name(node.func) == name:
            yield node, assigned.get(node)


def _last_name(node: ast.expr) -> str:
    return ast.unparse(node).rpartition(".")[2]


def _misfits(sources: Sources, hook: Hook, call: ast.Call, targets: ast.expr | None) -> Iterator[str]:
    around = inspect.signature(ascend.around_init_eplb_config)
    keywords = [keyword.arg for keyword in call.keywords]
    if None in keywords or any(isinstance(argument, ast.Starred) for argument in call.args):
        yield "is called with arguments that the source does not show"
        return
    names = tuple(_last_name(argument) for argument in call.args)
    fits = [name in expected for name, expected in zip(names, _ARGUMENTS, strict=False)]
    if fits != [True] * len(_ARGUMENTS):
        expected = ", ".join(" or ".join(each) for each in _ARGUMENTS)
        yield f"is called with ({', '.join(names)}) by position; expected ({expected}) first"
    try:
        # None stands for the original, and for every value.
        around.bind(None, *(None for _ in names), **{str(keyword): None for keyword in keywords})
    except TypeError as error:
        yield f"is called so that the plugin's around_init_eplb_config cannot take it: {error}"
    yield from _reordered(sources, hook, tuple(around.parameters)[1 : len(names) + 1])
    yield from _unpacked(targets)


def _reordered(sources: Sources, hook: Hook, ours: tuple[str, ...]) -> Iterator[str]:
    """Say where what the layer passes by position means something else to the plugin."""
    try:
        signatures = [(each.where, parameters(each)) for each in sources.find(hook.module, hook.name)]
    except SourceError:
        # Said of the hook already.
        return
    for where, found in signatures:
        theirs = found[: len(ours)]
        if theirs != ours:
            yield f"takes by position ({', '.join(theirs)}) in {where}; the plugin takes ({', '.join(ours)})"


def _unpacked(targets: ast.expr | None) -> Iterator[str]:
    if not isinstance(targets, ast.Tuple):
        yield f"is not unpacked where it is called; expected {len(_RESULTS)} results"
        return
    names = [_last_name(target) for target in targets.elts]
    if len(names) != len(_RESULTS) or any(isinstance(target, ast.Starred) for target in targets.elts):
        yield f"is unpacked into {len(names)} ({', '.join(names)}); expected {len(_RESULTS)} results"
    elif not all(part in name for part, name in zip(_RESULTS, names, strict=True)):
        yield f"is unpacked into ({', '.join(names)}); expected ({', '.join(_RESULTS)}), in this order"


def written_options() -> tuple[str, ...]:
    """Return the options of vllm-ascend that the plugin's `ascend_options` may write, from its source."""
    tree = ast.parse(Path(ascend_options.__file__).read_text(encoding="utf-8"))
    (function,) = bindings(tree.body, "ascend_options")
    names = []
    for node in ast.walk(function):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            key = node.slice
            names.append(
                str(key.value if isinstance(key, ast.Constant) else getattr(ascend_options, ast.unparse(key)))
            )
    return tuple(dict.fromkeys(names))


def check_options(sources: Sources, version: str) -> Findings:
    """Check that vllm-ascend has the options that the plugin writes; it refuses any other."""
    options = written_options()
    result = Findings(num_expected=len(options))
    module, name, attribute = _CONFIG
    try:
        known = _keys(sources)
    except SourceError as error:
        result.problems.append(f"{error} (for {module}.{name}.{attribute})")
        return result
    by_default = ascend_options.ascend_options(Settings(), {}, releases.NEWEST, None)
    path = sources.path(module)
    for option in options:
        since, asked = SINCE.get(option, ("0", ""))
        if option in known:
            result.num_found += 1
        elif Version(version) >= Version(since):
            result.problems.append(
                f"{path}: {name} has no option {option}; it has {', '.join(sorted(known))}"
            )
        elif option in by_default:
            result.problems.append(f"{path}: {name} has no option {option}, which the plugin writes unasked")
        else:
            result.notes.append(
                f"{option} is not in this version (since {since}); the plugin writes it only where {asked}, "
                "and this version then refuses it by name"
            )
    return result


def _keys(sources: Sources) -> set[str]:
    module, name, attribute = _CONFIG
    keys: set[str] = set()
    for definition in sources.find(module, f"{name}.{attribute}"):
        node = definition.node
        value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
        if not isinstance(value, ast.Dict):
            msg = f"{definition.where}: expected a dict of options in {name}.{attribute}"
            raise SourceError(msg)
        keys |= {str(key.value) for key in value.keys if isinstance(key, ast.Constant)}
    return keys
