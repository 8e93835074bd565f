# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The contract, fed with calls and wheels that do not fit; no wheel is fetched."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import typer

import vllm_ascend_moe
from harness.contract import __main__ as command
from harness.contract import wheels
from harness.contract.calls import find_calls, parse_calls
from harness.contract.fetching import sha256_of
from harness.contract.static import check_calls, check_limits, check_twins
from harness.contract.wheels import ContractError, Wheel, fetch, read
from vllm_ascend_moe.npu_ops.ops import OPS, Op
from vllm_ascend_moe.releases import RELEASES

SOURCE = Path(vllm_ascend_moe.__file__).parent
# What the plugin calls of torch_npu that is no op of the layer: weights as they are stored, for their checksums.
OTHERS = {
    "npu_format_cast": "npu_format_cast(Tensor self, int acl_format, *, int? customize_dtype=None, "
    "int? input_dtype=None) -> Tensor"
}
SCHEMAS = {**{name: op.schema for name, op in OPS.items()}, **OTHERS}
DOCS = (
    '_add_torch_npu_docstr("npu_moe_gating_top_k", 2048) _add_torch_npu_docstr("npu_moe_init_routing_v2", 10240)'
    ' _add_torch_npu_docstr("npu_grouped_matmul", 128 65536) _add_torch_npu_docstr('
)
# Shape functions as a wheel has them, for the plugin's ops only.
SHAPES = """
m = Library("npu", "IMPL", "Meta")
INT8 = torch.int8
@impl(m, "npu_moe_gating_top_k")
def gating(x, k, bias=None, out_flag=False, **kwargs):
    shape = (x.size(0), k)
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int32), x.new_empty(x.shape, dtype=torch.float32)
@impl(m, "npu_moe_init_routing_v2")
def init_routing(x, expert_idx, active_expert_range=(), quant_mode=-1, **kwargs):
    entries = expert_idx.numel()
    dtype = INT8 if quant_mode == 1 else x.dtype
    slots = active_expert_range[1] - active_expert_range[0]
    return (x.new_empty((entries, x.size(1)), dtype=dtype), x.new_empty((entries,), dtype=torch.int32),
            x.new_empty((slots,), dtype=torch.int64), x.new_empty((entries,), dtype=torch.float32))
@impl(m, "npu_grouped_matmul")
def grouped_matmul(x, weight, output_dtype=None, **kwargs):
    names = {5: torch.float16, 15: torch.bfloat16}
    return [x[0].new_empty((x[0].size(0), weight[0].size(-1)), dtype=names.get(output_dtype, x[0].dtype))]
@impl(m, "npu_swiglu")
def swiglu(x, dim=-1):
    return x.new_empty((x.size(0), x.size(1) // 2))
@impl(m, "npu_dynamic_quant")
def dynamic_quant(x, **kwargs):
    return x.new_empty(x.shape, dtype=INT8), x.new_empty((x.size(0),), dtype=torch.float32)
@impl(m, "npu_moe_token_unpermute")
def unpermute(tokens, indices, probs=None, padded_mode=False):
    return tokens.new_empty((probs.size(0), tokens.size(1)))
@impl(m, "some_other_op")
def other(x):
    return torch_npu.not_here(x)
"""
# A new op needs no line here unless its result is of another shape or dtype than its first argument.
SHAPES += "".join(
    f'@impl(m, "{name}")\ndef {name}(x, *_, **__):\n    return x.new_empty(x.shape)\n'
    for name in OPS
    if f'"{name}"' not in SHAPES
)


def wheel(version: str = "9.9", **changes: str | None) -> Wheel:
    """Return a wheel that fits, with schemas changed (or, by None, left out) by op."""
    schemas: dict[str, str | None] = {**SCHEMAS, **changes}
    return Wheel(version, {name: text for name, text in schemas.items() if text is not None}, SHAPES, DOCS)


def changed(name: str, old: str, new: str) -> Wheel:
    assert old in SCHEMAS[name]
    return wheel(**{name: SCHEMAS[name].replace(old, new)})


