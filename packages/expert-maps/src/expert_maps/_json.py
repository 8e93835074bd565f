# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""JSON text to Python values, strictly, and for no more memory than `limits` allows."""

from __future__ import annotations

import json

import numpy as np

from expert_maps import limits
from expert_maps.errors import FormatError, printable

# Bytes that CPython 3.10 to 3.14 need at most for what one character begins or ends, on 64 bits: a number with its
# place in a list; a list with room for four; an object; an object's entry with its key, and twice while it is made.
# A backslash costs no memory, but time.
_COST = {b",": 40, b"[": 100, b"{": 100, b":": 360, b'"': 40, b"\\": 20}
# From here on, a byte begins a character of four bytes in UTF-8.
_FIRST_OF_FOUR = 0xF0
# Structure is looked through in pieces, so that it costs no memory beside the text.
_PIECE = 2**22
_TO_ZEROS = bytes(ord("0") if byte in b"0123456789" else ord(" ") for byte in range(256))
_NOT_STRUCTURE = bytes(byte for byte in range(256) if byte not in b'[]{}"')
_STEP = np.zeros(256, dtype=np.int8)
_STEP[list(b"[{")] = 1
_STEP[list(b"]}")] = -1


def parse_json(content: bytes, name: str) -> object:
    """Turn JSON text into Python values: UTF-8, no NaN, no key twice in one object.

    Args:
        content: the text, with or without a byte order mark.
        name: what messages call it.

    Raises:
        FormatError: not JSON, with line and column; or larger, deeper or with longer integers than `limits` allow.
    """
    _refuse_size(content, name)
    _refuse_depth(content, name)
    is_empty = not content.strip()
    parse_int = _parse_int if _may_have_long_integers(content) else None
    try:
        text = content.decode("utf-8-sig")
        del content  # where the caller does not keep them, the bytes need not stay
        return json.loads(
            text,
            parse_int=parse_int,
            parse_constant=_refuse_constant,
            object_pairs_hook=_refuse_repeated_keys,
        )
    except UnicodeDecodeError as error:
        msg = f"{name}: not UTF-8 text at byte {error.start}; expected a JSON file"
        raise FormatError(msg) from error
    except json.JSONDecodeError as error:
        reason = "the file is empty" if is_empty else error.msg
        msg = f"{name}: not valid JSON: {reason} at line {error.lineno}, column {error.colno}"
        raise FormatError(msg) from error
    except (ValueError, RecursionError) as error:
        msg = f"{name}: not valid JSON: {error}"
        raise FormatError(msg) from error


def _refuse_size(content: bytes, name: str) -> None:
    if len(content) > limits.MAX_JSON_BYTES:
        msg = f"{name}: {len(content)} bytes of JSON; expected at most {limits.MAX_JSON_BYTES}"
        raise FormatError(msg)
    lists = content.count(b"[") + content.count(b"{")
    if lists > limits.MAX_JSON_LISTS:
        msg = f"{name}: {lists} lists and objects of JSON; expected at most {limits.MAX_JSON_LISTS}: write large loads as .npy or .npz"
        raise FormatError(msg)
    width = text_width(content)
    memory = len(content) * (1 + width) + sum(content.count(char) * cost for char, cost in _COST.items())
    if b'"' in content:
        memory += len(content) * width  # strings are copied
    if memory > limits.MAX_JSON_MEMORY:
        msg = (
            f"{name}: {len(content)} bytes of JSON that take up to {memory} bytes to read; expected at most "
            f"{limits.MAX_JSON_MEMORY}: write large loads as .npy or .npz"
        )
        raise FormatError(msg)


def text_width(content: bytes) -> int:
    """Return the bytes that each character of a UTF-8 text takes once decoded: one wide character makes all of them wide."""
    if content.isascii():
        return 1
    return 4 if np.frombuffer(content, np.uint8).max() >= _FIRST_OF_FOUR else 2


def _refuse_depth(content: bytes, name: str) -> None:
    if content.count(b"[") + content.count(b"{") <= limits.MAX_DEPTH:
        return
    if b"\\" in content:
        # What a backslash escapes ends no string. A run of them is read from its left end, as here.
        content = content.replace(b"\\\\", b"").replace(b'\\"', b"")
    structure = np.frombuffer(content.translate(None, delete=_NOT_STRUCTURE), dtype=np.uint8)
    depth, is_inside = 0, False
    for start in range(0, len(structure), _PIECE):
        piece = structure[start : start + _PIECE]
        inside = np.logical_xor.accumulate(piece == ord('"')) ^ is_inside
        steps = np.where(inside, np.int8(0), _STEP[piece])
        depths = depth + np.cumsum(steps, dtype=np.int64)
        if depths.max() > limits.MAX_DEPTH:
            msg = f"{name}: lists and objects are nested {depths.max()} deep; expected at most {limits.MAX_DEPTH}"
            raise FormatError(msg)
        depth, is_inside = int(depths[-1]), bool(inside[-1])


def _may_have_long_integers(content: bytes) -> bool:
    """Whether there is a long run of digits, if perhaps within a string."""
    return b"0" * (limits.MAX_DIGITS + 1) in content.translate(_TO_ZEROS)


def _parse_int(digits: str) -> int:
    count = len(digits.lstrip("-"))
    if count > limits.MAX_DIGITS:
        msg = f"an integer of {count} digits; expected at most {limits.MAX_DIGITS}"
        raise ValueError(msg)
    return int(digits)


def _refuse_constant(name: str) -> float:
    msg = f"{name} is not a JSON number"
    raise ValueError(msg)


def _refuse_repeated_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        msg = f"key '{printable(twice)}' stands twice in one object"
        raise ValueError(msg)
    return result
