# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Standard input, under the name ``-``."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from expert_maps import limits
from expert_maps.errors import FormatError
from expert_maps.files import Source

if TYPE_CHECKING:
    from expert_maps.files import AnyPath


def as_input(path: AnyPath) -> AnyPath:
    """Return what is read under this name: for ``-`` standard input, whole, else the path or source itself.

    Raises:
        FormatError: standard input is larger than any file may be.
    """
    if isinstance(path, Source) or os.fspath(path) != "-":
        return path
    content = sys.stdin.buffer.read(limits.MAX_FILE_BYTES + 1)
    if len(content) > limits.MAX_FILE_BYTES:
        msg = f"standard input has more than {limits.MAX_FILE_BYTES} bytes; expected at most so many"
        raise FormatError(msg)
    return Source("standard input", content)
