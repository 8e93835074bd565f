# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A copy of the project in which faults are tried; the project itself is only read."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.mutants.mutant import Mutant, MutantError

if TYPE_CHECKING:
    from collections.abc import Iterable

CORE = "packages/expert-maps"
_COPIED = ("packages", "harness", "golden", "pyproject.toml", "README.md")
_LEFT_OUT = ("__pycache__", "*.so", "build", "dist", "records", ".*")
_COMPILERS = ("cc", "gcc", "clang")
# As the wheel is built, but at once: what is compiled is run a few seconds.
_FLAGS = ("-O1", "-std=c11", "-ffp-contract=off", "-fvisibility=hidden", "-fPIC", "-shared")
_TIMEOUT_SECONDS = 300
# pytest's exit codes: all passed, some failed. Others say that nothing was tested.
_PASSED, _FAILED = 0, 1


@dataclass(frozen=True)
class Outcome:
    """What a test said of a fault: who caught it, or None where it survived."""

    mutant: Mutant
    caught_by: str | None


class Copy:
    """A copy of the project in a folder of its own; this object alone changes it.

    The C sources are moved beside it, because the library refuses to be used with sources that it was not compiled from.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        """Copy what the tests need.

        Raises:
            MutantError: there is no C compiler.
        """
        self.root, self.native, self.objects = folder / "copy", folder / "native", folder / "objects"
        self.root.mkdir()
        for name in _COPIED:
            source = root / name
            if source.is_dir():
                shutil.copytree(source, self.root / name, ignore=shutil.ignore_patterns(*_LEFT_OUT))
            else:
                shutil.copy(source, self.root / name)
        shutil.move(self.root / CORE / "native", self.native)
        self.objects.mkdir()
        named = shlex.split(os.environ.get("EXPERT_MAPS_CC", ""))
        found = named or [name for name in _COMPILERS if shutil.which(name)][:1]
        if not found:
            msg = f"no C compiler: none of {', '.join(_COMPILERS)} is on the PATH; name one in EXPERT_MAPS_CC"
            raise MutantError(msg)
        self.compiler = found
        self.library = folder / "planner.so"
        self._compile(sorted(self.native.glob("*.c")))

    def check(self, mutants: Iterable[Mutant]) -> None:
        """Run the tests without any fault.

        Raises:
            MutantError: one fails, or there is none of that name: it would show nothing.
        """
        tests = sorted({mutant.test for mutant in mutants})
        code, output = self._run(tests)
        if code != _PASSED:
            msg = f"without any fault these tests do not pass:\n{output}"
            raise MutantError(msg)

    def try_out(self, mutant: Mutant) -> Outcome:
        """Put a fault in, run its test, and take the fault out again.

        Raises:
            MutantError: the text has changed, it does not compile, or the test says nothing.
        """
        base = self.native.parent if mutant.is_native else self.root
        path = self._path(mutant)
        text = path.read_text(encoding="utf-8")
        placed = Mutant(mutant.what, str(path.relative_to(base)), mutant.before, mutant.after, mutant.test)
        path.write_text(placed.applied(base), encoding="utf-8")
        try:
            if mutant.is_native:
                self._compile([path] if path.suffix == ".c" else sorted(self.native.glob("*.c")))
            code, output = self._run([mutant.test])
        finally:
            path.write_text(text, encoding="utf-8")
            if mutant.is_native:
                self._compile([path] if path.suffix == ".c" else sorted(self.native.glob("*.c")))
        if code == _PASSED:
            return Outcome(mutant, None)
        if code < 0:
            return Outcome(mutant, f"{mutant.test} (the process died of signal {-code})")
        failed = re.findall(r"^FAILED (\S+)", output, flags=re.MULTILINE)
        if code != _FAILED or not failed:
            msg = f"mutant '{mutant.what}': {mutant.test} said nothing:\n{output}"
            raise MutantError(msg)
        return Outcome(mutant, failed[0])

    def _path(self, mutant: Mutant) -> Path:
        if mutant.is_native:
            return self.native / Path(mutant.file).name
        return self.root / mutant.file

    def _compile(self, sources: Iterable[Path]) -> None:
        """Compile some sources, and link all.

        Raises:
            MutantError: the compiler refuses.
        """
        for source in sources:
            output = self.objects / f"{source.stem}.o"
            self._call([*self.compiler, *_FLAGS[:-1], "-c", str(source), "-o", str(output)])
        objects = sorted(map(str, self.objects.glob("*.o")))
        self._call([*self.compiler, "-shared", *objects, "-o", str(self.library), "-lm"])

    def _call(self, command: list[str]) -> None:
        run = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - the compiler
        if run.returncode:
            msg = f"{shlex.join(command)}: {run.stderr}"
            raise MutantError(msg)

    def _run(self, tests: list[str]) -> tuple[int, str]:
        """Run tests of the copy; returns pytest's exit code and what it printed."""
        sources = [self.root / part / "src" for part in (CORE, "packages/vllm-ascend-moe", "harness")]
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, sources)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "EXPERT_MAPS_LIBRARY": str(self.library),
        }
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
        try:
            run = subprocess.run(  # noqa: S603 - pytest
                command,
                cwd=self.root,
                env=env,
                check=False,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            msg = f"{' '.join(tests)}: no answer in {_TIMEOUT_SECONDS} s"
            raise MutantError(msg) from error
        return run.returncode, run.stdout[-4000:] + run.stderr[-2000:]
