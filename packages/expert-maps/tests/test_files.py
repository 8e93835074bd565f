# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from expert_maps import FormatError, _replace, files, limits

# With nameless temporary files, and as on a system or file system that has none.
WITH_AND_WITHOUT_NAMES = pytest.mark.parametrize("nameless", [True, False])


def by_message(value: object) -> str:
    """Name a case; contents hold times, and ids must be the same in every process."""
    return value if isinstance(value, str) else getattr(value, "__name__", "content")


@pytest.fixture
def nameless(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    has_them: bool = request.param
    if not has_them:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    return has_them


def test_of_a_bare_name_it_is_said_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert files.describe("a.json") == f"a.json (in {tmp_path})"
    assert files.describe("./a.json") == "./a.json"


def test_a_bare_name_goes_into_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files.write_text("map.json", "{}")
    assert (tmp_path / "map.json").read_text() == "{}"
    assert [path.name for path in tmp_path.iterdir()] == ["map.json"]


@WITH_AND_WITHOUT_NAMES
@pytest.mark.usefixtures("nameless")
def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "map.json"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(FormatError, match="cannot be written: No space left on device"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folders_folders_and_devices_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    for name, message in (
        ("no/such/map.json", "there is no folder"),
        (".", "is a folder"),
        ("file/map.json", "there is no folder|Not a directory"),
        ("x" * 300, "cannot be written"),
        ("loop", "cannot be written"),
    ):
        with pytest.raises(FormatError, match=message):
            files.write_text(tmp_path / name, "{}")
    with pytest.raises(FormatError, match="not a regular file"):
        files.write_text("/dev/null", "{}")
    with pytest.raises(FormatError, match="is empty"):
        files.write_text("", "{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(FormatError, match="Permission denied"):
        files.write_text(tmp_path / "map.json", "{}")


def test_a_folder_that_takes_no_files_is_refused() -> None:
    # As root too, unlike a folder without write permission.
    if not Path("/proc/self").is_dir():
        pytest.skip("no /proc on this system")
    with pytest.raises(FormatError, match="cannot be written"):
        files.write_text("/proc/self/map.json", "{}")


@WITH_AND_WITHOUT_NAMES
@pytest.mark.usefixtures("nameless")
def test_links_and_modes_are_kept_but_no_rights_of_others(tmp_path: Path) -> None:
    target = tmp_path / "target.json"
    target.write_text("old")
    target.chmod(0o7640)
    (tmp_path / "link.json").symlink_to(target)
    files.write_text(tmp_path / "link.json", "new")
    assert (tmp_path / "link.json").is_symlink()
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


@WITH_AND_WITHOUT_NAMES
@pytest.mark.usefixtures("nameless")
def test_a_new_file_has_the_usual_mode(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / "map.json", "{}")
    finally:
        os.umask(before)
    assert (tmp_path / "map.json").stat().st_mode & 0o777 == 0o640


def test_file_and_folder_go_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bool] = []

    def note(handle: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(handle).st_mode))

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "umask", lambda _mask: pytest.fail("the umask is the whole process's"))
    files.write_text(tmp_path / "map.json", "{}")
    assert synced == [False, True]


def test_a_name_of_many_bytes_is_no_obstacle(tmp_path: Path) -> None:
    name = "专" * 80
    for text in ("old", "new"):
        files.write_text(tmp_path / name, text)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["new"]


# Writes without end; killed at any moment, it must leave a whole file.
_WRITER = """
import os, sys
from expert_maps import files
if sys.argv[3] == "False":
    del os.O_TMPFILE
os.fsync = lambda handle: None  # only the order of calls matters here, and there are more of them
while True:
    files.write_bytes(sys.argv[1], sys.argv[2].encode() * 50_000)
"""


@WITH_AND_WITHOUT_NAMES
def test_two_writers_that_are_killed_leave_a_whole_file_and_no_other(tmp_path: Path, nameless: bool) -> None:
    path = tmp_path / "map.json"
    for delay in (0.01, 0.037):
        path.unlink(missing_ok=True)
        arguments = [sys.executable, "-c", _WRITER, str(path)]
        writers = [subprocess.Popen([*arguments, letter, str(nameless)]) for letter in "ab"]
        try:
            while not path.exists():
                assert all(writer.poll() is None for writer in writers)
            threading.Event().wait(delay)
        finally:
            for writer in writers:
                writer.send_signal(signal.SIGKILL)
                assert writer.wait() == -signal.SIGKILL
        assert path.read_bytes() in {b"a" * 50_000, b"b" * 50_000}
        files.write_bytes(path, b"after")
        assert [entry.name for entry in tmp_path.iterdir()] == ["map.json"]


