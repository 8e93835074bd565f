# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Finds and loads the compiled planner, whose C sources are in ``native``.

The build hook loads this file by its path, in an environment without NumPy: nothing here imports the package when
it is read.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
from pathlib import Path

LIBRARY = "_planner.so"
# Of what is passed to the compiled planner; as in `native/plan.h`.
INTERFACE_VERSION = 3
# Beside `src` in a checkout; nothing when installed from a wheel.
SOURCES = Path(__file__).parents[2] / "native"


def source_hash(folder: Path) -> str:
    """Return the SHA-256, in hexadecimal, of the names and contents of the C sources and headers in a folder."""
    digest = hashlib.sha256()
    for path in sorted((*folder.glob("*.c"), *folder.glob("*.h"))):
        content = path.read_bytes()
        # The length keeps the end of one file from being read as the start of the next.
        digest.update(f"{path.name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


@functools.cache
def load_library() -> ctypes.CDLL:
    """Load the compiled planner, once.

    It is the file beside this one, or the one that the environment variable ``EXPERT_MAPS_LIBRARY`` names.

    Returns:
        The library; its functions have no argument types yet.

    Raises:
        ExpertMapsError: there is no such file, it is of another machine, or it was compiled from sources other than
            those of this checkout; or, in an installation, it has another interface.
    """
    from expert_maps.errors import ExpertMapsError

    named = os.environ.get("EXPERT_MAPS_LIBRARY")
    path = Path(named) if named else Path(__file__).with_name(LIBRARY)
    if not path.is_file():
        msg = (
            f"the compiled planner {path} is missing: expert-maps was installed where no C compiler worked; with one, "
            "install it again (pip install --force-reinstall --no-deps --no-cache-dir expert-maps); "
            "the policies reference and deepseek* need none"
        )
        raise ExpertMapsError(msg)
    try:
        library = ctypes.CDLL(str(path.absolute()))
    except OSError as error:
        msg = f"the compiled planner {path} cannot be loaded: {error}; the policies reference and deepseek* need none"
        raise ExpertMapsError(msg) from error
    found = _interface_of(library)
    if found != INTERFACE_VERSION:
        msg = (
            f"the compiled planner {path} has {'no interface version' if found is None else f'interface version {found}'}; "
            f"expected {INTERFACE_VERSION}: it is of another release of expert-maps"
        )
        raise ExpertMapsError(msg)
    if (SOURCES / "plan.c").is_file() and _hash_in(library) != source_hash(SOURCES):
        msg = (
            f"the compiled planner {path} was built from other sources than {SOURCES} holds: "
            "install again (pip install -e packages/expert-maps)"
        )
        raise ExpertMapsError(msg)
    return library


def _hash_in(library: ctypes.CDLL) -> str | None:
    """Return the hash of the sources that a library was compiled from, None where it says nothing."""
    try:
        function = library.expert_maps_source_hash
    except AttributeError:
        return None
    function.argtypes = ()
    function.restype = ctypes.c_char_p
    text: bytes | None = function()
    return None if text is None else text.decode()


def _interface_of(library: ctypes.CDLL) -> int | None:
    """Return the version of what a library is passed, None where it says nothing: then it is no planner."""
    try:
        function = library.expert_maps_interface
    except AttributeError:
        return None
    function.argtypes = ()
    function.restype = ctypes.c_int64
    return int(function())
