# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The contract of hooks, fed with releases in which something is missing or renamed; nothing is fetched."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import sys
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest
import typer

from harness.contract import __main__ as contract
from harness.contract.ascend import written_options
from harness.contract.fetching import ContractError
from harness.contract.hooks import Release, Report, check_release, wanted
from harness.contract.pins import SOURCES
from vllm_ascend_moe import releases
from vllm_ascend_moe.backends.ascend import answers as ascend
from vllm_ascend_moe.hooks import table, wrapping
from vllm_ascend_moe.hooks.table import Hook

if TYPE_CHECKING:
    from pathlib import Path

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

# As vllm-ascend 0.22 is, as far as the plugin and the table rely on it.
_UTILS, _OPTIONS = "vllm_ascend/eplb/core/eplb_utils.py", "vllm_ascend/ascend_config.py"
_LAYER, _FORWARD = "vllm_ascend/ops/fused_moe/fused_moe.py", "vllm_ascend/ascend_forward_context.py"
_ADAPTOR = "vllm_ascend/eplb/adaptor/vllm_adaptor.py"
_MOVER, _WORKER = (
    "vllm_ascend/eplb/core/eplb_device_transfer_loader.py",
    "vllm_ascend/eplb/core/eplb_worker.py",
)
_RUNNER, _METADATA = "vllm_ascend/worker/model_runner_v1.py", "PKG-INFO"
_RESULTS = "self.global_expert_map, self._expert_map, self.log2phy, self.redundant_expert_num"
_KEYWORD = "num_shared_experts=num_shared_experts"
_DRAWN = "torch.rand(topk_ids.size(0), num_logical_experts)"
ASCEND = {
    "vllm_ascend/__init__.py": "",
    _UTILS: """
def generate_global_placement(n_expert, ep_size, n_redundant):
    groups = [each.tolist() for each in np.array_split(np.arange(n_expert), ep_size)]
    for i in range(n_redundant):
        group = groups[-(i % ep_size + 1)]
        group.append((group[-1] + 1) % n_expert)
    return torch.tensor(groups, dtype=torch.int32)
def init_eplb_config(eplb_config, layer_id, moe_config, mix_placement=False, num_shared_experts=1): ...
""",
    _LAYER: f"""
from vllm_ascend.eplb.core.eplb_utils import init_eplb_config
class AscendFusedMoE:
    def __init__(self, eplb_config, num_shared_experts):
        {_RESULTS} = init_eplb_config(eplb_config, self.moe_instance_id, self.moe_config, False, {_KEYWORD})
    def profile(self, topk_ids, num_logical_experts):
        return {_DRAWN}
""",
    _OPTIONS: """
class EplbConfig:
    _defaults = {"dynamic_eplb": False, "expert_map_path": None, "expert_heat_collection_interval": 400,
                 "algorithm_execution_interval": 30, "num_redundant_experts": 0, "eplb_policy_type": 1}
""",
    _ADAPTOR: "class VllmEplbAdaptor: ...\n",
    _FORWARD: "def select(world_size, num_experts_per_tok):\n    if world_size <= num_experts_per_tok: ...\n",
    _MOVER: "class D2DExpertWeightLoader:\n    def update_expert_map_and_weight(self, reqs): ...\n",
    _WORKER: "class EplbProcess:\n    def worker_process(self, planner_q, block_update_q): ...\n",
    "vllm_ascend/eplb/eplb_updator.py": (
        "class EplbUpdator:\n    def warm_up_eplb(self): ...\n    def forward_end(self): ...\n"
        "    def get_update_info_flag(self): ...\n"
    ),
    "vllm_ascend/ops/fused_moe/token_dispatcher.py": (
        "class TokenDispatcherWithAllGather:\n    def token_dispatch(self, token_dispatch_input): ...\n"
        "class TokenDispatcherWithMC2:\n    def token_dispatch(self, token_dispatch_input): ...\n"
        "class TokenDispatcherWithAll2AllV:\n    def token_dispatch(self, token_dispatch_input): ...\n"
    ),
    _RUNNER: (
        "from multiprocessing import Manager\n"
        "class NPUModelRunner:\n    def _dummy_run(self, num_tokens): ...\n"
    ),
    _METADATA: "Metadata-Version: 2.4\nRequires-Dist: torch==2.10.0\nRequires-Dist: torch-npu==2.10.0\n",
}
# The same as 0.27 has it: options are fields, and keys that are not its own are refused.
_CONFIGS = "vllm_ascend/config_utils.py"
FIELDS = """
class EplbConfig:
    dynamic_eplb: bool = False
    expert_map_path: str | None = None
    expert_heat_collection_interval: int = 600
    algorithm_execution_interval: int = 50
    num_redundant_experts: int = 0
    eplb_policy_type: int = 2
    eplb_heat_collection_stage: str = "all"
"""
APPENDS = """
def generate_global_placement(n_expert, ep_size, n_redundant, num_shared_experts):
    order = np.concatenate((np.arange(n_expert), np.arange(n_redundant) % n_expert))
    return torch.tensor(order.reshape(ep_size, -1), dtype=torch.int32)
def init_eplb_config(eplb_config, layer_id, moe_config, mix_placement=False, num_shared_experts=1, tp_size=None): ...
"""

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