@WITH_AND_WITHOUT_NAMES
@pytest.mark.usefixtures("nameless")
def test_many_threads_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    errors: list[BaseException] = []

    def write(letter: str) -> None:
        try:
            for _ in range(20):
                files.write_text(path, letter * 10_000)
        except BaseException as error:  # noqa: BLE001 - reported below
            errors.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(set(path.read_text())) == 1
    assert path.stat().st_size == 10_000
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_dead_writer_left_is_removed_and_what_a_live_one_has_is_not(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text("old")
    live, dead = (tmp_path / _replace._beside(path, number) for number in (0, 5))
    dead.write_text("half")
    (tmp_path / _replace._beside(path, 2)).symlink_to(path)
    with live.open("w") as stream:
        assert _replace._lock(stream.fileno())
        files.write_text(path, "new")
        assert live.exists()
        assert not dead.exists()
    assert path.read_text() == "new"


def test_where_a_nameless_file_gets_no_name_another_way_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    files.write_text(tmp_path / "map.json", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["new"]


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for name, message in (
            ("pipe", "pipe: is a named pipe; expected a file"),
            ("link", "is a named pipe"),
            ("zero", "is a device"),
            ("socket", "is a socket"),
            (".", "is a folder; expected a file"),
            ("broken", "no such file"),
            ("loop", "cannot be read: Too many levels"),
            ("nothing", "no such file"),
            ("a\0b", "cannot be read"),
        ):
            with pytest.raises(FormatError, match=message):
                files.read_bytes(tmp_path / name)


def test_no_more_is_read_than_a_file_may_have(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 100 * 2**30)
    with pytest.raises(
        FormatError, match=rf"has 107374182400 bytes; expected at most {limits.MAX_FILE_BYTES}"
    ):
        files.read_bytes(path)
    path.write_bytes(b"12345")
    assert files.read_bytes(path, most=5) == b"12345"
    with pytest.raises(FormatError, match="has 5 bytes; expected at most 4"):
        files.read_bytes(path, most=4)
    with pytest.raises(FormatError, match="has 5 bytes; expected at most 4"):
        files.read_bytes(files.Source("standard input", b"12345"), most=4)
    if Path("/proc/self/status").exists():  # says that it is empty
        assert files.read_bytes("/proc/self/status").startswith(b"Name:")
        with pytest.raises(FormatError, match="more than 10 bytes"):
            files.read_bytes("/proc/self/status", most=10)


def test_a_name_does_not_steer_the_terminal(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"a\\x1b\[2Jb: no such file"):
        files.read_bytes(tmp_path / "a\x1b[2Jb")


def test_gzip_is_unpacked_and_other_content_is_not() -> None:
    text = b"0,1,2\n" * 100_000
    packed = gzip.compress(text, mtime=0)
    assert files.unpack(text) == text
    assert files.unpack(packed) == text
    assert files.unpack(packed + gzip.compress(b"more", mtime=0) + bytes(512)) == text + b"more"
    assert files.unpack(gzip.compress(b"", mtime=0)) == b""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"0" * 10**6, mtime=0), "load.gz: unpacks to more than 100000 bytes"),
        (gzip.compress(bytes(range(200)), mtime=0)[:-9], "load.gz: not a whole gzip file: it is cut off"),
        (gzip.compress(bytes(range(200)), mtime=0)[:-2], "cut off"),
        (gzip.compress(b"1,2", mtime=0) + b"garbage", "not a whole gzip file"),
        (gzip.compress(b"1,2", mtime=0)[:-8] + bytes(8), "not a whole gzip file"),
        (b"\x1f\x8b", "cut off"),
        (b"\x1f\x8b\x08\x08" + b"n" * 10**6, "cut off"),
        (gzip.compress(b"", mtime=0) * (limits.MAX_ARRAYS + 1), "more than 65536 gzip members"),
    ],
    ids=by_message,
)
def test_gzip_that_is_damaged_or_a_bomb_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        files.unpack(content, "load.gz", most=100_000)


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize(
    "content",
    [
        nested(limits.MAX_DEPTH),
        b"[" + b"[]," * 500 + b"0]",
        b'["' + b"[" * 500 + b'"]',
        b'["\\\\", "' + b"[" * 500 + b'"]',
        b'["\\\\\\"' + b"[" * 500 + b'"]',
        b'["' + b"9" * 5000 + b'", 1]',
        b'\xef\xbb\xbf{"a": [1, -2.5e3, null, true]}',
    ],
    ids=by_message,
)
def test_json_is_read_as_python_reads_it(content: bytes) -> None:
    assert files.parse_json(content, "x") == json.loads(content.decode("utf-8-sig"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b" ", "x: not valid JSON: the file is empty"),
        (nested(limits.MAX_DEPTH + 1), "x: lists and objects are nested 65 deep; expected at most 64"),
        (b'{"a":' * 100_000, "nested 100000 deep"),
        (b'["\\\\", ' + nested(500) + b"]", "nested 501 deep"),
        (b'["' + b"[" * 500 + b'", ' + nested(500) + b"]", "nested 501 deep"),
        (b"[-" + b"9" * 1001 + b"]", "an integer of 1001 digits; expected at most 1000"),
        (b"[NaN]", "NaN is not a JSON number"),
        (b'{"a\\u001b": 1, "a\\u001b": 2}', r"key 'a\\x1b' stands twice"),
        (b"[1, 2", "at line 1, column 6"),
        (b"\xff", "not UTF-8 text at byte 0"),
        (b'["\x1b[2J', "line 1, column 3"),
    ],
    ids=by_message,
)
def test_json_that_is_wrong_or_too_deep_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message) as error:
        files.parse_json(content, "x")
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "content",
    [
        b"[]," * 10,
        b"{}," * 10,
        b'{"":0},' * 4,
        b'"ab",' * 9,
        b'["' + b"x" * 400 + b'"]',
        b'["\xf0\x9f\x98\x80' + b"x" * 200,
    ],
    ids=by_message,
)
def test_json_that_would_cost_too_much_is_refused_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(limits, "MAX_JSON_MEMORY", 1000)
    with pytest.raises(FormatError, match=r"x: \d+ bytes of JSON that take up to \d+ bytes to read; .*\.npz"):
        files.parse_json(content, "x")
    monkeypatch.setattr(limits, "MAX_JSON_BYTES", len(content) - 1)
    with pytest.raises(FormatError, match=r"x: \d+ bytes of JSON; expected at most"):
        files.parse_json(content, "x")
