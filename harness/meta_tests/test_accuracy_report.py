# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The report: every arm is on the page and in the plot, with the numbers of its record."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from made_records import TOKENS, Arm, eplb, make
from scipy.stats import beta
from typer.testing import CliRunner

from expert_maps import ExpertMapsError
from harness.accuracy.__main__ import app
from harness.accuracy.compare import Options
from harness.accuracy.limits import LIMITS
from harness.accuracy.plots import draw, limits_shown
from harness.accuracy.records import QUESTIONS, SUMMARY
from harness.accuracy.report import PAGE, PLOT, gather, page
from harness.accuracy.schema import RecordError
from harness.record.tables import points

if TYPE_CHECKING:
    from pathlib import Path

    from harness.accuracy.overview import ReportedArm

HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None
UNFINISHED = {"status": "failed", "reason": "the server stopped", "value": None, "load.rank_load": None}
# In the order in which they are written; those of a page are in the order in which they ran.
ARMS = [
    eplb(name="b-zeroed", wrong=range(30), changed=range(9), shift=0.25, changes={"started": "2025-01-04"}),
    eplb(name="a-stopped", changes={"started": "2025-01-05", "load.balancedness": None, **UNFINISHED}),
    eplb(name="c-unmeasured", shift=None, changes={"started": "2025-01-02", "git.dirty": True}),
    eplb(name="d-static", wrong=[7, 8], changed=[3], shift=1e-9, changes={"started": "2025-01-03"}),
    Arm(wrong=[0], changes={"started": "2025-01-01"}),
]
ORDER = ["baseline", "c-unmeasured", "d-static", "b-zeroed", "a-stopped"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for arm in ARMS:
        make(tmp_path, arm)
    return tmp_path


def section(text: str, title: str) -> dict[str, list[str]]:
    """Return the rows of the table below a heading, by their first cell."""
    part = text.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows[2:]}


def test_the_page_names_every_arm_with_what_came_of_it(folder: Path) -> None:
    arms = gather(folder)
    assert [arm.name for arm in arms] == ORDER
    text = page(arms, None)
    assert PLOT not in text
    assert "{" not in text
    for name in ORDER[1:]:
        assert text.count(f"\n## {name}\n") == 1
    assert "\nfailed: the server stopped\n" in text
    # A table of each arm in the field's format; one that stopped has no value.
    assert text.count("| dataset | version | metric | mode | model |") == len(ORDER)
    assert [
        value for value in ("99.75", "99.50", "100.00", "92.50", "–") if f"| gen | {value} |" not in text
    ] == []
    for title in ("Accuracy", "Load", "Runs"):
        assert list(section(text, title)) == ORDER
    assert list(section(text, "Agreement")) == ["c-unmeasured", "d-static", "b-zeroed"]
    for arm in arms:
        if arm.comparison is not None:
            assert arm.comparison.verdict.line in text
            assert all(one.name in text for one in arm.comparison.verdict.criteria)
    assert "- note: uncommitted changes: c-unmeasured" in text
    assert "cccccccccccc and changes" in text