def write_source(folder: Path, files: dict[str, str]) -> Path:
    path = folder / "fake-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"fake-1.0/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


def check_served(wheel: Path, *hooks: Hook) -> Report:
    return check_release(wheel, Release("served", "1.0", hooks or HOOKS))


def check_ascend(wheel: Path, version: str = "0.22.1rc1") -> Report:
    row = releases.find(version)
    assert row is not None
    hooks = tuple(hook for hook in table.beside(row) if hook.module.startswith("vllm_ascend."))
    return check_release(wheel, Release("vllm-ascend", version, hooks, row))


def newer() -> dict[str, str]:
    layer = ASCEND[_LAYER].replace("(eplb_config, self", "(placement_eplb_config, self")
    pins = ASCEND[_METADATA].replace("npu==2.10.0", "npu==2.10.0.post4")
    kept = {name: text for name, text in ASCEND.items() if name != _LAYER}
    return {
        **kept,
        _UTILS: APPENDS,
        _LAYER.replace("fused_moe.py", "routed_experts.py"): layer,
        _OPTIONS: FIELDS,
        _CONFIGS: 'config = ConfigDict(extra="forbid")\n',
        _ADAPTOR: "class VllmEplbAdaptor:\n    _registered_moe_layers = []\n",
        _FORWARD: ASCEND[_FORWARD] + "if lora_config is not None and config.enable_expert_parallel: ...\n",
        _METADATA: pins,
    }


# hooks


def test_what_fits_has_no_problems(tmp_path: Path) -> None:
    report = check_served(write_wheel(tmp_path, SERVED))
    assert report.row == ("served 1.0", "7 of 7", "", "", "", "0")


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
    assert fits == [not list(wrapping.problems([hook])) for hook in HOOKS]


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
    assert report.problems == []
    assert report.row == ("vllm-ascend 0.22.1rc1", "12 of 12", "1", "5 of 6", "12", "0")
    (note,) = report.notes
    assert re.search(r"eplb_heat_\w+ is not in this version.*only where load_collection_phase is not", note)


def test_a_newer_vllm_ascend_that_fits_has_no_problems(tmp_path: Path) -> None:
    report = check_ascend(write_wheel(tmp_path, newer()), "0.30.0rc2")
    assert report.problems == []
    assert report.row == ("vllm-ascend 0.30.0rc2", "12 of 12", "1", "6 of 6", "12", "0")
    assert report.notes == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            (_METADATA, "torch==2.10.0", "torch==2.11.0"),
            "torch is 2.11.0 in the source; the table has 2.10.0",
        ),
        ((_METADATA, "npu==2.10.0", "npu==2.9.0"), "torch_npu is 2.9.0 in the source; the table has 2.10.0"),
        ((_METADATA, "", None), "PKG-INFO is not there (for torch)"),
        ((_UTILS, "group[-1] + 1", "group[-1] + 2"), "layout is another in the source; the table has ring"),
        ((_UTILS, "def generate_global", "def make_global"), "no generate_global_placement (for layout)"),
        (
            (_LAYER, "(eplb_config, self", "(placement_eplb_config, self"),
            "fills is append in the source; the ",
        ),
        ((_OPTIONS, "400", "600"), "heat_interval is 600 in the source; the table has 400"),
        ((_OPTIONS, '_type": 1', '_type": 2'), "policy_type is 2 in the source; the table has 1"),
        (
            (_OPTIONS, '"num_', '"eplb_heat_collection_stage": "all", "num_'),
            "has_heat_stage is True in the source",
        ),
        ((_LAYER, "num_logical_experts)\n", "num_experts)\n"), "profiles_slots is True in the source"),
        ((_LAYER, _DRAWN, "None"), "nothing draws ids for the profile run (for profiles_slots)"),
        ((_FORWARD, "world_size <=", "world_size <"), "small_worlds_gather is False in the source"),
        (
            (_FORWARD, "    if", "    lora_config is not None and x.enable_expert_parallel\n    if"),
            "lora_exchanges is",
        ),
        ((_ADAPTOR, "...", "\n    _registered_moe_layers = []"), "registers_drafts is True in the source"),
    ],
)
def test_a_fact_that_the_source_does_not_have_is_found(tmp_path: Path, change: Change, problem: str) -> None:
    report = check_ascend(write_wheel(tmp_path, ASCEND, change))
    assert any(problem in each for each in report.problems), report.problems
    assert report.row[-2] == str(
        12 - len([each for each in report.problems if "the table" in each or "(for " in each])
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ((_CONFIGS, "forbid", "ignore"), "forbids_unknown_keys is False in the source; the table has True"),
        ((_CONFIGS, "", None), "forbids_unknown_keys is False in the source; the table has True"),
        (
            (_UTILS, "% n_expert))", "% n_expert)[::-1])"),
            "layout is another in the source; the table has append",
        ),
        ((_OPTIONS, "dynamic_eplb: bool", "dynamic: bool"), "EplbConfig has no option dynamic_eplb"),
        ((_OPTIONS, "heat_collection_stage", "stage"), "EplbConfig has no option eplb_heat_collection_stage"),
    ],
)
def test_a_newer_release_that_differs_is_found(tmp_path: Path, change: Change, problem: str) -> None:
    report = check_ascend(write_wheel(tmp_path, newer(), change), "0.30.0rc2")
    assert any(problem in each for each in report.problems), report.problems