def test_what_fits_has_no_problems() -> None:
    calls = find_calls(SOURCE)
    assert {call.name for call in calls} == set(SCHEMAS)
    assert check_calls(calls, [wheel("9.8"), wheel()]) == []
    assert check_twins(OPS, [wheel("9.8"), wheel()]) == []
    assert check_limits([wheel()]) == []


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("npu_swiglu(x, axis=-1)", "keyword 'axis'; expected one of dim, self"),
        ("ops.npu_swiglu(x, axis=-1)", "keyword 'axis'; expected one of dim, self"),
        ("torch_npu.npu_swiglu(x, -1, 0)", "3 arguments by position; expected at most 2"),
        ("torch.ops.npu.npu_swiglu()", "'self' is missing; it has no default"),
        ("ops.npu_swiglu(x, -1, dim=1)", "'dim' is given by position and by keyword"),
        ("ops.npu_swiglu(x, **options)", "keyword '**'"),
        ("ops.npu_swiglu(*arguments)", "keyword '**'"),
        ("ops.npu_moe_gating_top_k(x, 8, None)", "3 arguments by position; expected at most 2"),
    ],
)
def test_a_call_with_wrong_arguments_is_found(source: str, problem: str) -> None:
    calls = list(parse_calls(source, "layer.py"))
    problems = check_calls(calls, [wheel()])
    assert any(problem in found and found.startswith("layer.py:1: npu_") for found in problems), problems


def test_a_wrong_keyword_in_the_plugins_own_source_is_found() -> None:
    source = (SOURCE / "npu_ops" / "experts.py").read_text(encoding="utf-8")
    assert "group_list_type=" in source
    calls = list(parse_calls(source.replace("group_list_type=", "group_list_kind="), "experts.py"))
    assert any("keyword 'group_list_kind'" in problem for problem in check_calls(calls, [wheel()]))


def test_a_renamed_op_is_found() -> None:
    renamed = wheel(npu_moe_token_unpermute=None)
    problems = check_calls(find_calls(SOURCE), [wheel("9.8"), renamed])
    assert [problem.partition(": ")[2] for problem in problems] == [
        "torch_npu 9.9 has no op npu_moe_token_unpermute"
    ]
    assert "npu_moe_token_unpermute: torch_npu 9.9 has no such op" in check_twins(OPS, [renamed])


def test_a_changed_default_is_found_where_it_is_relied_on() -> None:
    calls = list(parse_calls("ops.npu_swiglu(x)", "layer.py"))
    drifted = changed("npu_swiglu", "dim=-1", "dim=0")
    assert check_calls(calls, [wheel("9.8"), drifted]) == [
        "layer.py:1: npu_swiglu: 'dim' is left to its default, which drifts: -1 in 9.8, 0 in 9.9; pass it"
    ]
    passed = list(parse_calls("ops.npu_swiglu(x, -1)", "layer.py"))
    assert check_calls(passed, [wheel("9.8"), drifted]) == []
    assert any("'dim' defaults to -1; expected 0" in problem for problem in check_twins(OPS, [drifted]))


def test_a_changed_default_that_the_plugin_relies_on_is_found() -> None:
    drifted = changed("npu_grouped_matmul", "int? act_type=0", "int? act_type=1")
    problems = check_calls(find_calls(SOURCE), [wheel("9.8"), drifted])
    assert all("'act_type' is left to its default, which drifts" in problem for problem in problems)
    assert len(problems) == 2


def test_a_new_argument_that_changes_what_old_calls_mean_is_found() -> None:
    grown = changed("npu_swiglu", "int dim=-1", "int dim=-1, float limit=7.0")
    problems = check_calls(find_calls(SOURCE), [wheel("9.8"), grown])
    assert any("'limit' is not in every version and defaults to 7.0" in problem for problem in problems)
    reviewed = changed("npu_dynamic_quant", '"pertoken"', '"pertensor"')
    older = changed("npu_dynamic_quant", ', str quant_mode="pertoken"', "")
    problems = check_calls(find_calls(SOURCE), [replace(older, version="9.8"), reviewed])
    assert any("'quant_mode' is not in every version" in problem for problem in problems)