def test_the_numbers_of_the_page_are_those_of_the_records(folder: Path) -> None:
    text = page(gather(folder), None)
    rows = section(text, "Accuracy")
    assert {name: row[-1] for name, row in rows.items()} == {
        "baseline": "baseline",
        "c-unmeasured": "undecided",
        "d-static": "undecided",
        "b-zeroed": "worse",
        "a-stopped": "failed",
    }
    assert rows["b-zeroed"][:2] == ["400", "92.50"]
    # Lost and gained: question 0 is wrong in the baseline too.
    assert rows["b-zeroed"][4:6] == ["29", "0"]
    assert rows["d-static"][4:6] == ["2", "1"]
    assert rows["c-unmeasured"][4:6] == ["0", "1"]
    assert rows["b-zeroed"][3].startswith("-7.25 (")
    assert rows["a-stopped"][1:7] == ["–"] * 6
    # Clopper and Pearson, by its definition.
    low, high = (100 * float(beta.ppf(share, *ab)) for share, ab in ((0.025, (370, 31)), (0.975, (371, 30))))
    assert rows["b-zeroed"][2] == f"{low:.2f} to {high:.2f}"
    agreement = section(text, "Agreement")
    assert agreement["b-zeroed"] == ["391 (97.75 %)", "2.5e-01", "2.5e-01", str(400 * TOKENS)]
    assert agreement["d-static"] == ["399 (99.75 %)", "1.0e-09", "1.0e-09", str(400 * TOKENS)]
    assert agreement["c-unmeasured"][1:] == ["no log-probabilities of c-unmeasured", "–", "–"]
    load = section(text, "Load")
    # [[4, 1, 2, 1], [3, 2, 2, 1]] over a mean of 2.
    assert load["d-static"] == ["4", "8", "0", "0.5714", "2.000 (layer 0)", "equal", "b" * 12]
    assert load["a-stopped"][3:5] == ["–", "–"]


def test_options_reach_the_verdicts(folder: Path) -> None:
    def answers(options: Options) -> dict[str, str]:
        arms = gather(folder, options)
        return {arm.name: arm.comparison.verdict.answer for arm in arms if arm.comparison is not None}

    assert answers(Options(margin=3.0))["d-static"] == "no worse"
    assert answers(Options(margin=3.0, mean=1e-10))["d-static"] == "worse"


def test_a_stopped_baseline_leaves_the_others_unjudged(tmp_path: Path) -> None:
    make(tmp_path, Arm(changes=UNFINISHED))
    make(tmp_path, eplb())
    text = page(gather(tmp_path), None)
    assert {name: row[-1] for name, row in section(text, "Accuracy").items()} == {
        "baseline": "failed",
        "static": "not judged",
    }
    assert "No arm was compared." in text


def test_a_load_of_nothing_is_no_division_by_zero(tmp_path: Path) -> None:
    make(tmp_path, Arm(changes={"load.rank_load": [[0.0, 0.0]]}))
    assert section(page(gather(tmp_path), None), "Load")["baseline"][4] == "1.000 (layer 0)"


def test_what_is_no_folder_of_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExpertMapsError, match="none: no such folder"):
        gather(tmp_path / "none")
    with pytest.raises(ExpertMapsError, match="0 records, 0 of them baselines; expected one baseline"):
        gather(tmp_path)
    make(tmp_path, Arm())
    make(tmp_path, Arm(name="again"))
    with pytest.raises(ExpertMapsError, match="2 records, 2 of them baselines; expected one baseline"):
        gather(tmp_path)


@pytest.mark.parametrize(
    ("source", "copy", "reason"),
    [
        (
            "d-static",
            "d-copy",
            "folders 'd-copy' and 'd-static' both hold arm 'd-static'; expected every arm once",
        ),
        ("baseline", "old", "folders 'baseline' and 'old' both hold arm 'baseline'; expected every arm once"),
    ],
)
def test_an_arm_that_is_there_twice_is_refused(folder: Path, source: str, copy: str, reason: str) -> None:
    shutil.copytree(folder / source, folder / copy)
    with pytest.raises(RecordError) as caught:
        gather(folder)
    assert str(caught.value) == f"{folder}: {reason}"


def test_a_folder_of_another_name_than_its_arm_is_refused(folder: Path) -> None:
    (folder / "d-static").rename(folder / "renamed")
    with pytest.raises(RecordError) as caught:
        gather(folder)
    assert str(caught.value) == (
        f"{folder}: folder 'renamed' holds arm 'd-static'; expected a folder of the arm's name"
    )


def test_limits_out_of_range_are_refused_where_no_arm_is_judged(tmp_path: Path) -> None:
    make(tmp_path, Arm())
    with pytest.raises(ValueError, match="largest is -1; expected"):
        gather(tmp_path, Options(largest=-1.0))