def test_a_release_is_compared_with_its_own_row(tmp_path: Path) -> None:
    found = " ".join(check_ascend(write_wheel(tmp_path, ASCEND), "0.30.0rc2").problems)
    for name in (
        "torch_npu",
        "layout",
        "forbids_unknown_keys",
        "heat_interval",
        "policy_type",
        "lora_exchanges",
    ):
        assert f"{name} is " in found
    assert "routed_experts.py is not there" in found


def test_the_signature_that_is_compared_is_the_one_that_is_called() -> None:
    takes = list(inspect.signature(ascend.around_init_eplb_config).parameters)
    assert takes[:3] == ["original", "eplb_config", "layer_id"]
    assert list(inspect.signature(ascend.Question.of).parameters) == ["eplb_config", *takes[3:]]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ((_UTILS, "", None), f"{_UTILS} is not there"),
        ((_LAYER, "", None), f"{_LAYER} is not there"),
        (
            (_MOVER, "reqs", "requests"),
            f"{_MOVER}:2: D2DExpertWeightLoader.update_expert_map_and_weight has the",
        ),
        ((_WORKER, "", None), f"{_WORKER} is not there"),
        ((_RUNNER, "import Manager", "import Pool"), f"{_RUNNER} has no Manager"),
        ((_UTILS, "def init_eplb_config", "def init"), f"{_UTILS} has no init_eplb_config"),
        ((_UTILS, "layer_id", "layer"), "expected (eplb_config, layer_id, moe_config) among them"),
        ((_UTILS, "layer_id, moe_config", "moe_config, layer_id"), "has the parameters (eplb_config, moe"),
        ((_UTILS, "mix_placement", "mixed"), "takes by position (eplb_config, layer_id, moe_config, mixed)"),
        ((_LAYER, "num_shared_experts=n", "shared=n"), "unexpected keyword argument 'shared'"),
        ((_LAYER, f"False, {_KEYWORD}", "False, 1, 2, 3"), "too many positional arguments"),
        ((_LAYER, "False, ", "*more, "), "arguments that the source does not show"),
        ((_LAYER, "eplb_config, self.moe_instance_id", "self.moe_instance_id, eplb_config"), "by position; "),
        ((_LAYER, "self.moe_config, False", "moe_config=1, tp_size=2"), "placement_eplb_config, layer_id or"),
        ((_LAYER, ", self.redundant_expert_num", ""), "is unpacked into 3 (global_expert_map"),
        ((_LAYER, "self.redundant_expert_num", "self.redundant, more"), "is unpacked into 5"),
        ((_LAYER, "self.redundant_expert_num", "*self.redundant"), "expected 4 results"),
        ((_LAYER, "self._expert_map, self.log2phy", "self.log2phy, self._expert_map"), "in this order"),
        ((_LAYER, _RESULTS, "maps"), "is not unpacked where it is called"),
        ((_LAYER, "import init_eplb_config", "import init_eplb_config as init"), "has no init_eplb_config"),
        ((_LAYER, "= init_eplb_config(", "= other("), "is never called under that name"),
        ((_OPTIONS, "", None), f"{_OPTIONS} is not there"),
        ((_OPTIONS, "_defaults = {", "_known = {"), "class EplbConfig has no _defaults, nor fields"),
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


def test_an_option_is_asked_for_where_the_table_has_it(tmp_path: Path) -> None:
    found = check_ascend(write_wheel(tmp_path, ASCEND), "0.23.0.post1").problems
    assert any(f"{_OPTIONS}: EplbConfig has no option eplb_heat_collection_stage" in each for each in found)


