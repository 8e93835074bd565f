# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import fake_vllm
import pytest
from typer.testing import CliRunner, Result

import vllm_ascend_moe
from expert_maps import generate_placement, write_placement
from vllm_ascend_moe import releases
from vllm_ascend_moe.cli import app
from vllm_ascend_moe.core.settings import ENV_ENABLED, ENV_PREFIX
from vllm_ascend_moe.doctor import Diagnosis, diagnose
from vllm_ascend_moe.hooks import table

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

GENERAL, PLATFORM = "vllm.general_plugins", "vllm.platform_plugins"
NOT_INSTALLED = (
    "vllm is not installed; install it (pip install 'vllm-ascend-moe[vllm]', or on an NPU a pair of "
    "`vllm-ascend-moe releases`)"
)
ENDPOINTS = table.Hook("vllm.plugins.endpoint_plugins.interface", "attach_endpoint_plugins", ("app",))
ACTIVE: dict[str, Any] = {"expert_maps": {}}


class World:
    """The distributions and entry points that there are."""

    def __init__(self) -> None:
        self.versions = {"torch": "2.13.0", "expert-maps": "0.1.0"}
        self.points = {GENERAL: ["ascend_moe"], PLATFORM: []}

    def version(self, name: str) -> str:
        known = {key.replace("-", "_"): value for key, value in self.versions.items()}
        if name.replace("-", "_") not in known:
            raise importlib.metadata.PackageNotFoundError(name)
        return known[name.replace("-", "_")]

    def entry_points(self, *, group: str) -> list[importlib.metadata.EntryPoint]:
        return [
            importlib.metadata.EntryPoint(name, "module:function", group)
            for name in self.points.get(group, [])
        ]


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Stand in for what is installed; vLLM is not."""
    made = World()
    monkeypatch.setattr(importlib.metadata, "version", made.version)
    monkeypatch.setattr(importlib.metadata, "entry_points", made.entry_points)
    for name in ("VLLM_PLUGINS", ENV_ENABLED):
        monkeypatch.delenv(name, raising=False)
    fake_vllm.without_vllm(monkeypatch)
    return made


# Without vLLM


def test_without_vllm_that_is_the_problem() -> None:
    found = diagnose(None, {})
    assert found.problems == [NOT_INSTALLED]
    assert found.device is None
    assert found.versions == {
        "vllm-ascend-moe": vllm_ascend_moe.__version__,
        "vllm": None,
        "torch": "2.13.0",
        "torch-npu": None,
        "vllm-ascend": None,
        "expert-maps": "0.1.0",
    }
    assert found.entry_points == {GENERAL: ["ascend_moe"], PLATFORM: []}
    assert found.vllm_plugins is None
    assert found.state == f"inactive: expert_maps is not in the additional config and {ENV_ENABLED} is not 1"
    assert found.settings == {}
    (note,) = found.notes
    assert note.startswith("to activate it: vllm serve … --additional-config '{\"expert_maps\": {}}'")
    assert note.endswith(f"or {ENV_ENABLED}=1")


def test_options_are_checked_without_vllm_too() -> None:
    found = diagnose({"expert_maps": {"layout": "ring", "num_redundant_experts": 4}}, {})
    assert (
        found.state
        == "active: expert_maps is in the additional config; nothing, until the problems are solved"
    )
    # Defaults are left out.
    assert found.settings == {"layout": "ring", "num_redundant_experts": 4}
    assert found.problems == [NOT_INSTALLED]
    assert not found.notes


def test_without_torch_that_is_the_problem() -> None:
    code = (
        "import json, sys; sys.modules['torch'] = sys.modules['vllm'] = None; "
        "from vllm_ascend_moe.doctor import diagnose; print(json.dumps(diagnose(None, {}).problems))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert NOT_INSTALLED.replace("vllm is", "torch is") in json.loads(run.stdout)


# With vLLM


@pytest.mark.parametrize(
    ("platform", "device", "way"),
    [
        ("cpu", "cpu", "the plugin's router and experts"),
        ("cuda", "gpu", "vLLM's kernels, with the plugin's placement, policy, recording and replica choice"),
        ("xpu", "gpu", "vLLM's kernels, with the plugin's placement, policy, recording and replica choice"),
        ("ascend", "ascend", "vllm-ascend's layer and its runner V1, with the plugin's maps"),
    ],
)
def test_where_all_is_well_there_are_no_problems(
    platform: str, device: str, way: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks: tuple[table.Hook, ...] = fake_vllm.HOOKS
    version = "0.32.0+cpu"
    if platform == "ascend":
        hooks, version = table.beside(releases.NEWEST), f"{releases.NEWEST.vllm}+empty"
        world.versions["vllm-ascend"] = releases.NEWEST.vllm_ascend
        world.points[PLATFORM] = ["ascend"]
    fake_vllm.install(monkeypatch, hooks, platform=platform, version=version)
    for config, environ, reason in (
        (ACTIVE, {}, "expert_maps is in the additional config"),
        (None, {ENV_ENABLED: "1"}, f"{ENV_ENABLED} is set"),
    ):
        found = diagnose(config, environ)
        assert found.problems == []
        assert found.notes == []
        assert found.device == device
        assert found.state == f"active: {reason}; {way}"
        assert found.versions["vllm"] == version
        assert found.kernels == ("compiled by Numba" if platform == "cpu" else None)


@pytest.mark.parametrize(
    ("platform", "release", "hooks"),
    [
        ("cpu", None, (*table.WATCHED, table.STOP_TIMEOUT, *table.EPLB, *table.CPU)),
        ("cuda", None, (*table.WATCHED, table.STOP_TIMEOUT, *table.EPLB)),
        *(("ascend", release, table.beside(release)) for release in releases.RELEASES),
    ],
)
def test_every_hook_of_the_platform_is_checked_and_no_other(
    platform: str,
    release: releases.Release | None,
    hooks: tuple[table.Hook, ...],
    world: World,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    version = "0.33.0"
    if release is not None:
        version, world.versions["vllm-ascend"] = release.vllm, release.vllm_ascend
    fake_vllm.install(monkeypatch, hooks, platform=platform, version=version)
    assert diagnose(ACTIVE, {}).problems == []
    # Every module is there still, and none of the functions.
    for hook in hooks:
        fake_vllm.replace(monkeypatch, hook, None)
    told = diagnose(ACTIVE, {}).problems
    assert {problem.partition(" is not there")[0] for problem in told} == {str(hook) for hook in hooks}
    fake_vllm.install(monkeypatch, [], platform=platform, version=version)
    told = diagnose(ACTIVE, {}).problems
    assert {problem.partition(" is not there")[0] for problem in told} == {str(hook) for hook in hooks}


def test_beside_vllm_ascend_the_row_of_the_table_is_shown(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for release in releases.RELEASES:
        world.versions["vllm-ascend"] = release.vllm_ascend
        fake_vllm.install(monkeypatch, table.beside(release), platform="ascend", version=release.vllm)
        found = diagnose(ACTIVE, {})
        assert found.release is not None
        assert tuple(found.release.items()) == tuple(
            zip(releases.COLUMNS, releases.row(release), strict=True)
        )
        assert found.refused == [*release.refused, *releases.REFUSED]
        result = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "200"})
        assert f"default layout with copies  {release.layout}" in result.stdout.replace("\t", " ")
        for what in found.refused:
            assert what in result.stdout


def test_a_cpu_without_kernels_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm.install(monkeypatch)
    monkeypatch.setitem(sys.modules, "numba", None)
    found = diagnose(ACTIVE, {})
    assert found.kernels == "none: plain torch serves"
    (note,) = found.notes
    assert note.startswith("without kernels a CPU serves more slowly: ")
    assert "vllm-ascend-moe[cpu]" in note
    assert found.problems == []


def test_a_changed_function_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm.install(monkeypatch)
    fake_vllm.replace(monkeypatch, table.STEP, fake_vllm.function("step", ("self",)))
    (problem,) = diagnose(ACTIVE, {}).problems
    assert problem.startswith(f"{table.STEP} has the parameters (self); expected (self, is_dummy")


def test_an_unsupported_version_or_platform_is_a_problem(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_vllm.install(monkeypatch, version="0.29.0")
    found = diagnose(ACTIVE, {})
    (problem,) = found.problems
    assert problem.startswith("found vLLM 0.29.0; vllm-ascend-moe supports ")
    assert found.state.endswith("nothing, until the problems are solved")
    fake_vllm.install(monkeypatch, platform="tpu")
    (problem,) = diagnose(ACTIVE, {}).problems
    assert problem.startswith("the platform is tpu; expected ")
    for ascend, vllm in (("0.17.0", "0.17.0"), ("0.23.0", "0.32.0"), ("0.30.0", "0.30.0")):
        fake_vllm.install(monkeypatch, platform="ascend", version=vllm)
        world.versions["vllm-ascend"] = ascend
        found = diagnose(ACTIVE, {})
        (problem,) = found.problems
        assert problem.startswith(f"found vllm-ascend {ascend} with vLLM {vllm}; expected a pair ")
        for release in releases.RELEASES:
            assert f"{release.vllm_ascend} with {release.vllm}" in problem
        assert found.release is None


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (
            ImportError("libascendcl.so: cannot open\nshared object"),
            "ImportError: libascendcl.so: cannot open)",
        ),
        (OSError("no driver"), "OSError: no driver)"),
        (RuntimeError(), "RuntimeError: RuntimeError)"),
    ],
)
def test_a_vllm_that_cannot_be_imported_is_a_problem(
    error: Exception, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> str:
        raise error

    fake_vllm.install(monkeypatch)
    monkeypatch.setattr("vllm_ascend_moe.backends.front", fail)
    found = diagnose(ACTIVE, {})
    assert found.problems == [f"vLLM cannot be imported ({shown}"]
    assert found.device is None


@pytest.mark.parametrize("error", ["ImportError", "OSError"])
@pytest.mark.parametrize("platform", ["cpu", "ascend"])
def test_a_vllm_ascend_that_cannot_be_imported_does_not_stop_the_doctor(
    platform: str, error: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As without CANN; on a CPU it lies there unused, because VLLM_PLUGINS turns it off perhaps.
    world.versions["vllm-ascend"] = "0.23.0"
    folder = tmp_path / "vllm_ascend" / "ops" / "fused_moe"
    folder.mkdir(parents=True)
    (folder.parents[1] / "__init__.py").touch()
    (folder.parent / "__init__.py").write_text(f"raise {error}('libascendcl.so: cannot open')\n")
    fake_vllm.install(monkeypatch, platform=platform, version="0.23.0" if platform == "ascend" else "0.32.0")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("vllm_ascend", "vllm_ascend.ops"):
        # Set and taken away, so that none is left behind when the test is over.
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)
    found = diagnose(ACTIVE, {})
    if platform == "cpu":
        assert found.problems == []
    else:
        assert any("libascendcl.so: cannot open" in problem for problem in found.problems)


def test_an_npu_that_does_not_serve_is_noted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm.install(monkeypatch)
    world.versions["torch-npu"] = "2.13.0"
    found = diagnose(ACTIVE, {})
    assert found.notes == ["torch-npu is installed, but vLLM's platform is not Ascend's: cpu serves"]
    assert not found.problems


RECORDS: dict[str, Any] = {"expert_maps": {"record_path": "load.npz"}}


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (None, "VLLM_PLUGINS=ascend,ascend_moe,other,expert_maps_record"),
        ("ascend,ascend_moe", "VLLM_PLUGINS=ascend,ascend_moe,expert_maps_record"),
        ("ascend,ascend_moe,expert_maps_record", None),
    ],
)
def test_how_the_record_is_asked_for_over_http_is_noted(
    value: str | None, wanted: str | None, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_vllm.install(monkeypatch, [*fake_vllm.HOOKS, ENDPOINTS])
    world.points = {GENERAL: ["ascend_moe", "other"], PLATFORM: ["ascend"]}

    def noted(config: dict[str, Any]) -> list[str]:
        found = diagnose(config, {} if value is None else {"VLLM_PLUGINS": value})
        return [note for note in found.notes if "over HTTP" in note]

    assert noted(ACTIVE) == []
    assert len(noted(RECORDS)) == (wanted is not None)
    assert all(f" {wanted}, and what" in note for note in noted(RECORDS))


def test_a_vllm_without_routes_of_plugins_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm.install(monkeypatch)
    (note,) = diagnose(RECORDS, {}).notes
    assert "this vLLM takes no routes from plugins; collective_rpc('expert_maps_record')" in note


# Plugins


def plugins(world: World, general: list[str], platform: list[str], value: str | None) -> Diagnosis:
    world.points = {GENERAL: general, PLATFORM: platform}
    found = diagnose(ACTIVE, {} if value is None else {"VLLM_PLUGINS": value})
    assert found.problems.pop() == NOT_INSTALLED
    return found


def test_a_missing_entry_point_is_a_problem(world: World) -> None:
    found = plugins(world, ["other"], [], None)
    (problem,) = found.problems
    assert problem == (
        "the entry point ascend_moe is not in vllm.general_plugins; install the package "
        "(pip install vllm-ascend-moe)"
    )
    assert found.entry_points == {GENERAL: ["other"], PLATFORM: []}


def test_unset_all_plugins_are_loaded(world: World) -> None:
    found = plugins(world, ["lora", "ascend_moe"], ["ascend"], None)
    assert found.entry_points == {GENERAL: ["ascend_moe", "lora"], PLATFORM: ["ascend"]}
    assert (found.vllm_plugins, found.problems, found.notes) == (None, [], [])


def test_a_plugin_installed_twice_is_shown_once(world: World) -> None:
    assert plugins(world, ["ascend_moe", "ascend_moe"], [], None).entry_points[GENERAL] == ["ascend_moe"]


def test_all_that_is_needed_may_be_listed(world: World) -> None:
    found = plugins(world, ["ascend_moe"], ["ascend"], "ascend,ascend_moe")
    assert (found.vllm_plugins, found.problems, found.notes) == (["ascend", "ascend_moe"], [], [])


@pytest.mark.parametrize(
    ("value", "listed"), [("ascend", "ascend,ascend_moe"), ("ascend,x", "ascend,x,ascend_moe")]
)
def test_a_list_without_this_plugin_turns_it_off(world: World, value: str, listed: str) -> None:
    found = plugins(world, ["ascend_moe"], ["ascend"], value)
    assert found.problems == [
        f"VLLM_PLUGINS turns off ascend_moe, this plugin; set VLLM_PLUGINS={listed}, or unset it"
    ]
    assert found.notes == ["VLLM_PLUGINS is one list for all kinds of plugins, and turns off: ascend_moe"]


def test_a_list_without_the_platform_turns_that_off(world: World) -> None:
    # The trap: to name this plugin alone loses the NPU.
    found = plugins(world, ["ascend_moe", "lora"], ["ascend"], "ascend_moe")
    assert found.problems == [
        "VLLM_PLUGINS turns off ascend, its platform; set VLLM_PLUGINS=ascend_moe,ascend, or unset it"
    ]
    # Other plugins are the user's business.
    assert found.notes == ["VLLM_PLUGINS is one list for all kinds of plugins, and turns off: ascend, lora"]


def test_an_empty_list_turns_all_off(world: World) -> None:
    found = plugins(world, ["ascend_moe"], ["ascend"], "")
    assert found.vllm_plugins == []
    assert [problem.split(";")[0] for problem in found.problems] == [
        "VLLM_PLUGINS turns off ascend_moe, this plugin",
        "VLLM_PLUGINS turns off ascend, its platform",
    ]


def test_the_list_that_is_proposed_mends_everything(world: World) -> None:
    for value in ("", "lora", "lora,ascend"):
        (first, *_) = plugins(world, ["ascend_moe"], ["ascend"], value).problems
        proposed = first.partition("set VLLM_PLUGINS=")[2].partition(", or unset it")[0]
        assert plugins(world, ["ascend_moe"], ["ascend"], proposed).problems == []


# Options and files


@pytest.mark.parametrize(
    ("config", "environ", "message"),
    [
        ({"expert_maps": {"layot": "ring"}}, {}, "expert_maps.layot is not an option"),
        ({"expert_maps": {"layout": "spiral"}}, {}, "expert_maps.layout is 'spiral'; expected"),
        ({}, {ENV_ENABLED: "1", f"{ENV_PREFIX}LAYOUT": "spiral"}, f"{ENV_PREFIX}LAYOUT is 'spiral'"),
        ({}, {ENV_ENABLED: "perhaps"}, f"{ENV_ENABLED} is 'perhaps'"),
        ({"expert_maps": {"expert_map_path": "/no/such/map.json"}}, {}, "/no/such/map.json: no such file"),
    ],
)
def test_wrong_options_and_files_are_problems(
    config: dict[str, Any], environ: Mapping[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_vllm.install(monkeypatch)
    found = diagnose(config, environ)
    (problem,) = found.problems
    assert problem.startswith(message)
    assert found.state == "refused"


def test_a_map_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm.install(monkeypatch)
    path = tmp_path / "map.json"
    write_placement(generate_placement("ring", num_experts=8, ep_size=4), path)
    config = {"expert_maps": {"expert_map_path": str(path)}}
    assert diagnose(config, {}).problems == []
    path.write_text("{}")
    (problem,) = diagnose(config, {}).problems
    assert str(path) in problem


def test_options_without_effect_are_told() -> None:
    found = diagnose({}, {f"{ENV_PREFIX}LAYOUT": "ring"})
    assert found.state.endswith(f"(so {ENV_PREFIX}LAYOUT has no effect)")
    assert found.settings == {}


# The command


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_all_well_is_0(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm.install(monkeypatch)
    result = run("doctor", "--additional-config", '{"expert_maps": {"num_redundant_experts": 4}}')
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == "no problems found"
    for fragment in (
        f"vllm-ascend-moe {vllm_ascend_moe.__version__}",
        "vllm 0.32.0+cpu",
        "torch-npu not installed",
        "vllm.general_plugins ascend_moe",
        "vllm.platform_plugins none",
        "VLLM_PLUGINS unset, all are loaded",
        "device cpu",
        "state active: expert_maps is in the additional config",
        'options {"num_redundant_experts": 4}',
    ):
        assert fragment in " ".join(result.output.split())


def test_a_problem_is_1() -> None:
    result = run("doctor")
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert f"problem: {NOT_INSTALLED}" in lines
    assert any(line.startswith("note: to activate it: ") for line in lines)
    assert "no problems found" not in lines
    assert "device unknown" in " ".join(result.output.split())
    assert run("doctor", "--additional-config", '{"expert_maps": {"layot": 1}}').exit_code == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{", "--additional-config is not valid JSON: "),
        ("", "--additional-config is not valid JSON: "),
        ("[]", "--additional-config is []; expected a JSON object"),
        ("3", "--additional-config is 3; expected a JSON object"),
    ],
)
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_bad_input_is_2_and_one_line(given: str, message: str, more: tuple[str, ...]) -> None:
    result = run("doctor", "--additional-config", given, *more)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1


def test_unknown_options_and_commands_are_2() -> None:
    assert run("doctor", "--no-such").exit_code == 2
    assert run("no-such").exit_code == 2


@pytest.mark.parametrize("config", [None, '{"expert_maps": {"layout": "ring"}}', "null"])
def test_json_is_one_object_with_everything(config: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [] if config is None else ["--additional-config", config]
    for code in (1, 0):
        if code == 0:
            fake_vllm.install(monkeypatch)
        result = run("doctor", "--json", *given)
        assert result.exit_code == code
        assert result.stdout.count("\n") == 1
        wanted = diagnose(None if config is None else json.loads(config), {})
        assert json.loads(result.stdout) == dataclasses.asdict(wanted)
        assert set(json.loads(result.stdout)) >= {
            "versions",
            "problems",
            "notes",
            "state",
            "device",
            "settings",
        }


def test_the_command_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_ENABLED, "1")
    monkeypatch.setenv(f"{ENV_PREFIX}LAYOUT", "append")
    monkeypatch.setenv("VLLM_PLUGINS", "ascend_moe")
    told = json.loads(run("doctor", "--json").stdout)
    assert told["settings"] == {"layout": "append"}
    assert told["vllm_plugins"] == ["ascend_moe"]


def test_what_users_wrote_is_printed_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Square brackets are markup to what prints the table.
    (tmp_path / "map[").mkdir()
    path = tmp_path / "map[" / "b].json"
    write_placement(generate_placement("ring", num_experts=8, ep_size=4), path)
    monkeypatch.setenv("VLLM_PLUGINS", "ascend_moe,[bold]")
    result = run("doctor", "--additional-config", json.dumps({"expert_maps": {"expert_map_path": str(path)}}))
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.exit_code == 1
    assert "map[/b].json" in "".join(result.output.split())
    assert "[bold]" in result.output


def test_the_version_is_told_and_help_without_arguments() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"vllm-ascend-moe {vllm_ascend_moe.__version__}\n")
    assert "doctor" in run().output
