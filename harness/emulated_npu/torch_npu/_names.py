# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Which names of torch_npu a run used: ops, attributes of torch.npu, Triton kernels."""

from __future__ import annotations

import fcntl

from torch_npu import _environment

_seen: set[str] = set()


def used(name: str) -> None:
    """List a name in the file that the environment names, once whatever the number of processes."""
    if name in _seen:
        return
    _seen.add(name)
    path = _environment.names_file()
    if path is None:
        return
    with path.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        if name not in file.read().splitlines():
            file.write(f"{name}\n")