def test_every_option_that_the_plugin_writes_is_looked_for() -> None:
    named = ["expert_map_path", "dynamic_eplb", "num_redundant_experts", "expert_heat_collection_interval"]
    assert {*written_options()} == {*named, "algorithm_execution_interval", "eplb_heat_collection_stage"}


# releases, fetching and the exit code


def test_every_release_and_its_vllm_are_pinned_and_those_that_are_served_are_in_ci() -> None:
    everything, in_ci = wanted(everything=True), wanted()
    assert set(in_ci) <= set(everything) | {each for each in in_ci if each.project == "vllm"}
    assert {(each.project, each.version) for each in everything} == set(SOURCES)
    served = {row.vllm_ascend for row in releases.RELEASES if row.checked != "contract"}
    assert {each.version for each in in_ci if each.row} == served
    assert {each.version for each in everything if each.row} == {row.vllm_ascend for row in releases.RELEASES}
    pairs = {row.vllm for row in releases.RELEASES if row.vllm_ascend in served}
    assert {each.version for each in in_ci if each.project == "vllm"} == pairs | {"0.32.0", "0.33.0"}
    # All that is used beside a release is compared with one of the two.
    for row in releases.RELEASES:
        ascends = next(each for each in everything if each.row is row)
        (vllms,) = (each for each in everything if each.project == "vllm" and each.version == row.vllm)
        assert {*table.beside(row), *table.beside_v2(row)} <= {*ascends.hooks, *vllms.hooks}


def test_every_vllm_by_itself_is_compared_with_all_that_is_used_there() -> None:
    alone = {*table.WATCHED, table.STOP_TIMEOUT, *table.EPLB, *table.CPU}
    versions = {each.version for each in wanted(everything=True) if alone <= set(each.hooks)}
    assert versions == {
        version for project, version in SOURCES if project == "vllm" and version in releases.VLLM
    }


@pytest.mark.parametrize("reason", ["the package index has none", "has the sha256"])
def test_a_source_that_is_not_there_or_has_another_hash_fails_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reason: str
) -> None:
    if "sha256" in reason:
        write_source(tmp_path, ASCEND).rename(tmp_path / "vllm_ascend-0.18.0.tar.gz")
    index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}
    for name, value in index.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(contract, "fetch", lambda *_, **__: [])
    with pytest.raises(typer.Exit) as stopped:
        contract.main(wheels=tmp_path / "wheels")
    assert stopped.value.exit_code == 1
    shown = capsys.readouterr().err
    assert re.search(rf"FAILED .*vllm.ascend.0\.18\.0.*{reason}", shown)
    # What is not the pinned file is not kept.
    assert not list((tmp_path / "wheels").rglob("*.tar.gz"))


def test_a_source_distribution_is_read_as_a_wheel_is(tmp_path: Path) -> None:
    files = {
        **ASCEND,
        "tests/test_eplb.py": "from vllm_ascend.eplb.core.eplb_utils import init_eplb_config\n",
    }
    report = check_ascend(write_source(tmp_path, files))
    assert report.problems == []
    assert report.row[1:] == check_ascend(write_wheel(tmp_path, ASCEND)).row[1:]


@pytest.mark.parametrize("problems", [0, 3])
def test_the_exit_code_is_that_of_the_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], problems: int
) -> None:
    wheel = write_wheel(tmp_path, ASCEND, (_UTILS, "layer_id", "number" if problems else "layer_id"))
    (release,) = (each for each in wanted() if each.version == "0.22.1rc1")
    monkeypatch.setattr(contract, "fetch", lambda *_, **__: [])
    monkeypatch.setattr(contract, "_report_calls", lambda *_: [])
    monkeypatch.setattr(contract, "wanted", lambda **_: [release])
    monkeypatch.setattr(contract, "fetch_releases", lambda *_: [wheel])
    with pytest.raises(typer.Exit) if problems else contextlib.nullcontext():
        contract.main(wheels=tmp_path)
    shown = capsys.readouterr()
    assert "vllm-ascend 0.22.1rc1: eplb_heat_collection_stage is not in this version" in shown.out
    assert shown.err.count("FAILED vllm-ascend 0.22.1rc1: vllm_ascend/") == problems


@pytest.mark.parametrize("name", ["fake-1.0-py3-none-any.whl", "fake-1.0.tar.gz"])
@pytest.mark.parametrize("content", [b"", b"PK", b"\x1f\x8b\x08\x00"])
def test_what_is_no_archive_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ContractError, match="cannot be read as a wheel or a source distribution"):
        check_served(path)
