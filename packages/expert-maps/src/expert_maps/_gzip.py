# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Unpacking gzip within bounds of size, memory and time (RFC 1952; zlib reads the headers)."""

from __future__ import annotations

import io
import zlib

from expert_maps import limits
from expert_maps.errors import FormatError

MAGIC = b"\x1f\x8b"

_PIECE = 2**16
_WITH_GZIP_HEADER = 31


def unpack(content: bytes, name: str = "the file", most: int = limits.MAX_FILE_BYTES) -> bytes:
    """Return what a gzip file holds, all of its members; other content as it is.

    Args:
        content: a file's bytes.
        name: what messages call it.
        most: bytes that it may unpack to.

    Raises:
        FormatError: damaged, cut off, of too many members, or larger than that.
    """
    if not content.startswith(MAGIC):
        return content
    # Its buffer grows in place and becomes the result: the content is never held twice.
    unpacked = io.BytesIO()
    rest = memoryview(content)
    try:
        for _ in range(limits.MAX_ARRAYS):
            rest = _unpack_member(rest, unpacked, name, most)
            if not rest or (not any(rest[:_PIECE]) and not any(rest)):  # zeros may fill a block
                return unpacked.getvalue()
    except zlib.error as error:
        msg = f"{name}: not a whole gzip file: {error}"
        raise FormatError(msg) from error
    msg = f"{name}: has more than {limits.MAX_ARRAYS} gzip members; expected at most so many"
    raise FormatError(msg)


def unpack_once(content: bytes, name: str, most: int = limits.MAX_FILE_BYTES) -> bytes:
    """Return what a gzip file holds, if that is none again; arguments as of `unpack`.

    Raises:
        FormatError: as `unpack`, or packed twice.
    """
    unpacked = unpack(content, name, most)
    if unpacked is not content and unpacked.startswith(MAGIC):
        msg = f"{name}: compressed twice by gzip; expected once at most"
        raise FormatError(msg)
    return unpacked


def _unpack_member(packed: memoryview, unpacked: io.BytesIO, name: str, most: int) -> memoryview:
    """Append one member to what is unpacked; return what follows it."""
    member = zlib.decompressobj(wbits=_WITH_GZIP_HEADER)
    place = 0
    while not member.eof:
        # Of a piece no more is unpacked at once than a piece, however well it is packed.
        piece = member.unconsumed_tail or packed[place : place + _PIECE]
        if not piece:
            msg = f"{name}: not a whole gzip file: it is cut off"
            raise FormatError(msg)
        if not member.unconsumed_tail:
            place += len(piece)
        unpacked.write(member.decompress(piece, 16 * _PIECE))
        if unpacked.tell() > most:
            msg = f"{name}: unpacks to more than {most} bytes; expected at most so many"
            raise FormatError(msg)
    return packed[place - len(member.unused_data) :]
