# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The build hook, with a compiler that only writes down how it was called."""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import expert_maps
from expert_maps import ExpertMapsError, _library

if TYPE_CHECKING:
    from types import ModuleType

    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

pytest.importorskip("hatchling")
MEMBER = Path(__file__).resolve().parents[1]
SCRIPT = MEMBER / "hatch_build.py"
COMPILER = """
import json, pathlib, sys
arguments = sys.argv[1:]
pathlib.Path(arguments[arguments.index("-o") + 1]).write_text(json.dumps(arguments))
"""


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("expert_maps_hatch_build", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project with the hook's inputs, and EXPERT_MAPS_CC set to the compiler that writes down."""
    root = tmp_path / "project"
    package = root / "src" / "expert_maps"
    package.mkdir(parents=True)
    shutil.copy(_library.__file__, package)
    (root / "native").mkdir()
    for name in ("plan.c", "layer.c", "plan.h"):
        (root / "native" / name).write_text(f"/* {name} */\n")
    (tmp_path / "compiler.py").write_text(COMPILER)
    for name in ("CC", "EXPERT_MAPS_CFLAGS", "EXPERT_MAPS_WHEEL_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(
        "EXPERT_MAPS_CC", shlex.join([sys.executable, str(tmp_path / "compiler.py"), "--mark"])
    )
    return root


def hook_of(root: Path) -> BuildHookInterface[Any]:
    hook: BuildHookInterface[Any] = load_script().PlannerBuildHook(
        str(root), {}, None, None, str(root / "dist"), "wheel"
    )
    return hook


def no_compiler(monkeypatch: pytest.MonkeyPatch, empty: Path) -> None:
    for name in ("CC", "EXPERT_MAPS_CC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(empty))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ziglang" else find_spec(name)
    )


def _files(package: Path) -> list[str]:
    """Return what a package holds, but for what Python compiles of it."""
    return sorted(path.name for path in package.iterdir() if path.is_file())


def test_an_editable_install_gets_the_library_beside_its_modules(project: Path) -> None:
    package = project / "src" / "expert_maps"
    (package / _library.LIBRARY).write_text("an older one")
    mapped = (package / _library.LIBRARY).open(encoding="utf-8")
    data: dict[str, Any] = {"force_include": {}}
    hook = hook_of(project)
    hook.initialize("editable", data)
    hook.finalize("editable", data, "")
    arguments = json.loads((package / _library.LIBRARY).read_text())
    assert arguments[0] == "--mark"
    assert [argument for argument in arguments if argument.endswith(".c")] == ["layer.c", "plan.c"]
    assert f'-DEXPERT_MAPS_SOURCE_HASH="{_library.source_hash(project / "native")}"' in arguments
    assert "-ffp-contract=off" in arguments
    assert _files(package) == ["_library.py", _library.LIBRARY]
    assert data["force_include"] == {}
    # Who has the old library open keeps it whole.
    with mapped:
        assert mapped.read() == "an older one"


def test_a_wheel_gets_the_library_and_the_source_tree_none(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPERT_MAPS_WHEEL_PLATFORM", "manylinux_2_17_aarch64")
    monkeypatch.setenv("EXPERT_MAPS_CFLAGS", "-O1 '-DWORDS=two words'")
    data: dict[str, Any] = {"force_include": {}}
    hook = hook_of(project)
    hook.initialize("standard", data)
    ((built, name),) = data["force_include"].items()
    assert name == f"expert_maps/{_library.LIBRARY}"
    arguments = json.loads(Path(built).read_text())
    assert arguments.index("-O1") > arguments.index("-O3")
    assert "-DWORDS=two words" in arguments
    assert data["pure_python"] is False
    assert data["tag"] == "py3-none-manylinux_2_17_aarch64"
    assert not (project / "src" / "expert_maps" / _library.LIBRARY).exists()
    hook.finalize("standard", data, "")
    assert not Path(built).parent.exists()


def test_the_usual_tag_promises_no_older_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXPERT_MAPS_WHEEL_PLATFORM", raising=False)
    platform = load_script().wheel_platform()
    assert not platform.startswith(("manylinux", "musllinux"))
    assert platform != "any"


def test_ziglang_is_asked_for_only_where_no_compiler_is(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hook_of(project).dependencies() == []
    no_compiler(monkeypatch, tmp_path)
    assert hook_of(project).dependencies() == ["ziglang>=0.13"]
    for name in ("clang", "cc"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
        assert hook_of(project).dependencies() == []
        assert load_script().find_compiler() == [str(tmp_path / name)]


def test_ziglang_is_taken_where_it_is_the_only_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_compiler(monkeypatch, tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert load_script().find_compiler() == [sys.executable, "-m", "ziglang", "cc", "-mcpu=baseline"]


def test_no_compiler_and_a_failing_one_stop_an_editable_install(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data: dict[str, Any] = {"force_include": {}}
    package = project / "src" / "expert_maps"
    (package / _library.LIBRARY).write_text("an older one")
    failing = [sys.executable, "-c", "import sys; sys.exit('plan.c:1: no such thing')"]
    idle = [sys.executable, "-c", ""]
    for command, message in (
        (shlex.join(failing), r"(?s)was not compiled by\n.*-O3.*plan\.c:1: no such thing"),
        (shlex.join(idle), "was not compiled by"),
        ("/no/such/compiler", "the C compiler /no/such/compiler cannot be run: No such file"),
    ):
        monkeypatch.setenv("EXPERT_MAPS_CC", command)
        with pytest.raises(SystemExit, match=message):
            hook_of(project).initialize("editable", data)
    no_compiler(monkeypatch, tmp_path)
    with pytest.raises(
        SystemExit, match="needs a C compiler for its planner: none of cc, gcc, clang is on the PATH"
    ):
        hook_of(project).initialize("editable", data)
    assert _files(package) == ["_library.py", _library.LIBRARY]
    assert (package / _library.LIBRARY).read_text() == "an older one"


def test_a_wheel_is_pure_where_nothing_compiles_and_no_compiler_was_named(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build() -> dict[str, Any]:
        data: dict[str, Any] = {"force_include": {}}
        hook = hook_of(project)
        hook.initialize("standard", data)
        hook.finalize("standard", data, "")
        return data

    pure: dict[str, Any] = {"force_include": {}}
    # Named for this package: it is meant, and its failure is an error.
    monkeypatch.setenv("EXPERT_MAPS_CC", "false")
    with pytest.raises(SystemExit, match="was not compiled by\nfalse"):
        build()
    monkeypatch.setenv("EXPERT_MAPS_CC", "none")
    assert build() == pure
    assert hook_of(project).dependencies() == []
    no_compiler(monkeypatch, tmp_path)
    assert build() == pure
    # The environment's own.
    monkeypatch.setenv("CC", shlex.join([sys.executable, "-c", "raise SystemExit(1)"]))
    assert hook_of(project).dependencies() == []
    assert build() == pure
    monkeypatch.setenv("CC", shlex.join([sys.executable, str(tmp_path / "compiler.py")]))
    assert build()["force_include"]


def test_an_install_without_the_planner_plans_by_the_policies_that_need_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPERT_MAPS_LIBRARY", str(tmp_path / "absent.so"))
    _library.load_library.cache_clear()
    load = np.arange(1.0, 9.0)[None]
    try:
        with pytest.raises(ExpertMapsError, match="the policies reference and deepseek"):
            expert_maps.plan(load, ep_size=2, num_physical_experts=10)
        for policy in ("reference", "deepseek"):
            assert (
                expert_maps.plan(load, ep_size=2, num_physical_experts=10, policy=policy).balancedness > 0.9
            )
    finally:
        _library.load_library.cache_clear()
