# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import signal
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from expert_maps import ExpertMapsError, FormatError, LoadError, plan, read_load
from expert_maps.formats.loads import write_load
from vllm_ascend_moe.core import record_file as files
from vllm_ascend_moe.core import record_rows
from vllm_ascend_moe.core import recorder as module
from vllm_ascend_moe.core.meter import Meter
from vllm_ascend_moe.core.record_control import control
from vllm_ascend_moe.core.recorder import LoadRecorder, RecordError
from vllm_ascend_moe.core.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

# Far more than any of these waits takes; it only ends a test that would hang.
LONG = 60


@pytest.fixture(autouse=True)
def no_writes_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writer threads outlive their tests, and then wait for good."""
    monkeypatch.setattr(module, "MAX_SECONDS", 1e6)


@contextmanager
def ending() -> Iterator[None]:
    """Raise in what would never end."""

    def stop(*_: object) -> None:
        msg = "it does not end"
        raise TimeoutError(msg)

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(5)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def step(value: int, layers: int = 2, experts: int = 3) -> torch.Tensor:
    return torch.arange(layers * experts, dtype=torch.int64).reshape(layers, experts) * 10 + value


def only(index: int, steps: int) -> torch.Tensor:
    """Return a step that leaves its number behind wherever it is added to: [1, steps]."""
    return torch.eye(steps, dtype=torch.int64)[index : index + 1]


def rows(path: str | Path) -> NDArray[np.float64]:
    return read_load(path).counts


# Writing


@pytest.mark.parametrize("name", ["load.npz", "load.npy"])
def test_a_step_is_a_row(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    recorder = LoadRecorder(str(path), 2, 3)
    for value in range(4):
        recorder.add(step(value).to(torch.int32))
    assert recorder.num_rows == 4
    assert not path.exists()
    recorder.flush()
    np.testing.assert_array_equal(rows(path), np.stack([step(value) for value in range(4)]))
    assert recorder.num_rows == 4
    stored = np.load(path)["load"] if name.endswith("z") else np.load(path)
    assert (stored.dtype, stored.shape) == (np.int64, (4, 2, 3))
    # `expert-maps plan` takes it as it is.
    assert plan(read_load(path), num_physical_experts=4, ep_size=2).placement.num_layers == 2


def test_nothing_collected_writes_nothing(tmp_path: Path) -> None:
    recorder = LoadRecorder(str(tmp_path / "load.npz"), 2, 3)
    recorder.flush()
    assert not (tmp_path / "load.npz").exists()
    recorder.add(step(0))
    recorder.flush()
    before = (tmp_path / "load.npz").stat().st_mtime_ns
    recorder.flush()
    assert (tmp_path / "load.npz").stat().st_mtime_ns == before


def test_steps_wait_for_the_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = threading.Event()

    def write(load: NDArray[np.int64], path: str) -> None:
        write_load(load, path)
        written.set()

    monkeypatch.setattr(files, "write_load", write)
    path = tmp_path / "load.npz"
    recorder = LoadRecorder(str(path), 2, 3, interval=3)
    for value in range(2):
        recorder.add(step(value))
    assert not path.exists()
    # Nobody asks for it: the thread writes.
    recorder.add(step(2))
    assert written.wait(LONG)
    np.testing.assert_array_equal(rows(path), np.stack([step(value) for value in range(3)]))


def test_an_idle_server_writes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = threading.Event()

    def write(load: NDArray[np.int64], path: str) -> None:
        write_load(load, path)
        written.set()

    monkeypatch.setattr(files, "write_load", write)
    monkeypatch.setattr(module, "MAX_SECONDS", 0.01)
    recorder = LoadRecorder(str(tmp_path / "load.npz"), 2, 3, interval=100)
    recorder.add(step(5))
    assert written.wait(LONG)
    np.testing.assert_array_equal(rows(tmp_path / "load.npz"), step(5)[None])


# Continuing


@pytest.mark.parametrize("name", ["load.npz", "load.npy"])
def test_a_file_that_is_there_is_continued(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(tmp_path / name)
    for start in (0, 3, 6):
        with caplog.at_level(logging.INFO, logger="vllm.ascend_moe"):
            recorder = LoadRecorder(path, 2, 3)
        assert recorder.num_rows == start
        for value in range(start, start + 3):
            recorder.add(step(value))
        recorder.close()
    np.testing.assert_array_equal(rows(path), np.stack([step(value) for value in range(9)]))
    assert caplog.messages == [f"continuing the record {path}, which has {n} steps" for n in (3, 6)]


def test_an_empty_file_is_a_new_record(tmp_path: Path) -> None:
    (tmp_path / "load.npz").touch()
    recorder = LoadRecorder(str(tmp_path / "load.npz"), 2, 3)
    recorder.add(step(0))
    recorder.flush()
    assert len(rows(tmp_path / "load.npz")) == 1


@pytest.mark.parametrize(("layers", "experts"), [(3, 3), (2, 4), (3, 2)])
def test_a_record_of_another_model_is_refused_and_left_alone(
    tmp_path: Path, layers: int, experts: int
) -> None:
    path = tmp_path / "load.npz"
    write_load(step(0).numpy()[None], path)
    before = path.read_bytes()
    message = rf"load\.npz is a record of 2 layers and 3 experts; expected {layers} and {experts}, .*another"
    with pytest.raises(RecordError, match=message):
        LoadRecorder(str(path), layers, experts)
    assert path.read_bytes() == before


def test_a_missing_folder_is_refused_before_anything_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "none" / "load.npz"
    with pytest.raises(
        RecordError, match=f"record_path is {path}; there is no folder {path.parent}, create it"
    ):
        LoadRecorder(str(path), 2, 3)
    assert not path.parent.exists()
    # A bare name is in the current folder, which is there.
    monkeypatch.chdir(tmp_path)
    recorder = LoadRecorder("load.npy", 2, 3)
    recorder.add(step(0))
    recorder.flush()
    assert (tmp_path / "load.npy").exists()


def test_a_file_that_is_no_load_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "load.npz"
    path.write_bytes(b"something else")
    with pytest.raises(LoadError, match=r"load\.npz: not a NumPy"):
        LoadRecorder(str(path), 2, 3)
    assert path.read_bytes() == b"something else"
    assert issubclass(RecordError, ExpertMapsError)


# Bounds


@examples(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(3, 20))
def test_no_token_is_lost_over_a_bound_and_steps_keep_their_order(parts: list[int], most: int) -> None:
    steps = sum(parts)
    whole, added = np.eye(steps, dtype=np.int64)[:, None], 0
    kept: list[NDArray[np.int64]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_rows, "MAX_ROWS", most)
        for part in parts:
            with ending():
                kept = record_rows.bounded([*kept, *whole[added : added + part]])
            added += part
    assert len(kept) <= most
    # Each step is in exactly one row, in a row are only steps that followed each other, and rows stand in order.
    where = [np.flatnonzero(row[0]) for row in kept]
    assert np.concatenate(where).tolist() == list(range(steps))
    assert max(row.max() for row in kept) == 1
    # The recent half is not added up.
    single = min(steps, (most + 1) // 2)
    assert all(len(held) == 1 for held in where[-single:])
    if steps <= most:
        assert len(kept) == steps


def test_the_tightest_bound_is_two_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MAX_ROWS", 2), ("MAX_ROWS", 1), ("MAX_NUMBERS", 6), ("MAX_NUMBERS", 1)):
        for steps in (2, 3, 4, 7):
            given_ = [step(number).numpy() for number in range(steps)]
            with monkeypatch.context() as patch, ending():
                patch.setattr(record_rows, name, value)
                kept = record_rows.bounded(given_)
            assert len(kept) <= 2
            np.testing.assert_array_equal(np.sum(kept, axis=0), np.sum(given_, axis=0))


@pytest.mark.parametrize(
    ("name", "value", "most"), [("MAX_ROWS", 5, 5), ("MAX_NUMBERS", 24, 4), ("MAX_NUMBERS", 29, 4)]
)
def test_the_file_is_bounded_while_totals_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: int, most: int
) -> None:
    monkeypatch.setattr(record_rows, name, value)
    path = str(tmp_path / "load.npz")
    total = torch.zeros(2, 3, dtype=torch.int64)
    for start in range(0, 40, 20):
        # The second continues the first's file.
        recorder = LoadRecorder(path, 2, 3)
        for number in range(start, start + 20):
            recorder.add(step(number))
            total += step(number)
            if number % 3 == 0:
                recorder.flush()
        recorder.close()
        assert len(rows(path)) <= most
        np.testing.assert_array_equal(rows(path).sum(axis=0), total)
    np.testing.assert_array_equal(rows(path)[-1], step(39))


def test_a_file_above_the_bound_is_taken_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "load.npz")
    write_load(np.stack([step(value) for value in range(30)]), path)
    monkeypatch.setattr(record_rows, "MAX_ROWS", 4)
    recorder = LoadRecorder(path, 2, 3)
    recorder.add(step(30))
    recorder.flush()
    assert len(rows(path)) <= 4
    np.testing.assert_array_equal(rows(path).sum(axis=0), sum(step(value).numpy() for value in range(31)))


def test_the_number_of_rows_is_that_of_the_next_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_rows, "MAX_ROWS", 4)
    recorder = LoadRecorder(str(tmp_path / "load.npz"), 2, 3)
    for number in range(9):
        recorder.add(step(number))
    expected = recorder.num_rows
    recorder.flush()
    assert len(rows(tmp_path / "load.npz")) == expected


# Failures


def test_what_could_not_be_written_is_kept(tmp_path: Path) -> None:
    folder, away = tmp_path / "folder", tmp_path / "away"
    folder.mkdir()
    recorder = LoadRecorder(str(folder / "load.npz"), 2, 3)
    recorder.add(step(0))
    recorder.flush()
    recorder.add(step(1))
    folder.rename(away)
    for number in (2, 3):
        recorder.add(step(number))
        with pytest.raises(FormatError, match=r"load\.npz: there is no folder"):
            recorder.flush()
        assert recorder.num_rows == number + 1
    np.testing.assert_array_equal(rows(away / "load.npz"), step(0)[None])
    away.rename(folder)
    recorder.flush()
    np.testing.assert_array_equal(rows(folder / "load.npz"), np.stack([step(value) for value in range(4)]))


def test_a_write_that_breaks_off_leaves_the_old_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "load.npz"
    recorder = LoadRecorder(str(path), 2, 3)
    recorder.add(step(0))
    recorder.flush()
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        recorder.add(step(1))
        with pytest.raises(FormatError, match="No space left on device"):
            recorder.flush()
    assert path.read_bytes() == before
    recorder.close()
    assert list(tmp_path.iterdir()) == [path]
    assert len(rows(path)) == 2


@pytest.mark.parametrize("error", [FormatError("full"), OSError("full"), RuntimeError("full")])
def test_the_thread_tries_again_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    failed, written = threading.Event(), threading.Event()

    def write(load: NDArray[np.int64], path: str) -> None:
        if not failed.is_set():
            failed.set()
            raise error
        write_load(load, path)
        written.set()

    monkeypatch.setattr(files, "write_load", write)
    path = str(tmp_path / "load.npz")
    recorder = LoadRecorder(path, 2, 3, interval=1)
    recorder.add(step(0))
    assert failed.wait(LONG)
    recorder.add(step(1))
    assert written.wait(LONG)
    recorder.flush()
    np.testing.assert_array_equal(rows(path), np.stack([step(0), step(1)]))
    said = [
        message for message in caplog.messages if f"the record {path} could not be written: full" in message
    ]
    assert len(said) == recorder.failed_writes == 1


# Adding while the thread writes


def test_steps_that_come_during_a_write_are_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go_on = threading.Event(), threading.Event()

    def write(load: NDArray[np.int64], path: str) -> None:
        started.set()
        assert go_on.wait(LONG)
        write_load(load, path)

    monkeypatch.setattr(files, "write_load", write)
    path = str(tmp_path / "load.npy")
    recorder = LoadRecorder(path, 1, 8, interval=1)
    recorder.add(only(0, 8))
    assert started.wait(LONG)
    # The thread has taken the first step and is not done with it.
    for index in range(1, 8):
        recorder.add(only(index, 8))
    go_on.set()
    recorder.flush()
    np.testing.assert_array_equal(rows(path)[:, 0], np.eye(8))


def test_nothing_is_lost_or_doubled_between_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_rows, "MAX_ROWS", 16)
    path = str(tmp_path / "load.npy")
    recorder = LoadRecorder(path, 1, 240, interval=1)

    def add(first: int) -> None:
        for index in range(first, first + 80):
            recorder.add(only(index, 240))
            if index % 20 == 0:
                recorder.flush()

    threads = [threading.Thread(target=add, args=(first,)) for first in (0, 80, 160)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()
    recorder.flush()
    assert len(rows(path)) <= 16
    assert rows(path).sum(axis=(0, 1)).tolist() == [1] * 240


def test_steps_without_a_token_are_none(tmp_path: Path) -> None:
    recorder = LoadRecorder(str(tmp_path / "load.npz"), 2, 3)
    for value in (1, None, 2, None):
        recorder.add(torch.zeros(2, 3, dtype=torch.int64) if value is None else step(value))
    assert recorder.num_rows == 2
    recorder.add(step(3))
    recorder.flush()
    assert read_load(tmp_path / "load.npz").counts[:, 0, 0].tolist() == [1, 2, 3]
    recorder.add(torch.zeros(2, 3, dtype=torch.int64))
    recorder.flush()
    assert recorder.num_rows == 3


# What is asked for while a server serves


def test_only_steps_between_start_and_stop_are_recorded(tmp_path: Path) -> None:
    path = tmp_path / "load.npz"
    recorder = LoadRecorder(str(path), 1, 8, is_on=False)
    recorder.add(only(0, 8))
    recorder.start()
    for index in (1, 2):
        recorder.add(only(index, 8))
    recorder.stop()
    recorder.add(only(3, 8))
    recorder.flush()
    recorder.start()
    recorder.add(only(4, 8))
    recorder.flush()
    assert rows(path).sum(axis=0).tolist() == [[0, 1, 1, 0, 1, 0, 0, 0]]


def test_a_fresh_start_drops_what_was_there_even_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "load.npz"
    recorder = LoadRecorder(str(path), 1, 8)
    recorder.add(only(0, 8))
    recorder.flush()

    def write(load: NDArray[np.int64], to: str) -> None:
        write_load(load, to)
        if len(load) == 2:
            recorder.start(fresh=True)
            recorder.add(only(2, 8))

    monkeypatch.setattr(files, "write_load", write)
    recorder.add(only(1, 8))
    recorder.flush()
    status = recorder.status()
    assert (status["rows"], status["unwritten_steps"]) == (0, 1)
    recorder.flush()
    assert rows(path).sum(axis=0).tolist() == [[0, 0, 1, 0, 0, 0, 0, 0]]
    assert recorder.status()["rows"] == 1


def test_a_write_that_is_asked_for_is_done_by_the_thread(tmp_path: Path) -> None:
    recorder = LoadRecorder(str(tmp_path / "load.npz"), 1, 8, interval=1000)
    assert recorder.request_write() == 0
    for index in range(3):
        recorder.add(only(index, 8))
    until = recorder.request_write()
    assert until == 3
    for _ in range(LONG * 100):
        if recorder.status()["written_steps"] >= until:
            break
        time.sleep(0.01)
    assert len(rows(tmp_path / "load.npz")) == recorder.status()["rows"] == 3


def test_a_write_that_fails_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []
    meter = Meter()
    monkeypatch.setattr(meter, "write_failed", lambda: counted.append("failed"))
    monkeypatch.setattr(meter, "wrote", lambda count: counted.append(f"wrote {count}"))
    monkeypatch.setattr(meter, "unwritten", lambda steps: counted.append(f"{steps} unwritten"))
    recorder = LoadRecorder(str(tmp_path / "load.npz"), 1, 8, interval=1000, meter=meter)
    monkeypatch.setattr(recorder, "_writer", threading.current_thread())  # only what is asked for is written
    recorder.add(only(0, 8))
    recorder.add(torch.zeros(1, 8, dtype=torch.int64))

    def full(*_: object) -> None:
        msg = "No space left on device"
        raise OSError(msg)

    with monkeypatch.context() as during:
        during.setattr(files, "write_load", full)
        with pytest.raises(OSError, match="No space"):
            recorder.flush()
    assert recorder.status()["failure"] == "No space left on device"
    assert recorder.status()["unwritten_steps"] == 2
    recorder.flush()
    assert recorder.status()["failure"] is None
    # A step without a token is no row.
    assert counted == ["1 unwritten", "2 unwritten", "failed", "wrote 1", "0 unwritten"]


def test_control_answers_where_the_record_is_written(tmp_path: Path) -> None:
    path = str(tmp_path / "load.npz")
    recorder = LoadRecorder(path, 1, 8, interval=1000)
    session: Any = SimpleNamespace(settings=Settings(record_path=path), recorder=recorder)

    def ask(action: str, *, fresh: bool = False, wait: bool = True) -> dict[str, Any]:
        return control(session, action, fresh=fresh, wait=wait)

    recorder.add(only(0, 8))
    assert ask("status")["unwritten_steps"] == 1
    assert ask("dump") == {**ask("status"), "rows": 1, "unwritten_steps": 0, "recording": True}
    assert not ask("stop")["recording"]
    assert ask("start", fresh=True)["rows"] == 0
    recorder.add(only(1, 8))
    assert ask("dump", wait=False)["until"] == 2
    assert ask("erase")["error"] == "action is 'erase'; expected one of start, stop, dump, status"
    # Ranks that do not write say nothing.
    session.recorder = None
    assert ask("dump") == {}
    session.settings = Settings()
    assert "record_path is not given" in ask("dump")["error"]
    assert "inactive" in control(None, "dump", fresh=False, wait=True)["error"]
