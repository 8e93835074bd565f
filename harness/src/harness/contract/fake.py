# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Run the layer on fake tensors through one version's schemas and shape functions: `python -m … WHEEL`.

A process of its own for each version, because schemas are registered for good. Of the wheel's shape
functions only those of the plugin's ops are compiled, with what they refer to; torch_npu itself, which
cannot be imported here, is a stand-in that has its constants.
"""

from __future__ import annotations

import ast
import json
import math
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.contract.wheels import Wheel, read
from vllm_ascend_moe.npu_ops import ops
from vllm_ascend_moe.npu_ops.experts import ExpertWeights, apply_experts
from vllm_ascend_moe.npu_ops.ops import OPS, Op, registered_ops, twins_only
from vllm_ascend_moe.npu_ops.routing import RoutingConfig, select_experts

if TYPE_CHECKING:
    from collections.abc import Iterator

# Numbers of torch_npu's own dtypes, as its shape functions compare them.
_STAND_IN = {
    "int4": 285,
    "hifloat8": 290,
    "float8_e5m2": 291,
    "float8_e4m3fn": 292,
    "float4_e2m1fn_x2": 296,
    "float4_e1m2fn_x2": 297,
}

Record = list[tuple[str, list[tuple[list[int], str]]]]


def register(wheel: Wheel, names: tuple[str, ...]) -> None:
    """Define the ops by the wheel's schemas, with the wheel's shape functions; until the process ends."""
    library = torch.library.Library("npu", "DEF")  # type: ignore[no-untyped-call]
    for name in names:
        library.define(wheel.schemas[name])  # type: ignore[no-untyped-call]
    functions = compile_shape_functions(wheel.shape_functions, names)
    for name in names:
        if name not in functions:
            msg = f"no shape function for {name}"
            raise LookupError(msg)
        library.impl(name, functions[name], "Meta")  # type: ignore[no-untyped-call]
    _kept.append(library)


_kept: list[Any] = []


def compile_shape_functions(source: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the shape functions of the ops, compiled alone with the module's helpers and constants."""
    found: dict[str, str] = {}
    body: list[ast.stmt] = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            registered = {name for decorator in node.decorator_list for name in _registered_name(decorator)}
            if node.decorator_list and not registered & set(names):
                continue
            found |= dict.fromkeys(
                registered & set(names), f"_shape_{len(body)}" if node.decorator_list else node.name
            )
            if node.decorator_list:
                node.name = f"_shape_{len(body)}"
            node.decorator_list = []
            node.returns = None
            body.append(node)
        elif isinstance(node, ast.Assign) and not any(
            isinstance(part, ast.Call) for part in ast.walk(node.value)
        ):
            body.append(node)
    scope: dict[str, Any] = {
        "torch": torch,
        "math": math,
        "torch_npu": types.SimpleNamespace(**_STAND_IN),
        "ErrCode": _AnyName(),
        "ops_error": lambda code: f" [{code}]",
    }
    module = ast.fix_missing_locations(ast.Module(body=body, type_ignores=[]))
    exec(compile(module, "shape functions of torch_npu", "exec", flags=0), scope)  # noqa: S102 - a pinned wheel's own code, without its imports
    return {name: scope[function] for name, function in found.items()}


class _AnyName:
    def __getattr__(self, name: str) -> str:
        return name


def _registered_name(decorator: ast.expr) -> Iterator[str]:
    """Yield the op's name from ``@impl(m, "name")``."""
    if isinstance(decorator, ast.Call) and len(decorator.args) > 1:
        library, name = decorator.args[:2]
        if isinstance(library, ast.Name) and library.id == "m" and isinstance(name, ast.Constant):
            yield str(name.value)


