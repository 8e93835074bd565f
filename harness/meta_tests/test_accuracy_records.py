# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Records: what is written is read again, whole or not at all, and what contradicts itself is refused."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import CONFIGURATION, Arm, logprobs_of, make, questions_of, summary_of

from expert_maps import ExpertMapsError
from harness.accuracy import records
from harness.accuracy.compare import field_table
from harness.accuracy.records import LOGPROBS, QUESTIONS, SUMMARY, read_record, write_record
from harness.accuracy.schema import Forced, Question, RecordError, Summary, task_version
from harness.record.tables import markdown

# --- the version of a task ---


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.booleans()), min_size=1))
def test_a_version_is_the_hash_of_sorted_json(configuration: dict[str, Any]) -> None:
    expected = hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()[:6]
    assert task_version(configuration) == expected
    assert task_version(dict(reversed(configuration.items()))) == expected


def test_a_version_shows_any_change() -> None:
    versions = {
        task_version(one)
        for one in ({}, CONFIGURATION, CONFIGURATION | {"max_tokens": 65}, {"nested": CONFIGURATION})
    }
    assert len(versions) == 4
    assert all(len(one) == 6 and int(one, 16) >= 0 for one in versions)


def test_the_table_of_the_field() -> None:
    arm = Arm(questions=3, wrong=[0])
    rows = field_table(Summary.model_validate(summary_of(arm))).splitlines()
    assert rows[0] == "| dataset | version | metric | mode | model |"
    assert rows[2] == f"| words | {task_version(CONFIGURATION)} | accuracy | gen | 66.67 |"
    unfinished = {"status": "failed", "reason": "the server stopped", "value": None}
    rows = field_table(Summary.model_validate(summary_of(Arm(changes=unfinished)))).splitlines()
    assert rows[2].endswith("| gen | – |")


def test_a_bar_does_not_end_a_cell() -> None:
    assert markdown(["a", "b"], [["x|y", "z"]]).splitlines()[-1] == "| x/y | z |"


# --- writing and reading ---


@settings(max_examples=25, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=8),
    values=st.lists(st.floats(-1e3, 0), max_size=4),
)
def test_a_record_is_read_as_it_was_written(texts: list[str], values: list[float]) -> None:
    summary = Summary.model_validate(summary_of(Arm(questions=len(texts))))
    questions = [
        Question(
            index=3 * index,
            doc_hash=f"doc{index}",
            prompt_hash="prompt",
            target=text,
            text=text,
            answer=text,
            correct=1,
            finish_reason=None,
        )
        for index, text in enumerate(texts)
    ]
    forced = [Forced(doc_hash=row.doc_hash, forced_from="source", logprobs=values) for row in questions]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "new", "arm")
        write_record(target, summary, questions, forced)
        found = read_record(target)
        assert sorted(path.name for path in target.iterdir()) == sorted([SUMMARY, QUESTIONS, LOGPROBS])
    assert (found.summary, found.questions, found.logprobs) == (summary, tuple(questions), tuple(forced))


def test_what_a_later_version_adds_is_kept(tmp_path: Path) -> None:
    make(tmp_path, Arm(changes={"placement.hottest_rank": 3}))
    assert json.loads((tmp_path / "baseline" / SUMMARY).read_text())["placement"]["hottest_rank"] == 3


def test_a_record_without_log_probabilities_leaves_none_behind(tmp_path: Path) -> None:
    assert make(tmp_path, Arm()).logprobs is not None
    assert make(tmp_path, Arm(shift=None)).logprobs is None
    assert not (tmp_path / "baseline" / LOGPROBS).exists()


@pytest.mark.parametrize("stops_at", [1, 2, 3])
def test_a_write_that_breaks_off_leaves_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops_at: int
) -> None:
    make(tmp_path, Arm())
    written: list[str] = []

    def write_text(path: Path, text: str) -> None:
        written.append(path.name)
        if len(written) == stops_at:
            raise KeyboardInterrupt
        path.write_text(text)

    monkeypatch.setattr(records, "write_text", write_text)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, Arm(wrong=[1]))
    assert written == [QUESTIONS, LOGPROBS, SUMMARY][:stops_at]
    with pytest.raises(RecordError, match=r"holds no summary\.json; expected the record of an arm"):
        read_record(tmp_path / "baseline")


def test_a_file_is_whole_or_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ExpertMapsError, match="No space left"):
        make(tmp_path, Arm())
    assert list((tmp_path / "baseline").iterdir()) == []


def test_a_contradiction_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    kept = make(tmp_path, Arm())
    arm = Arm(wrong=[1])
    summary = Summary.model_validate(summary_of(arm))
    with pytest.raises(RecordError, match="400 questions, 400 correct; expected 400 and 399"):
        write_record(kept.folder, summary, questions_of(Arm()), logprobs_of(arm))
    assert read_record(kept.folder) == kept


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "baseline").write_text("")
    with pytest.raises(ExpertMapsError, match="baseline: cannot be made ready for a record: File exists"):
        make(tmp_path, Arm())


# --- a summary that contradicts itself ---


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"value": 99.0}, "value is 99.0; expected 100.00, 400 of 400"),
        ({"value": None}, "value is None; expected 100.00"),
        ({"num_correct": 401}, "num_correct is 401 of 400"),
        ({"status": "failed"}, "expected a reason and no value"),
        ({"status": "incomplete", "reason": "stopped"}, "expected a reason and no value"),
        ({"reason": "stopped"}, "expected no reason"),
        ({"num_questions": 0, "num_correct": 0}, "expected no reason, and questions"),
        ({"task.version": "000000"}, "version is '000000'; expected"),
        ({"load.rank_load": [[1.0, 2.0], [1.0]]}, r"rows have \[1, 2\] ranks"),
        ({"load.rank_load": []}, "rows have"),
        ({"load.balancedness": 1.5}, "less than or equal to 1"),
        ({"started": "yesterday"}, "yesterday"),
        ({"placement.replica_checksums": "fine"}, "'equal', 'differ' or 'not read'"),
        ({"placement.eplb_active": "yes"}, "valid boolean"),
        ({"num_questions": 400.5}, "valid integer"),
        ({"seconds": float("inf")}, "finite"),
        ({"format": 2}, "1"),
    ],
)
def test_a_summary_that_is_wrong_is_refused(changes: dict[str, Any], reason: str) -> None:
    Summary.model_validate(summary_of(Arm()))
    with pytest.raises(ValueError, match=reason):
        Summary.model_validate(summary_of(Arm(changes=changes)))


# What records of before lack.
LATER = {"checkpoint", "expected"}


@pytest.mark.parametrize("field", sorted(Summary.model_fields.keys() - LATER))
def test_every_field_is_required(field: str) -> None:
    summary = summary_of(Arm())
    del summary[field]
    with pytest.raises(ValueError, match="Field required"):
        Summary.model_validate(summary)
