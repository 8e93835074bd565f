# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Which names of torch_npu a run used: ops, attributes of torch.npu, Triton kernels."""

from __future__ import annotations

import fcntl

from torch_npu import _environment

_listed: set[str] = set()
# Used before a file was named, as by the process of which an engine is a fork.
_unlisted: set[str] = set()


def used(name: str) -> None:
    """List a name in the file that the environment names, once whatever the number of processes."""
    if name in _listed:
        return
    _unlisted.add(name)
    path = _environment.names_file()
    if path is None:
        return
    with path.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        there = set(file.read().splitlines())
        file.writelines(f"{new}\n" for new in sorted(_unlisted - there))
    _listed.update(_unlisted)
    _unlisted.clear()