def scenarios() -> Iterator[dict[str, Any]]:
    """Yield every kind of layer that the plugin makes."""
    routings = (
        RoutingConfig(64, 8),
        RoutingConfig(64, 8, renormalize=False, routed_scaling_factor=2.5),
        RoutingConfig(64, 6, "softmax", False, 8, 3, 16.0),  # noqa: FBT003 - DeepSeek-V2's
        RoutingConfig(256, 8, "sigmoid", True, 8, 4, 2.5),  # noqa: FBT003 - DeepSeek-V3's
        RoutingConfig(128, 8, "sigmoid", renormalize=False),
        RoutingConfig(16, 1),
    )
    for routing in routings:
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            for quantised in (False, True):
                if quantised and dtype == torch.float32:
                    continue
                for num_tokens, slots in ((1, 8), (7, 1), (33, routing.num_experts)):
                    yield {
                        "routing": routing,
                        "dtype": dtype,
                        "quantised": quantised,
                        "num_tokens": num_tokens,
                        "slots": slots,
                        "bias": routing.scoring_func == "sigmoid",
                    }


def run_layer(scenario: dict[str, Any]) -> torch.Tensor:
    """Run router and experts once, on tensors of whatever mode is active."""
    routing: RoutingConfig = scenario["routing"]
    dtype, slots, tokens = scenario["dtype"], scenario["slots"], scenario["num_tokens"]
    hidden, intermediate = 32, 24
    bias = torch.zeros(routing.num_experts) if scenario["bias"] else None
    weights, ids = select_experts(torch.ones(tokens, routing.num_experts, dtype=dtype), routing, bias)
    stored = torch.int8 if scenario["quantised"] else dtype
    scales = [torch.ones(slots, 2 * intermediate), torch.ones(slots, hidden)] if scenario["quantised"] else []
    experts = ExpertWeights(
        torch.ones(slots, hidden, 2 * intermediate, dtype=stored),
        torch.ones(slots, intermediate, hidden, dtype=stored),
        *scales,
    )
    experts.check_limits(routing.top_k, dtype)
    return apply_experts(torch.ones(tokens, hidden, dtype=dtype), weights, ids, experts)


def record(scenario: dict[str, Any]) -> Record:
    """Run the layer and list the shapes and dtypes of what each op returned."""
    seen: Record = []
    originals = {name: getattr(ops, name) for name in OPS}

    def recording(op: Op[..., Any]) -> Any:  # noqa: ANN401 - stands in for an op
        def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the op's
            returned = op(*args, **kwargs)
            outputs = returned if isinstance(returned, (tuple, list)) else [returned]
            seen.append((op.name, [(list(output.shape), str(output.dtype)) for output in outputs]))
            return returned

        return call

    try:
        for name, op in originals.items():
            setattr(ops, name, recording(op))
        output = run_layer(scenario)
    finally:
        for name, op in originals.items():
            setattr(ops, name, op)
    seen.append(("layer", [(list(output.shape), str(output.dtype))]))
    return seen


def differences(wheel: Wheel) -> tuple[int, list[str]]:
    """Return how many op calls were compared, and where the wheel's outputs are not the twins'."""
    compared, problems = 0, []
    for scenario in scenarios():
        # The twins, op by op: on a CPU kernels do several of them at once.
        with twins_only():
            ours = record(scenario)
        try:
            with FakeTensorMode(), registered_ops():
                theirs = record(scenario)
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            problems.append(
                f"torch_npu {wheel.version} refuses {_describe(scenario)}: {str(error).splitlines()[0]}"
            )
            continue
        compared += len(ours) - 1
        for (name, mine), (_, other) in zip(ours, theirs, strict=True):
            if mine != other:
                problems.append(
                    f"{name} of torch_npu {wheel.version} returns {other}; the twin {mine}: {_describe(scenario)}"
                )
                break
    return compared, problems


def _describe(scenario: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in scenario.items())


def main() -> None:
    """Print a JSON object: calls compared, and problems."""
    wheel = read(Path(sys.argv[1]))
    try:
        register(wheel, tuple(OPS))
        compared, problems = differences(wheel)
    except (LookupError, RuntimeError) as error:
        compared, problems = 0, [f"torch_npu {wheel.version}: {error}"]
    print(json.dumps({"compared": compared, "problems": problems}))


if __name__ == "__main__":
    main()