@pytest.mark.parametrize(
    ("name", "old", "new", "problem"),
    [
        (
            "npu_swiglu",
            "Tensor self, int dim=-1",
            "Tensor self, *, int dim=-1",
            "'dim' is positional or keyword",
        ),
        ("npu_swiglu", "int dim=-1", "int dim", "'dim' has a default"),
        ("npu_moe_gating_top_k", "k_group=1", "top_groups=1", "expected names and order"),
        (
            "npu_moe_token_unpermute",
            "bool padded_mode=False",
            "int padded_mode=0",
            "'padded_mode' defaults to False",
        ),
    ],
)
def test_a_twin_that_differs_from_the_schema_is_found(name: str, old: str, new: str, problem: str) -> None:
    problems = check_twins(OPS, [changed(name, old, new)])
    assert any(problem in found for found in problems), problems
    assert any(f"{name}: the recorded schema is" in found for found in problems)


def test_a_twin_with_an_argument_that_an_old_version_lacks_is_found() -> None:
    old = changed("npu_moe_gating_top_k", ", int renorm=0", "")
    problems = check_twins(OPS, [replace(old, version="9.8"), wheel()])
    assert problems == ["npu_moe_gating_top_k: twin: torch_npu 9.8 has no 'renorm'"]


def test_a_twin_that_is_renamed_is_found() -> None:
    def npu_swish(self: object, dim: int = -1) -> object:
        return (self, dim)

    op = Op("npu_swish(Tensor self, int dim=-1) -> Tensor", npu_swish)
    assert check_twins({"npu_swish": op}, [wheel()]) == ["npu_swish: torch_npu 9.9 has no such op"]


def test_a_limit_that_the_documentation_drops_is_found() -> None:
    problems = check_limits([replace(wheel(), docs=DOCS.replace("2048", "4096"))])
    assert problems == [
        "npu_moe_gating_top_k: the documentation of torch_npu 9.9 does not name the limit 2048"
    ]


# fake tensors: a process of its own, as the contract has


def write_wheel(folder: Path, shapes: str = SHAPES, **changes: str | None) -> Path:
    path = folder / "torch_npu-9.9-cp311-cp311-any.whl"
    yaml = "custom:\n" + "".join(f"  - func: {text}\n" for text in wheel("9.9", **changes).schemas.values())
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in ((wheels.SCHEMAS, yaml), (wheels.SHAPE_FUNCTIONS, shapes), (wheels.DOCS, DOCS)):
            archive.writestr(name, text)
    return path


def run_fake(path: Path) -> tuple[int, list[str]]:
    command = [sys.executable, "-m", "harness.contract.fake", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=180)
    result = json.loads(done.stdout.splitlines()[-1])
    return result["compared"], result["problems"]


def test_a_wheel_that_fits_is_read_and_compared(tmp_path: Path) -> None:
    path = write_wheel(tmp_path)
    assert read(path).schemas == SCHEMAS
    compared, problems = run_fake(path)
    assert problems == []
    assert compared > 100


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "x.new_empty(shape, dtype=torch.int32)",
            "x.new_empty(shape, dtype=torch.int64)",
            "npu_moe_gating_top_k",
        ),
        ("x.new_empty((slots,)", "x.new_empty((slots + 1,)", "npu_moe_init_routing_v2"),
        ("tokens.size(1)))", "tokens.size(1)), dtype=torch.float64)", "npu_moe_token_unpermute"),
    ],
)
def test_another_dtype_or_shape_is_found(tmp_path: Path, old: str, new: str, problem: str) -> None:
    assert old in SHAPES
    _, problems = run_fake(write_wheel(tmp_path, SHAPES.replace(old, new)))
    assert problems
    assert all(found.startswith(f"{problem} of torch_npu 9.9 returns") for found in problems), problems[:3]


