# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Compare call sites and twins with the schemas of several versions."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from harness.contract.calls import CallSite
    from harness.contract.wheels import Wheel
    from vllm_ascend_moe.npu_ops.ops import Op

# Arguments that newer versions have and older ones lack, so that a call cannot name them; with the default
# that stands for what the older versions do. A changed default fails.
REVIEWED_ADDITIONS: dict[tuple[str, str], object] = {
    ("npu_dynamic_quant", "quant_mode"): "pertoken",
    ("npu_dynamic_quant", "dst_type_max"): 0.0,
}
# Limits that the plugin enforces, as the documentation of each version must still name them.
DOCUMENTED = {
    "npu_moe_gating_top_k": ("2048",),
    "npu_moe_init_routing_v2": ("10240",),
    "npu_grouped_matmul": ("128", "65536"),
}


def check_calls(calls: Sequence[CallSite], wheels: Sequence[Wheel]) -> list[str]:
    """Return what is wrong with the calls: each must hold, and mean the same, in every version."""
    problems = []
    for call in calls:
        schemas = {}
        for wheel in wheels:
            schema = wheel.schema(call.name)
            if schema is None:
                problems.append(f"{call.where}: torch_npu {wheel.version} has no op {call.name}")
            else:
                schemas[wheel.version] = schema
                problems += [
                    f"{call.where}: {call.name} of torch_npu {wheel.version}: {problem}"
                    for problem in _misfits(call, schema)
                ]
        problems += [f"{call.where}: {call.name}: {problem}" for problem in _drift(call, schemas)]
    return problems


def _misfits(call: CallSite, schema: Any) -> Iterator[str]:  # noqa: ANN401 - torch's schema has no public type
    positional = [argument for argument in schema.arguments if not argument.kwarg_only]
    if call.num_positional > len(positional):
        yield f"{call.num_positional} arguments by position; expected at most {len(positional)}"
    by_position = {argument.name for argument in positional[: call.num_positional]}
    names = {argument.name for argument in schema.arguments}
    for keyword in sorted(call.keywords):
        if keyword not in names:
            yield f"keyword {keyword!r}; expected one of {', '.join(sorted(names))}"
        elif keyword in by_position:
            yield f"{keyword!r} is given by position and by keyword"
    for argument in schema.arguments:
        given = argument.name in call.keywords or argument.name in by_position
        if not given and not argument.has_default_value():
            yield f"{argument.name!r} is missing; it has no default"


def _drift(call: CallSite, schemas: Mapping[str, Any]) -> Iterator[str]:
    """Name arguments left to defaults that are not the same everywhere."""
    defaults: dict[str, dict[str, object]] = {}
    for version, schema in schemas.items():
        for index, argument in enumerate(schema.arguments):
            by_position = index < call.num_positional and not argument.kwarg_only
            if not by_position and argument.name not in call.keywords and argument.has_default_value():
                defaults.setdefault(argument.name, {})[version] = argument.default_value
    for name, by_version in defaults.items():
        values = list(by_version.values())
        shown = ", ".join(f"{value!r} in {version}" for version, value in by_version.items())
        if any(value != values[0] for value in values):
            yield f"{name!r} is left to its default, which drifts: {shown}; pass it"
        elif len(by_version) < len(schemas) and values[0] is not None:
            reviewed = REVIEWED_ADDITIONS.get((call.name, name), NotImplemented)
            if reviewed != values[0]:
                yield f"{name!r} is not in every version and defaults to {shown}; expected a reviewed default"


def check_twins(ops: Mapping[str, Op[..., Any]], wheels: Sequence[Wheel]) -> list[str]:
    """Return what is wrong with the twins' signatures; the last wheel is the newest."""
    problems = []
    for name, op in ops.items():
        newest = wheels[-1].schema(name)
        if newest is None:
            problems.append(f"{name}: torch_npu {wheels[-1].version} has no such op")
            continue
        if _normalise(op.schema) != _normalise(wheels[-1].schemas[name]):
            problems.append(
                f"{name}: the recorded schema is {op.schema}; torch_npu {wheels[-1].version} has "
                f"{wheels[-1].schemas[name]}"
            )
        problems += [f"{name}: twin: {problem}" for problem in _twin_misfits(op.twin, newest)]
        for wheel in wheels[:-1]:
            schema = wheel.schema(name)
            names = set() if schema is None else {argument.name for argument in schema.arguments}
            # What a twin takes, older versions must take too; the first argument goes by position.
            surplus = [
                parameter
                for parameter in list(inspect.signature(op.twin).parameters)[1:]
                if parameter not in names
            ]
            problems += [
                f"{name}: twin: torch_npu {wheel.version} has no {parameter!r}" for parameter in surplus
            ]
    return problems


def _twin_misfits(twin: Any, schema: Any) -> Iterator[str]:  # noqa: ANN401 - any op's function and schema
    arguments = {argument.name: argument for argument in schema.arguments}
    order = list(arguments)
    parameters = inspect.signature(twin).parameters
    if [name for name in order if name in parameters] != list(parameters):
        yield f"parameters are {', '.join(parameters)}; expected names and order of {', '.join(order)}"
        return
    for name, parameter in parameters.items():
        argument = arguments[name]
        if argument.kwarg_only != (parameter.kind is inspect.Parameter.KEYWORD_ONLY):
            yield f"{name!r} is {parameter.kind.description}; expected {'' if argument.kwarg_only else 'not '}keyword-only"
        has_default = parameter.default is not inspect.Parameter.empty
        if has_default != argument.has_default_value():
            yield f"{name!r} {'has a' if has_default else 'has no'} default; expected the opposite"
        elif has_default and not _equal(parameter.default, argument.default_value):
            yield f"{name!r} defaults to {parameter.default!r}; expected {argument.default_value!r}"


def _equal(ours: object, theirs: object) -> bool:
    if isinstance(ours, tuple):
        return list(ours) == theirs
    return ours == theirs and isinstance(ours, bool) == isinstance(theirs, bool)


def _normalise(schema: str) -> str:
    return schema.replace("'", '"').replace(" ", "")


def check_limits(wheels: Sequence[Wheel]) -> list[str]:
    """Return the limits that a version's documentation does not name any more."""
    problems = []
    for wheel in wheels:
        for name, numbers in DOCUMENTED.items():
            start = wheel.docs.find(f'{name}",')
            text = (
                wheel.docs[start : wheel.docs.find("_add_torch_npu_docstr(", start + 1)] if start >= 0 else ""
            )
            problems += [
                f"{name}: the documentation of torch_npu {wheel.version} does not name the limit {number}"
                for number in numbers
                if number not in text
            ]
    return problems