def test_line_breaks_do_not_break_the_page(tmp_path: Path) -> None:
    """Reasons and notes come from other programs."""
    make(tmp_path, Arm())
    reason = "it stopped:\n\n## Load\n| a | b |\r\n\tlast\u2028words"
    stopped = {**UNFINISHED, "reason": reason, "started": "2025-01-01T00:00:00+00:00"}
    make(tmp_path, eplb(name="stopped", changes=stopped))
    other = {"environment": {"machine": "x86\n\n64|y"}, "versions.vllm": "1\n# 2"}
    make(tmp_path, eplb(name="other", changes=other))
    text = page(gather(tmp_path), None)
    assert "\nfailed: it stopped: ## Load | a | b | last words\n" in text
    assert "\n- note: vllm is 1.0 and 1 # 2\n" in text
    assert section(text, "Runs")["other"][-1] == "machine x86 64/y"
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# Accuracy of made-up",
        "## Accuracy",
        "## Agreement",
        "## Load",
        "## Tables",
        "## stopped",
        "## other",
        "## Runs",
    ]


@pytest.mark.parametrize(
    ("value", "signed", "shown"),
    [
        (-0.004, False, "0.00"),
        (-0.004, True, "+0.00"),
        (-0.0, True, "+0.00"),
        (-0.006, False, "-0.01"),
        (0.126, True, "+0.13"),
    ],
)
def test_no_number_is_minus_zero(value: float, signed: bool, shown: str) -> None:
    assert points(value, signed=signed) == shown


def test_a_page_has_no_minus_zero(tmp_path: Path) -> None:
    make(tmp_path, Arm(wrong=range(11)))
    make(tmp_path, eplb())
    arms = gather(tmp_path)
    assert arms[1].comparison is not None
    verdict = dataclasses.replace(arms[1].comparison.verdict, loss_limit=-0.001, interval=(-0.002, 5.0))
    comparison = dataclasses.replace(arms[1].comparison, verdict=verdict)
    row = section(page([arms[0], dataclasses.replace(arms[1], comparison=comparison)], None), "Accuracy")[
        "static"
    ]
    assert row[3] == "+2.75 (+0.00 to +5.00)"
    assert row[6] == "0.00"


def test_a_record_that_was_cut_off_is_not_left_out(folder: Path) -> None:
    (folder / "d-static" / SUMMARY).unlink()
    with pytest.raises(ExpertMapsError, match=r"d-static: holds no summary\.json"):
        gather(folder)
    (folder / "d-static" / QUESTIONS).unlink()
    assert "d-static" not in [arm.name for arm in gather(folder)]


@pytest.mark.parametrize(
    "drawable",
    [
        False,
        pytest.param(
            True, marks=pytest.mark.skipif(not HAS_MATPLOTLIB, reason="matplotlib is not installed")
        ),
    ],
)
def test_the_command_writes_the_page_and_the_plot(
    folder: Path, monkeypatch: pytest.MonkeyPatch, drawable: bool
) -> None:
    if not drawable:
        find, gone = importlib.util.find_spec, {"matplotlib": None}
        monkeypatch.setattr("importlib.util.find_spec", lambda one: gone.get(one, find(one)))
    done = CliRunner().invoke(app, ["report", str(folder), "--margin", "3"])
    assert (done.exit_code, done.exception) == (0, None)
    options = Options(margin=3.0)
    assert (folder / PAGE).read_text() == page(gather(folder, options), PLOT if drawable else None)
    assert (folder / PLOT).exists() == drawable
    assert ("no plot: matplotlib is not installed" in done.stderr) == (not drawable)
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_the_command_refuses_with_2_and_a_line(folder: Path) -> None:
    (folder / "d-static" / SUMMARY).write_text(json.dumps({"format": 1}))
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert f"d-static/{SUMMARY}: status: Field required" in line
    assert not (folder / PAGE).exists()


