# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""CANN's run time."""

from __future__ import annotations

from typing import NoReturn


def memcpy(*_: object) -> NoReturn:
    """Refuse.

    Raises:
        NotImplementedError: always.
    """
    msg = "acl.rt.memcpy is not emulated; expected no sleep mode"
    raise NotImplementedError(msg)
