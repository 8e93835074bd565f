# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The build hook: compiles the planner in ``native`` and puts it into the wheel, or beside an editable install.

Where nothing compiles it, a wheel is built without it, for any machine: all but the policy ``balanced`` works then,
and a plan by that policy says what to do. An editable install is for those who change the planner: it fails.

Read from the environment:
    EXPERT_MAPS_CC: the compiler's command, split as a shell does; if it fails, so does the build. ``none``: build
        without the planner. Where it is not set, ``CC``, ``cc``, ``gcc`` or ``clang`` is taken, or else the compiler
        in the package ``ziglang``.
    EXPERT_MAPS_CFLAGS: what is appended to the compiler's options, split likewise.
    EXPERT_MAPS_WHEEL_PLATFORM: the wheel's platform tag, for a compiler of another machine or of an older glibc.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import sys_tags

if TYPE_CHECKING:
    from types import ModuleType

COMPILERS = ("cc", "gcc", "clang")
# In EXPERT_MAPS_CC: no planner is wanted.
NONE = "none"
# No contraction: every machine must plan alike. No debug data: it would hold paths of the machine that builds.
# Warnings are no errors here, because a compiler that is newer than this release may have others.
# Nobody looks at errno, and without it roots are taken of four numbers at once.
FLAGS = (
    *("-O3", "-std=c11", "-ffp-contract=off", "-fno-math-errno"),
    *("-fvisibility=hidden", "-fPIC", "-shared", "-g0"),
)


def find_compiler() -> list[str] | None:
    """Return the command of the C compiler to use, None where there is none."""
    if named := shlex.split(os.environ.get("EXPERT_MAPS_CC") or os.environ.get("CC") or ""):
        return None if named == [NONE] else named
    for name in COMPILERS:
        if path := shutil.which(name):
            return [path]
    if importlib.util.find_spec("ziglang"):
        # By default zig compiles for exactly the processor that it runs on.
        return [sys.executable, "-m", "ziglang", "cc", "-mcpu=baseline"]
    return None


def wheel_platform() -> str:
    """Return the wheel's platform tag: the one asked for, or this machine's plain one."""
    # What is compiled here may need this machine's glibc or musl, so that no manylinux tag would be true.
    platforms = (tag.platform for tag in sys_tags())
    here = next(name for name in platforms if not name.startswith(("manylinux", "musllinux")))
    return os.environ.get("EXPERT_MAPS_WHEEL_PLATFORM") or here


class NotCompiledError(Exception):
    """There is no compiler, or it failed; the message says which."""


class PlannerBuildHook(BuildHookInterface[BuilderConfig]):
    """Compiles the planner for each wheel."""

    _scratch: TemporaryDirectory[str] | None = None

    def dependencies(self) -> list[str]:
        """Ask for a compiler from the package index only where the machine has none."""
        return [] if find_compiler() or os.environ.get("EXPERT_MAPS_CC") else ["ziglang>=0.13"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the library, and give the wheel the tag of its platform; without a library that of any."""
        try:
            self._add_library(version, build_data)
        except NotCompiledError as error:
            self._remove_scratch()
            named = os.environ.get("EXPERT_MAPS_CC")
            if version == "editable" or named not in {None, "", NONE}:
                raise SystemExit(str(error)) from error
            self.app.display_warning(f"built without the planner, for the policies that need none: {error}")
            return
        # Loaded by ctypes, so it fits every version of Python.
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{wheel_platform()}"

    def _add_library(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the library into the wheel, or beside the modules of an editable install."""
        library = self._library_module()
        if version == "editable":
            package = Path(self.root, "src", "expert_maps")
            # Builds may run at once, and processes may have the present library mapped: replaced, not rewritten.
            with TemporaryDirectory(dir=package, prefix=".planner-", suffix=".part") as folder:
                self._compile(library, Path(folder))
                Path(folder, library.LIBRARY).replace(package / library.LIBRARY)
            return
        # Not into the source tree: a wheel for another machine would break an editable install there.
        self._scratch = TemporaryDirectory()
        built = self._compile(library, Path(self._scratch.name))
        build_data["force_include"][str(built)] = f"expert_maps/{library.LIBRARY}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove what was compiled: it is in the wheel now."""
        self._remove_scratch()

    def _remove_scratch(self) -> None:
        if self._scratch is not None:
            self._scratch.cleanup()

    def _library_module(self) -> ModuleType:
        """Load the module that finds the library and hashes its sources, without importing its package."""
        path = Path(self.root, "src", "expert_maps", "_library.py")
        spec = importlib.util.spec_from_file_location("expert_maps_library", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def _compile(self, library: ModuleType, folder: Path) -> Path:
        """Compile the sources into a library in a folder, whose path is returned.

        Raises:
            NotCompiledError: no compiler, or one that fails.
        """
        compiler = find_compiler()
        if compiler is None:
            msg = (
                f"expert-maps needs a C compiler for its planner: none of {', '.join(COMPILERS)} is on the PATH and the "
                "package ziglang is not installed; install one of them, or name a compiler in EXPERT_MAPS_CC"
            )
            raise NotCompiledError(msg)
        sources = Path(self.root, "native")
        output = folder / library.LIBRARY
        command = [
            *compiler,
            *FLAGS,
            f'-DEXPERT_MAPS_SOURCE_HASH="{library.source_hash(sources)}"',
            *shlex.split(os.environ.get("EXPERT_MAPS_CFLAGS", "")),
            *sorted(path.name for path in sources.glob("*.c")),
            *("-o", str(output), "-lm"),
        ]
        try:
            run = subprocess.run(  # noqa: S603 (the user's own compiler)
                command, cwd=sources, check=False, capture_output=True, text=True, errors="replace"
            )
        except OSError as error:
            msg = f"the C compiler {compiler[0]} cannot be run: {error.strerror}"
            raise NotCompiledError(msg) from error
        if run.returncode or not output.is_file():
            msg = f"the planner of expert-maps was not compiled by\n{shlex.join(command)}\n{run.stderr}"
            raise NotCompiledError(msg)
        if run.stderr:
            self.app.display_warning(run.stderr)
        return output