def test_a_type_that_the_schema_refuses_is_found(tmp_path: Path) -> None:
    schema = SCHEMAS["npu_moe_init_routing_v2"].replace(
        "bool expert_tokens_num_flag=False", "Tensor expert_tokens_num_flag"
    )
    _, problems = run_fake(write_wheel(tmp_path, npu_moe_init_routing_v2=schema))
    assert problems
    assert all(found.startswith("torch_npu 9.9 refuses routing") for found in problems)


def test_an_op_without_a_shape_function_is_found(tmp_path: Path) -> None:
    _, problems = run_fake(write_wheel(tmp_path, SHAPES.replace('"npu_swiglu"', '"npu_swigloo"')))
    assert problems == ["torch_npu 9.9: no shape function for npu_swiglu"]


# fetching


def test_only_pinned_wheels_are_fetched_unless_the_newest_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    def pinned(folder: Path, _: str, version: str, sha256: str) -> Path:
        asked.append((version, sha256))
        return folder / f"torch_npu-{version}.whl"

    def newest(folder: Path, _: str) -> Path:
        asked.append(("newest", None))
        return folder / "torch_npu-99.0.whl"

    monkeypatch.setattr(wheels, "fetch_pinned", pinned)
    monkeypatch.setattr(wheels, "fetch_newest", newest)
    fetch(tmp_path)
    assert asked == list(wheels.PINNED.items())
    served = {release.torch_npu for release in RELEASES if release.checked != "contract"}
    assert served <= set(wheels.PINNED)
    asked.clear()
    paths = fetch(tmp_path, everything=True, newest=True)
    assert {release.torch_npu for release in RELEASES} <= {version for version, _ in asked}
    assert asked[-1] == ("newest", None)
    assert paths[-1].name == "torch_npu-99.0.whl"


def test_the_newest_wheel_is_read_and_nothing_of_it_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "ran"
    inside = "def swiglu(x, dim=-1):\n"
    path = write_wheel(tmp_path, SHAPES.replace(inside, f"{inside}    torch.save(0, {str(trace)!r})\n"))
    monkeypatch.setattr(command, "fetch", lambda *_, **__: [path])
    monkeypatch.setattr(command, "fetch_releases", lambda *_: [])
    monkeypatch.setattr(command, "wanted", lambda **_: [])
    # Its schemas are compared all the same.
    with contextlib.suppress(typer.Exit):
        command.main(newest=True)
    assert not trace.exists()
    assert "not run" in capsys.readouterr().out
    # Pinned, it is run: so the line above is what kept it from being.
    monkeypatch.setitem(wheels.PINNED, "9.9", sha256_of(path))
    with contextlib.suppress(typer.Exit):
        command.main()
    assert trace.exists()


def test_offline_the_contract_fails_and_says_so(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
        "PIP_CONFIG_FILE": os.devnull,
    }
    command = [sys.executable, "-m", "harness.contract", "--wheels", str(tmp_path / "wheels")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180, env=environment)
    assert done.returncode == 1
    assert "FAILED could not fetch torch_npu (2.9.0)" in done.stderr
    assert "nothing was checked" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wheel_with_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = tmp_path / "index"
    index.mkdir()
    path = write_wheel(index)
    path.rename(index / "torch_npu-2.9.0-cp311-cp311-manylinux_2_28_x86_64.whl")
    for name, value in (
        ("PIP_NO_INDEX", "1"),
        ("PIP_FIND_LINKS", str(index)),
        ("PIP_CONFIG_FILE", os.devnull),
    ):
        monkeypatch.setenv(name, value)
    with pytest.raises(ContractError, match="could not fetch torch_npu"):
        fetch(tmp_path / "wheels")


@pytest.mark.parametrize("content", [b"", b"PK", None])
def test_what_is_no_wheel_of_torch_npu_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "torch_npu-9.9-cp311-cp311-any.whl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ContractError, match="cannot be read as a wheel of torch_npu"):
        read(path)
