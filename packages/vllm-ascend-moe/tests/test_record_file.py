# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The record's file when something goes wrong: full disks, killed writers, two servers, foreign changes, huge counts."""

from __future__ import annotations

import gc
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from expert_maps import FormatError, read_load
from expert_maps.formats.loads import write_load
from vllm_ascend_moe.core import record_file as files
from vllm_ascend_moe.core import record_rows
from vllm_ascend_moe.core import recorder as module
from vllm_ascend_moe.core.recorder import LoadRecorder, RecordError

LONG = 60
# The nightly run has hundreds.
KILLS = int(os.environ.get("RECORD_KILLS", "60"))
# Server and record in one: numbered steps of a token each, said once they are written.
WRITER = """
import sys, torch
from vllm_ascend_moe.core.recorder import LoadRecorder
recorder = LoadRecorder(sys.argv[1], 1, 64)
print("start", recorder.num_rows, flush=True)
for number in range(int(sys.argv[2])):
    recorder.add(torch.ones(1, 64, dtype=torch.int64))
    recorder.flush()
    print(recorder.num_rows, flush=True)
"""


@pytest.fixture(autouse=True)
def no_writes_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SECONDS", 1e6)


def step(value: int = 1) -> torch.Tensor:
    return torch.full((2, 3), value, dtype=torch.int64)


def total(path: Path) -> int:
    return int(read_load(path).counts[:, 0, 0].sum())


# One writer


def test_a_second_server_is_refused_and_told_who_writes(tmp_path: Path) -> None:
    path = tmp_path / "load.npz"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), "1000000"], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        for _ in range(2):  # started, and a step written
            server.stdout.readline()
        holder = f"process {server.pid} on {socket.gethostname()}"
        with pytest.raises(
            RecordError, match=f"load.npz, which another server writes: {holder}; expected one"
        ):
            LoadRecorder(str(path), 1, 64)
        server.kill()
    # Killed, it holds nothing.
    LoadRecorder(str(path), 1, 64).close()
    assert [found.name for found in tmp_path.iterdir()] == ["load.npz"]


def test_a_link_to_a_record_is_the_same_record(tmp_path: Path) -> None:
    link = tmp_path / "link.npz"
    link.symlink_to(tmp_path / "load.npz")
    first = LoadRecorder(str(tmp_path / "load.npz"), 2, 3)
    with pytest.raises(RecordError, match="another server"):
        LoadRecorder(str(link), 2, 3)
    first.close()
    LoadRecorder(str(link), 2, 3).close()


def test_who_is_refused_or_forgotten_leaves_the_record_to_others(tmp_path: Path) -> None:
    path = tmp_path / "load.npz"
    write_load(np.ones((1, 2, 3), dtype=np.int64), path)
    for _ in range(2):
        with pytest.raises(RecordError, match="is a record of"):
            LoadRecorder(str(path), 9, 3)
    recorder = LoadRecorder(str(path), 2, 3)
    recorder.add(step())  # starts its thread
    del recorder
    gc.collect()
    LoadRecorder(str(path), 2, 3).close()
    assert list(tmp_path.iterdir()) == [path]


def test_a_fork_does_not_keep_the_lock(tmp_path: Path) -> None:
    path = str(tmp_path / "load.npz")
    recorder = LoadRecorder(path, 2, 3)
    end, told = os.pipe()
    child = os.fork()
    if not child:
        os.close(told)
        os.read(end, 1)
        os._exit(0)
    os.close(end)
    try:
        recorder.close()
        LoadRecorder(path, 2, 3).close()
    finally:
        os.close(told)
        os.waitpid(child, 0)


def test_without_locks_there_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", none)
    recorder = LoadRecorder(str(tmp_path / "load.npz"), 2, 3)
    assert "no lock on the record" in caplog.text
    recorder.add(step())
    recorder.close()
    assert total(tmp_path / "load.npz") == 1


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "lock", "loop"])
def test_a_place_that_cannot_hold_a_record_refuses_the_start(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "load.npz"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path = Path(os.devnull)
    elif kind == "lock":
        os.mkfifo(tmp_path / ".load.npz.lock")
    else:
        path.symlink_to(path)
    with pytest.raises(RecordError, match=f"record_path is {path}"):
        LoadRecorder(str(path), 2, 3)


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), OSError(28, "No space left on device")]
)
def test_where_nothing_can_be_written_the_start_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    path = tmp_path / "load.npz"

    def refuse(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("os.open" if error.errno == 13 else "os.pwrite", refuse)
        with pytest.raises(RecordError, match=f"nothing can be written: {error.strerror}"):
            LoadRecorder(str(path), 2, 3)
    LoadRecorder(str(path), 2, 3).close()
    assert not list(tmp_path.iterdir())


# Changed by others


@pytest.mark.parametrize("existed", [False, True])
def test_a_file_that_changed_is_left_alone_until_it_is_moved(tmp_path: Path, existed: bool) -> None:
    path = tmp_path / "load.npz"
    recorder = LoadRecorder(str(path), 2, 3)
    if existed:
        recorder.add(step())
        recorder.flush()
    write_load(np.full((7, 2, 3), 5), path)
    foreign = path.read_bytes()
    for _ in range(2):
        recorder.add(step())
        with pytest.raises(RecordError, match=r"load\.npz was changed by another program"):
            recorder.flush()
    assert path.read_bytes() == foreign
    path.rename(tmp_path / "away.npz")
    recorder.close()
    assert total(path) == 2 + existed
    assert recorder.failed_writes == 2


# Full disks and writes that hang


def test_a_full_disk_loses_nothing_and_costs_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "load.npy"
    recorder = LoadRecorder(str(path), 2, 3)
    recorder.add(step())
    recorder.flush()
    before = path.read_bytes()
    monkeypatch.setattr(record_rows, "MAX_ROWS", 8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), limits[1]))
        for _ in range(50):
            recorder.add(step())
            with pytest.raises(FormatError, match="File too large"):
                recorder.flush()
            assert len(recorder._rows) + len(recorder._fresh) <= 8
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert sum("could not be written" in message for message in caplog.messages) == 1
    assert recorder.failed_writes == 50
    assert recorder.merged_rows == 51 - len(recorder._rows)
    recorder.close()
    assert total(path) == 51
    assert list(tmp_path.iterdir()) == [path]