def figure_of(arms: list[ReportedArm], path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401 - matplotlib's
    """Draw arms; return the figure, for the caller to close."""
    from matplotlib import pyplot as plt

    with monkeypatch.context() as patch:
        patch.setattr(plt, "close", lambda _: None)
        draw(arms, path)
    return plt.gcf()


def drawn(arms: list[ReportedArm], path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Draw arms; return the texts of each panel: names at the left, then those inside."""
    from matplotlib import pyplot as plt

    figure = figure_of(arms, path, monkeypatch)
    found = [
        [*(label.get_text() for label in axis.get_yticklabels()), *(text.get_text() for text in axis.texts)]
        for axis in figure.axes
    ]
    plt.close(figure)
    return found


@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="matplotlib is not installed")
def test_the_plot_shows_every_arm_in_every_panel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / PLOT
    accuracy, texts, logprobs, load = drawn(gather(folder), path, monkeypatch)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    # The names of the arms, then a text for each.
    assert accuracy == [
        *ORDER,
        "99.75",
        "100.00, undecided",
        "99.50, undecided",
        "92.50, worse",
        "failed: no value",
    ]
    assert texts == ["reference", "0 of 400", "1 of 400", "9 of 400", "not compared"]
    assert logprobs[len(ORDER) :][:2] == ["reference", "not measured"]
    assert logprobs[-1] == "not compared"
    assert load.count("0.5714") == 4
    assert load.count("not recorded") == 1


@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="matplotlib is not installed")
def test_a_baseline_alone_and_equal_arms_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, Arm())
    assert drawn(gather(tmp_path), tmp_path / "one.svg", monkeypatch)[1] == ["reference"]
    assert (tmp_path / "one.svg").read_text().startswith("<?xml")
    make(tmp_path, eplb())
    # Where nothing differs there is no logarithm: it says so.
    assert "equal" in drawn(gather(tmp_path), tmp_path / PLOT, monkeypatch)[2]
    with pytest.raises(ExpertMapsError, match="there is no folder"):
        drawn(gather(tmp_path), tmp_path / "none" / PLOT, monkeypatch)


def test_limits_that_were_asked_for_are_shown_where_no_arm_was_compared(tmp_path: Path) -> None:
    make(tmp_path, Arm())
    names = ("log-probabilities, largest", "log-probabilities, mean")
    shown = limits_shown(gather(tmp_path, Options(largest=0.5)))
    assert shown == dict(zip(names, (0.5, LIMITS["float32"].mean), strict=True))
    make(tmp_path, Arm(changes={"dtype": "float8"}))
    assert limits_shown(gather(tmp_path)) == {}
    assert limits_shown(gather(tmp_path, Options(mean=0.25))) == {names[1]: 0.25}


LONG = "eplb-static-of-" + "a-very-long-name-" * 3 + "2"


@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="matplotlib is not installed")
def test_every_text_of_the_plot_has_its_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import pyplot as plt

    for arm in (Arm(), eplb(changed=range(400), shift=3.0), eplb(name=f"{LONG}-1"), eplb(name=f"{LONG}-$2")):
        make(tmp_path, arm)
    figure = figure_of(gather(tmp_path), tmp_path / PLOT, monkeypatch)
    figure.canvas.draw()  # places are those of the file's resolution until then
    plt.close(figure)
    panels = [axis.get_window_extent() for axis in figure.axes]
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    # Long names keep their ends.
    assert sorted(names[1:]) == [r"eplb-stati…-name-2-1", r"eplb-stati…name-2-\$2", "static"]
    for axis, panel in zip(figure.axes, panels, strict=True):
        assert panel.width > 0.2 * figure.bbox.width
        for text in (*axis.texts, *(label for label in axis.get_yticklabels() if label.get_text())):
            box = text.get_window_extent()
            assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, text
            assert not any(box.overlaps(other) for other in panels), text
