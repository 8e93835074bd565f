# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What the plugin relies on in vllm-ascend beside hooks: how its layer asks for maps, and its options."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness.contract.bindings import bindings
from harness.contract.source import SourceError, parameters
from vllm_ascend_moe.backends.ascend import answers as ascend
from vllm_ascend_moe.backends.ascend import options as ascend_options
from vllm_ascend_moe.core.settings import Settings
from vllm_ascend_moe.hooks import table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.contract.source import Sources
    from vllm_ascend_moe.releases import Release

_ASKED = table.INIT_EPLB_CONFIG
# What vllm-ascend calls what it passes, by position; ascend.py takes them by position too.
_ARGUMENTS = (
    ("eplb_config", "placement_eplb_config"),
    ("layer_id", "moe_instance_id", "moe_counter"),
    ("moe_config", "placement_moe_config"),
)
# What each of the four results is stored as; part of the name.
_RESULTS = ("global_expert_map", "expert_map", "log2phy", "redundant")
_CONFIG = ("vllm_ascend.ascend_config", "EplbConfig", "_defaults")
# An option that not every release has. The plugin may write it only where the user asks for what it does, which a
# release without it is told apart by, in the table.
_STAGE = ("eplb_heat_collection_stage", "load_collection_phase is not 'all'")


@dataclass
class Findings:
    """What one check found: counts, what is wrong, and what is absent but need not be there."""

    num_found: int = 0
    num_expected: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_layer(sources: Sources, row: Release) -> Findings:
    """Check every call of `init_eplb_config` against what ascend.py takes and returns.

    Args:
        sources: of vllm-ascend.
        row: of the table, with the modules in which the plugin replaces the function.
    """
    result = Findings()
    hooked = {_ASKED.module, *row.layers}
    for module in sources.mentioning(_ASKED.name):
        try:
            tree = sources.parse(module)
        except SourceError as error:
            result.problems.append(str(error))
            continue
        path = sources.path(module)
        if module not in hooked:
            result.problems += [
                f"{path}:{line}: takes {_ASKED.name} under a name that the plugin does not replace; it does in "
                f"{', '.join(sorted(hooked))}"
                for line in _imports(tree, _ASKED.name)
            ]
        for call, targets in _calls(tree, _ASKED.name):
            result.num_found += 1
            where = f"{path}:{call.lineno}: {_ASKED.name}"
            result.problems += [f"{where} {problem}" for problem in _misfits(sources, call, targets)]
    for module in row.layers:
        path = sources.path(module)
        if path is not None and not list(_calls(sources.parse(module), _ASKED.name)):
            result.problems.append(
                f"{path}: {_ASKED.name} is never called under that name; expected the layer to"
            )
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


def _misfits(sources: Sources, call: ast.Call, targets: ast.expr | None) -> Iterator[str]:
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
    yield from _reordered(sources, tuple(around.parameters)[1 : len(names) + 1])
    yield from _unpacked(targets)


def _reordered(sources: Sources, ours: tuple[str, ...]) -> Iterator[str]:
    """Say where what the layer passes by position means something else to the plugin."""
    try:
        signatures = [(each.where, parameters(each)) for each in sources.find(_ASKED.module, _ASKED.name)]
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


def check_options(sources: Sources, row: Release) -> Findings:
    """Check that vllm-ascend has the options that the plugin writes; it refuses any other."""
    options = written_options()
    result = Findings(num_expected=len(options))
    module, name, attribute = _CONFIG
    try:
        known = option_defaults(sources)
    except SourceError as error:
        result.problems.append(f"{error} (for {module}.{name}.{attribute})")
        return result
    by_default = ascend_options.ascend_options(Settings(), {}, row, None)
    path = sources.path(module)
    for option in options:
        if option in known:
            result.num_found += 1
        elif option != _STAGE[0] or row.has_heat_stage:
            result.problems.append(
                f"{path}: {name} has no option {option}; it has {', '.join(sorted(known))}"
            )
        elif option in by_default:
            result.problems.append(f"{path}: {name} has no option {option}, which the plugin writes unasked")
        else:
            result.notes.append(
                f"{option} is not in this version; the plugin writes it only where {_STAGE[1]}, and refuses that here"
            )
    return result


def option_defaults(sources: Sources) -> dict[str, object]:
    """Return vllm-ascend's EPLB options with their defaults: a dict in old releases, fields in new ones.

    Raises:
        SourceError: they are not written as in any release so far.
    """
    module, name, attribute = _CONFIG
    (config,) = sources.find(module, name)
    assert isinstance(config.node, ast.ClassDef)
    found = bindings(config.node.body, attribute)
    if not found:
        fields = [node for node in config.node.body if isinstance(node, ast.AnnAssign)]
        if fields:
            return {ast.unparse(node.target): _value(node.value) for node in fields}
        msg = f"{config.where}: class {name} has no {attribute}, nor fields"
        raise SourceError(msg)
    defaults: dict[str, object] = {}
    for node in found:
        value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
        if not isinstance(value, ast.Dict):
            msg = f"{config.where}: expected a dict of options in {name}.{attribute}"
            raise SourceError(msg)
        pairs = zip(value.keys, value.values, strict=True)
        defaults |= {str(key.value): _value(each) for key, each in pairs if isinstance(key, ast.Constant)}
    return defaults


def _value(node: ast.expr | None) -> object:
    return node.value if isinstance(node, ast.Constant) else node