def test_steps_are_added_up_while_a_write_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, go_on = threading.Event(), threading.Event()

    def write(load: np.ndarray, path: str) -> None:
        started.set()
        assert go_on.wait(LONG)
        write_load(load, path)

    monkeypatch.setattr(files, "write_load", write)
    monkeypatch.setattr(module, "MAX_WAITING", 10)
    monkeypatch.setattr(module, "MAX_CLOSING_SECONDS", 0.01)
    recorder = LoadRecorder(str(tmp_path / "load.npz"), 2, 3, interval=1)
    recorder.add(step())
    assert started.wait(LONG)
    for _ in range(1000):
        recorder.add(step())
        assert len(recorder._pending) <= 11
    assert recorder.merged_rows >= 989
    with pytest.raises(RecordError, match="a write has not ended in"):
        recorder.close()
    go_on.set()
    monkeypatch.setattr(module, "MAX_CLOSING_SECONDS", LONG)
    recorder.close()
    assert total(tmp_path / "load.npz") == 1001


def test_after_the_end_no_step_is_taken(tmp_path: Path) -> None:
    recorder = LoadRecorder(str(tmp_path / "load.npz"), 2, 3)
    recorder.add(step())
    recorder.close()
    recorder.add(step())
    recorder.close()
    assert recorder.num_rows == 1


# Counts


def test_counts_stay_at_the_highest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_rows, "MAX_ROWS", 2)
    path = tmp_path / "load.npy"
    np.save(path, np.full((2, 2, 3), 1e25))
    recorder = LoadRecorder(str(path), 2, 3)
    for _ in range(4):
        recorder.add(step(2**62))
        recorder.flush()
    assert (np.load(path) > 0).all()
    assert np.load(path)[0].tolist() == [[2**63 - 1] * 3] * 2
    added = record_rows.add_tensors(step(2**63 - 1), step(3))
    assert added.tolist() == step(2**63 - 1).tolist()
    assert record_rows.add_tensors(step(2**63 - 1), step(0)).tolist() == step(2**63 - 1).tolist()


def test_a_negative_count_is_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = LoadRecorder(str(tmp_path / "load.npz"), 2, 3)
    for value in (1, -5, 1):
        recorder.add(step(value))
    recorder.add(record_rows.add_tensors(step(-1), step(9)))
    recorder.close()
    assert total(tmp_path / "load.npz") == recorder.dropped_steps == 2
    assert "a step with -5 tokens" in caplog.text


# Killed


def test_a_killed_server_leaves_a_whole_record_and_nothing_beside_it(tmp_path: Path) -> None:
    # A fork for each server: what they import takes a hundred times as long as they live.
    path = tmp_path / "load.npz"
    chance, written = random.Random(5), 0  # noqa: S311 - moments, no secrets
    for _ in range(KILLS):
        end, told = os.pipe()
        child = os.fork()
        if not child:
            _serve_until_killed(str(path), told)
        os.close(told)
        ready = os.read(end, 1)
        assert ready == b"+", "the record is refused"
        # In the first write or the second.
        said = os.read(end, 1) if chance.random() < 0.5 else b""
        time.sleep(chance.random() * 0.004)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while piece := os.read(end, 65536):
            said += piece
        os.close(end)
        written += len(said)
        if path.exists():
            found = total(path)
            assert written <= found <= written + 1, (
                "a step that was said to be written is lost, or is there twice"
            )
            written = found
    assert written > KILLS / 4
    recorder = LoadRecorder(str(path), 2, 3)
    assert {found.name for found in tmp_path.iterdir()} == {"load.npz", ".load.npz.lock"}
    recorder.close()
    assert list(tmp_path.iterdir()) == [path]


def _serve_until_killed(path: str, told: int) -> None:
    try:
        recorder = LoadRecorder(path, 2, 3)
        os.write(told, b"+")
        while True:
            recorder.add(step())
            recorder.flush()
            os.write(told, b".")
    finally:
        os._exit(1)


def test_the_next_start_removes_what_a_killed_writer_left(tmp_path: Path) -> None:
    left = tmp_path / ".load.npz.3.expert-maps-part"
    left.write_bytes(b"half")
    recorder = LoadRecorder(str(tmp_path / "load.npz"), 2, 3)
    assert not left.exists()
    recorder.close()


def test_file_and_folder_go_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bool] = []
    fsync = os.fsync

    def note(file: int) -> None:
        synced.append(Path(f"/proc/self/fd/{file}").resolve() == tmp_path)
        fsync(file)

    monkeypatch.setattr("os.fsync", note)
    recorder = LoadRecorder(str(tmp_path / "load.npz"), 2, 3)
    recorder.add(step())
    recorder.close()
    assert synced == [False, True]
