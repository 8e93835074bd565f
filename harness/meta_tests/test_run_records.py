# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Records of runs: one form, a history that only grows, older ones that are still read."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from expert_maps.errors import FormatError
from harness.record import history, older, provenance
from harness.record.drawing import drawing
from harness.record.schema import Provenance, RunRecord
from harness.record.tables import Sheet, measured_on, page

ROOT = Path(__file__).parents[2]


def run(**changes: Any) -> RunRecord:  # noqa: ANN401
    fields: dict[str, Any] = {"kind": "maps", "name": "all maps", "provenance": provenance.describe()}
    return RunRecord(**(fields | changes))


def test_a_history_only_grows(tmp_path: Path) -> None:
    path = tmp_path / "new" / "maps.jsonl"
    history.append(path, run(performance={"ms": 1.5}))
    first = path.read_bytes()
    history.append(path, run(performance={"ms": 2.5}))
    assert path.read_bytes().startswith(first)
    assert [record.performance["ms"] for record in history.read(path)] == [1.5, 2.5]
    # A line whose end was lost is not joined with the next.
    path.write_bytes(path.read_bytes().rstrip())
    history.append(path, run())
    assert len(history.read(path)) == 3


def test_what_cannot_be_written_leaves_the_history_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "maps.jsonl"
    history.append(path, run())
    before = path.read_bytes()
    with pytest.raises(FormatError, match="expected finite numbers"):
        history.append(path, run(performance={"ms": float("nan")}))
    with pytest.raises(FormatError, match="cannot be written"):
        history.append(tmp_path, run())
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no record"),
        ("{", "line 1"),
        ("[1]", "line 1: is list; expected a record"),
        ('{"benchmark": "cooking"}', "benchmark is 'cooking', without a format"),
        ('{"benchmark": "planner, x", "machine": 4096, "cpus": "x"}', "machine is 4096: Input should be"),
        ('{"format": 3, "kind": "maps"}', "line 1: format is 3"),
        ('{"format": 2, "format": 2}', "line 1"),
        (
            '{"format": 2, "kind": "maps", "name": "x", "provenance": {"date": "2026-01-01"}}',
            "names no time zone",
        ),
        ('{"format": 2, "kind": "maps", "name": "x", "provenance": {}, "quality": {"value": NaN}}', "NaN"),
    ],
)
def test_what_is_no_record_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FormatError, match=message):
        history.read(path)


def test_every_committed_record_is_read() -> None:
    kinds = {}
    for path in sorted((ROOT / "harness/bench/records").rglob("*.jsonl")):
        records = history.read(path)
        kinds[path.stem] = {record.kind for record in records}
        for record in records:
            assert record.provenance.python
            assert record.performance
            assert record.provenance.versions or record.kind == "ascend_plans"
    assert {name: {name} for name in kinds} == kinds
    assert {"planner", "maps", "serving", "commits", "ascend_plans", "npu_ops"} <= kinds.keys()
    arms = sorted((ROOT / "accuracy/results").rglob("summary.json"))
    assert arms
    for path in arms:
        summary = json.loads(path.read_text(encoding="utf-8"))
        if summary["format"] == 1:
            record = older.arm(summary)
            assert record.quality["value"] == summary["value"]
            assert record.provenance.commit == summary["git"]["commit"]


def test_what_acted_is_said_and_secrets_and_places_are_not() -> None:
    found = provenance.acted(
        {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_API_KEY": "abc",
            "VLLM_PLUGINS": "/opt/someone/plugin.py",
            "EXPERT_MAPS_CC": "cc",
            "OMP_NUM_THREADS": "1",
            "HOME": "/opt/someone",
            "HTTPS_PROXY": "http://host",
        }
    )
    assert found == {
        "EXPERT_MAPS_CC": "cc",
        "OMP_NUM_THREADS": "1",
        "VLLM_API_KEY": "set",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_PLUGINS": "…/plugin.py",
    }


def test_a_run_says_where_it_was_made() -> None:
    found = provenance.describe()
    assert found.date
    assert found.device is not None
    assert found.device.kind == "cpu"
    assert {"expert_maps", "numpy"} <= found.versions.keys()
    assert Provenance.model_validate(found.model_dump(mode="json")) == found
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert found.commit == (head.stdout.strip() or None)
    assert "Python" in measured_on(found)


def test_an_npus_driver_and_cann_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "driver").mkdir()
    (tmp_path / "driver/version.info").write_text("Version=25.0.rc1\nascendhal_version=7\n", encoding="utf-8")
    home = tmp_path / "ascend-toolkit/latest/aarch64-linux"
    home.mkdir(parents=True)
    (home / "ascend_toolkit_install.info").write_text("package_name=x\nversion=8.2.RC1\n", encoding="utf-8")
    monkeypatch.setattr(provenance, "_ASCEND", tmp_path)
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    device = provenance.device_of("npu", "Ascend910B3")
    assert (device.driver, device.toolkit) == ("25.0.rc1", "CANN 8.2.RC1")
    assert "driver 25.0.rc1, CANN 8.2.RC1" in measured_on(Provenance(device=device))


def test_a_checkpoint_is_told_by_its_content(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
        (tmp_path / name / ".cache").write_text(name, encoding="utf-8")
    one, two = (provenance.checkpoint_of(str(tmp_path / name)) for name in ("one", "two"))
    assert (one.name, one.sha256) == ("one", two.sha256)
    (tmp_path / "two/model.safetensors").write_bytes(b"Weights")
    assert provenance.checkpoint_of(str(tmp_path / "two")).sha256 != one.sha256
    hub = tmp_path / "models--Org--Name/snapshots/abc123"
    hub.mkdir(parents=True)
    assert (provenance.checkpoint_of(str(hub)).name, provenance.checkpoint_of(str(hub)).revision) == (
        "Org/Name",
        "abc123",
    )
    assert provenance.checkpoint_of("Org/Name").sha256 is None


def test_a_page_has_all_that_it_is_given() -> None:
    sheets = [
        Sheet("Times", "In ms.", ["what", "ms"], [["a|b", "1"]], ["note"]),
        Sheet("More", "", ["x"], [["y"]], folded=True),
    ]
    text = page(title="A page", intro=["How."], measured="here.", sections=sheets, left_out=["this"])
    assert "| a/b | 1 |" in text
    assert "## Times\n\nIn ms.\n\n| what | ms |" in text
    assert "<details><summary>More</summary>\n\n| x |" in text
    assert all(
        part in text for part in ("# A page\n\nHow.\n\nMeasured: here.", "- note", "## Left out\n\n- this")
    )
    assert "{" not in text


def test_paths_are_not_recorded(tmp_path: Path) -> None:
    words = ["--model", f"{tmp_path}/model", f'{{"path": "{tmp_path}/made/x.npz"}}', "--other=…/y"]
    folders = {tmp_path: "", tmp_path / "made": "made"}
    found = [provenance.without_places(word, folders) for word in words]
    assert found == ["--model", "model", '{"path": "made/x.npz"}', "--other=…/y"]


def test_a_plot_leaves_matplotlib_as_it_was() -> None:
    mpl = pytest.importorskip("matplotlib")
    before = dict(mpl.rcParams)
    with drawing(font_size=3, svg_fonttype="none"):
        assert (mpl.rcParams["font.size"], mpl.rcParams["svg.fonttype"]) == (3, "none")
    assert {name for name, value in mpl.rcParams.items() if value != before[name]} <= {
        "backend",
        "backend_fallback",
    }
