# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The planner under sanitizers."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from harness.sessions.environments import COMPILERS, CORE, ENV, Shared, install_dev
from harness.sessions.wheels import LIBRARY

if TYPE_CHECKING:
    from collections.abc import Sequence

    import nox


def run_sanitized(session: nox.Session, options: Sequence[str]) -> None:
    """Run the planner's tests with a library that stops at a bad address and at undefined behaviour.

    Args:
        session: `sanitize`; its words take the place of the tests.
        options: pytest's, for all of them.
    """
    compiler = next(filter(shutil.which, COMPILERS), None)
    if compiler is None:
        session.skip(f"none of {', '.join(COMPILERS)} is on the PATH")
    runtimes = [_of_compiler(session, compiler, name) for name in ("libasan.so", "libubsan.so")]
    if None in runtimes:
        session.skip(f"{compiler} has no sanitizers")
    shared = install_dev(session)
    flags = "-g -fno-omit-frame-pointer -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all"
    library = _compile_sanitized(session, shared, compiler, flags)
    # Python's own leaks are not ours. Without libstdc++ from the start, SciPy's exceptions stop the sanitizer.
    preload = " ".join(filter(None, [*runtimes, _of_compiler(session, compiler, "libstdc++.so.6")]))
    env = {"LD_PRELOAD": preload, "EXPERT_MAPS_LIBRARY": library}
    env |= {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    # Those of the reference call every C file.
    names = ("test_balanced*.py", "test_reference*.py")
    tests = sorted(str(path) for name in names for path in Path(CORE, "tests").glob(name))
    # pytest would keep to itself what a sanitizer says at the end of the process.
    arguments = ["--capture=sys", *(session.posargs or [*tests, *options])]
    shared.run("python", "-m", "pytest", *arguments, env={**ENV, **env})
    # Threads by themselves: no library has both sanitizers.
    runtime = _of_compiler(session, compiler, "libtsan.so")
    if runtime is None or session.posargs:
        return
    library = _compile_sanitized(session, shared, compiler, "-g -fno-omit-frame-pointer -fsanitize=thread")
    env = {"LD_PRELOAD": runtime, "EXPERT_MAPS_LIBRARY": library, "TSAN_OPTIONS": "halt_on_error=1"}
    tests = [f"{CORE}/tests/test_threads.py", "-k", "threads and not forks"]
    shared.run("python", "-m", "pytest", "--capture=sys", *tests, env={**ENV, **env})


def _compile_sanitized(session: nox.Session, shared: Shared, compiler: str, flags: str) -> str:
    scratch = Path(session.create_tmp()).absolute() / "wheel"
    shutil.rmtree(scratch, ignore_errors=True)
    warnings = "-Wall -Wextra -Wconversion -Wno-sign-conversion -Werror"
    options = {"EXPERT_MAPS_CC": compiler, "EXPERT_MAPS_CFLAGS": f"{flags} {warnings}"}
    wheel = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(scratch), CORE]
    shared.run("python", "-m", "pip", "wheel", "--quiet", *wheel, env=options)
    with zipfile.ZipFile(next(scratch.glob("expert_maps-*.whl"))) as archive:
        return archive.extract(LIBRARY, scratch)


def _of_compiler(session: nox.Session, compiler: str, name: str) -> str | None:
    """Return the path of a library that comes with a compiler, None where it has none."""
    found = session.run(compiler, f"-print-file-name={name}", external=True, silent=True)
    path = str(found).strip()
    # A compiler answers with the bare name where it knows none.
    return path if Path(path).is_absolute() else None
