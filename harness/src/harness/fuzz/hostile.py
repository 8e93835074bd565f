# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Files that are made to harm, each a case of its own: by their kind, their size when unpacked, their counts, their depth."""

from __future__ import annotations

import gzip
import io
import json
import os
import socket
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from expert_maps import inspect_load, inspect_map, read_weights
from expert_maps.models import model_counts
from harness.accuracy.loading import load_config
from harness.accuracy.records import read_record
from harness.fuzz import seeds
from harness.fuzz.judging import Finding, judge
from harness.fuzz.targets import Target
from harness.record import history

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PLACEMENT = seeds.PLACEMENT
_READERS: dict[str, Callable[[Path], object]] = {
    "load": inspect_load,
    "map": inspect_map,
    "weights": lambda path: read_weights(path, _PLACEMENT),
    "model": model_counts,
    "configuration": lambda path: load_config(str(path)),
    "history": history.read,
    "record": lambda path: read_record(path.parent),
}
_NAMES = {"configuration": "a.yaml", "record": "summary.json", "model": "config.json"}


def try_all() -> tuple[int, list[Finding]]:
    """Let every reader read every hostile file; none may be read, wait, or cost much.

    Returns:
        how many cases there were, and what was found.
    """
    count, findings = 0, []
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        for kind, make in {**_KINDS, **_CONTENTS}.items():
            for reader, read in _READERS.items():
                place = Path(folder) / f"{count}"
                place.mkdir()
                path = place / _NAMES.get(reader, "file")
                make(path)
                count += 1
                found = _try(f"{kind}, {reader}", read, path)
                findings += [] if found is None else [found]
    return count, findings


def _try(name: str, read: Callable[[Path], object], path: Path) -> Finding | None:
    judged = judge(Target(name, lambda _: read(path), ()), b"")
    if judged.is_read:
        return Finding(name, "read", "it was read; expected a refusal", b"")
    return judged.finding


def _content(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def _link(target: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.symlink_to(target)

    return make


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(100 * 2**30)


def _loop(path: Path) -> None:
    path.symlink_to(path.with_name("other"))
    path.with_name("other").symlink_to(path)


def _zip(entries: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind, compresslevel=1) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _npy_header(descr: str, shape: str) -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def _object_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def _golden(**changes: object) -> bytes:
    known = json.loads(seeds.JSON_MAPS[2])
    return json.dumps({**known, **changes}).encode()


_KINDS: dict[str, Callable[[Path], None]] = {
    "absent": lambda _path: None,
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a socket": _socket,
    "a device": _link("/dev/zero"),
    "another device": _link("/dev/tty"),
    "a file of the kernel": _link("/proc/self/mem"),
    "a loop of links": _loop,
    "a link to nothing": _link("nothing"),
    "a sparse file": _sparse,
}


def _contents() -> Iterator[tuple[str, bytes]]:
    """Yield what a file may hold; nothing of it is right for any reader."""
    yield "empty", b""
    yield "zeros", bytes(2**20)
    for name, pair in {
        "lists": (b"[", b"]"),
        "objects": (b'{"a":', b"}"),
        "YAML lists": (b"- ", b""),
    }.items():
        yield f"deep {name}", pair[0] * 100_000 + pair[1] * 100_000
    yield "deep JSON of the right kind", b'{"load": ' + b"[" * 200 + b"]" * 200 + b"}"
    aliases = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    yield "an alias bomb", "\n".join(aliases).encode()
    yield "20,000 keys", b"".join(b"k%d: 1\n" % number for number in range(20_000))
    yield "a tag that runs code", b"!!python/object/apply:os.system ['true']"
    yield "a gzip bomb", gzip.compress(bytes(2**26), 1, mtime=0) * 9
    yield (
        "a gzip in a gzip",
        gzip.compress(gzip.compress(gzip.compress(b"[" * 10**6, mtime=0), mtime=0), mtime=0),
    )
    yield (
        "a zip bomb",
        _zip({f"{number}.npy": _npy_header("<i8", "(8388608,)") + bytes(2**26) for number in range(9)}),
    )
    yield "a zip of one name", _zip({"../../a.npy": b"x"})
    yield "a zip without arrays", _zip({"a.npy": b"no array", "b.txt": b""})
    whole = _zip({"load.npy": _npy_header("<i8", "(1, 8)") + bytes(64)})
    yield "a cut zip", whole[:-30]
    stored = _zip({"load.npy": _npy_header("<i8", "(1, 8)") + bytes(64)}, zipfile.ZIP_STORED)
    yield "a zip whose checksum is wrong", stored.replace(bytes(64), bytes(63) + b"\x01")
    yield "a pickle", b"\x80\x04\x95" + bytes(20) + b"cos\nsystem\n(S'true'\ntR."
    yield "an array of objects", _object_array()
    yield "an array of more numbers than there are bytes", _npy_header("<i8", "(4611686018427387904, 4)")
    yield "an array whose size wraps", _npy_header("<i8", "(4294967296, 4294967296)")
    yield "an array of negative size", _npy_header("<i8", "(-1, 8)") + bytes(64)
    yield "an array without a type", _npy_header("", "()")
    yield "a header without an end", b"\x93NUMPY\x01\x00\x10\x00{'descr': '<i8'"
    yield "a header of 2^63", (2**63).to_bytes(8, "little") + b'{"a":1}'
    yield "a long number", b'{"load": [[' + b"9" * 1_000_000 + b"]]}"
    yield "a key twice", b'{"load": [[1, 2]], "load": [[3, 4]]}'
    yield "not UTF-8", b'{"load": "\xff\xfe"}'
    counts: tuple[object, ...] = (2**31, 2**63 - 1, 2**64, 10**300, -1, 1.5, None, [], {})
    for count in counts:
        for key in ("num_layers", "num_logical_experts"):
            yield f"{key} {count!r:.12}", _golden(**{key: count})
    yield "slots that wrap", _golden(slots_per_rank=[2**63 - 1, 2**63 - 1, 4])
    yield "60,000 ranks", _golden(slots_per_rank=[0] * 60_000)
    yield "an expert that is none", _golden(physical_to_logical=[[10**18] * 10] * 2)
    yield "a model of 10^18 layers", json.dumps({"num_hidden_layers": 10**18, "num_experts": 10**18}).encode()
    yield "a config that holds itself", b"a: &x\n  b: *x\n"


_CONTENTS = {name: _content(content) for name, content in _contents()}
__all__ = ["try_all"]
