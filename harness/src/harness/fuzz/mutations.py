# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: PLR2004 - chances, and no secrets
"""Mutations: of bytes, of numbers in a text, of what a JSON text says, and of what is inside an archive."""

from __future__ import annotations

import gzip
import io
import json
import re
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

# What a value of a JSON file may be replaced by: other types, and counts that no array can have.
STRANGERS: tuple[object, ...] = (
    None, True, False, -1, 0, 1, 2, 7, 1.5, float("nan"), float("inf"), -0.0, 1e308, 2**31, 2**53, 2**63, 2**64, 10**18,
    10**300, 65536, 4096, "", "x\x1b[2J\n", "\ud800", "1", "NaN", "../x", "\x00", [], [[]], {}, [[1], [2, 3]], [[[1]]],
    {"a": {}}, {"1": {"1": 1}}, ["1"], [None], [10**20], [True],
)  # fmt: skip
_NUMBERS = (
    b"-1",
    b"0",
    b"1",
    b"1e309",
    b"18446744073709551616",
    b"9223372036854775807",
    b"2147483648",
    b"65537",
    b"0.5",
)
_TOKENS = (
    b"{", b"}", b"[", b"]", b'"', b",", b":", b"'", b"(", b")", b"\\", b"\n", b"\r", b"\x00", b"\x1b", b"\xff", b"\xef\xbb\xbf",
    b"&a ", b"*a", b"!!int ", b"<<: ", b"- ", b"? ", b"|", b">", b"#", b"%TAG ", b"---\n", b"PK\x03\x04", b"\x1f\x8b", b"\x93NUMPY",
    b"nan", b"inf", b"null", b"true", b"1e5", b"\\u0000", b"\xf0\x9f\x98\x80", b'"a":', b";", b"\t",
)  # fmt: skip
_LONGEST = 4096


def mutate(content: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """Return an input that is a few changes away from another, of at most some thousand bytes.

    Args:
        content: the other.
        random: decides.
        others: inputs of the same target, parts of which are put in.
    """
    kind = random.random()
    changed = content
    if kind < 0.45 and content[:1] in b"{[":
        changed = _json(content, random)
    elif kind < 0.5 and content[:2] in {b"PK", b"\x1f\x8b"}:
        changed = _packed(content, random, others)
    if changed is content:
        changed = _bytes(content, random, others)
    return changed if len(changed) <= max(_LONGEST, 2 * len(content)) else changed[:_LONGEST]


def _bytes(content: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        place = random.randrange(len(changed) + 1)
        # Headers are where damage matters, and they are short.
        place = place if random.random() < 0.6 else min(place, random.randrange(130))
        random.choice(_EDITS)(changed, place, random)
    if random.random() < 0.1:
        other = random.choice(others)
        start, place = random.randrange(len(other) + 1), random.randrange(len(changed) + 1)
        changed[place : place + random.randrange(40)] = other[start : start + random.randrange(200)]
    return bytes(changed)


def _cut(changed: bytearray, place: int, random: Random) -> None:
    del changed[place : place + random.choice((1, 2, 8, len(changed)))]


def _repeat(changed: bytearray, place: int, random: Random) -> None:
    changed[place:place] = changed[place : place + random.randrange(1, 40)] * random.choice((1, 1, 2, 30))


def _byte(changed: bytearray, place: int, random: Random) -> None:
    changed[place : place + 1] = bytes([random.randrange(256)])


def _bit(changed: bytearray, place: int, random: Random) -> None:
    if place < len(changed):
        changed[place] ^= 1 << random.randrange(8)


def _token(changed: bytearray, place: int, random: Random) -> None:
    changed[place : place + random.randrange(2)] = random.choice(_TOKENS)


def _number(changed: bytearray, _place: int, random: Random) -> None:
    numbers = list(re.finditer(rb"-?\d+", changed))
    if numbers:
        found = random.choice(numbers)
        changed[found.start() : found.end()] = random.choice(_NUMBERS)


_EDITS = (_cut, _repeat, _byte, _bit, _token, _number)


def _json(content: bytes, random: Random) -> bytes:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return content
    for _ in range(random.choice((1, 1, 2, 3))):
        document = _change(document, random)
    return json.dumps(document).encode()


def _change(document: Any, random: Random, depth: int = 0) -> Any:  # noqa: ANN401 - any JSON
    """Change one place: the deeper, the likelier further down."""
    inside = isinstance(document, dict | list) and len(document) and depth < 12
    if not inside or random.random() < 0.12:
        return _other(document, random)
    if isinstance(document, dict):
        key = random.choice(list(document))
        changed = dict(document)
        if random.random() < 0.1:
            changed.pop(key)
        elif random.random() < 0.1:
            changed[random.choice((key + "x", "", key.upper(), "0", "-1", key * 20))] = changed.pop(key)
        else:
            changed[key] = _change(document[key], random, depth + 1)
        return changed
    index = random.randrange(len(document))
    return [*document[:index], _change(document[index], random, depth + 1), *document[index + 1 :]]


def _other(document: Any, random: Random) -> Any:  # noqa: ANN401 - any JSON
    match random.randrange(6):
        case 0:
            return [document]
        case 1 if isinstance(document, list):
            return [*document, *document]
        case 2 if isinstance(document, list) and document:
            return document[:-1]
        case 3 if isinstance(document, int) and not isinstance(document, bool):
            return document + random.choice((-1, 1, 100))
        case _:
            return random.choice(STRANGERS)


def _packed(content: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """Change what is inside, and pack it again, so that no checksum gives it away."""
    try:
        if content[:2] != b"PK":
            return gzip.compress(_bytes(gzip.decompress(content), random, others), 1, mtime=0)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    except Exception:  # noqa: BLE001 - damaged before: whatever these readers say of it
        return content
    if not entries:
        return content
    index = random.randrange(len(entries))
    name, inner = entries[index]
    if random.random() < 0.2:
        name = random.choice(("", "x", "../a.npy", "a.npy", name + ".npy", "\x1b.npy", entries[0][0]))
    entries[index] = (name, _bytes(inner, random, others))
    buffer = io.BytesIO()
    kind = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    # That a name is there twice is meant.
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", kind) as archive:
        warnings.simplefilter("ignore")
        for name, inner in entries:
            archive.writestr(zipfile.ZipInfo(name or "x"), inner)
    return buffer.getvalue()
