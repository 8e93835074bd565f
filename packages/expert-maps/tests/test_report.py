# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`report`: one file, well-formed, without scripts and without anything from elsewhere, whose numbers are those found."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from cli_runs import assert_one_line_error, run

from expert_maps import ExpertLoad, evaluate, generate_placement
from expert_maps._layers import UNNUMBERED
from expert_maps.report import Findings, as_html, figures, find, page
from expert_maps.report.svg import colour, short, ticks
from expert_maps.simulation import OFF, Costs, Setting, replay

COSTS = Costs(10**6, 25.0)
HOSTILE = "</title><script>alert(1)</script>\x1b[31m\x00\"'&amp; <img src=x onerror=alert(1)>"


def trace(steps: int = 32, layers: int = 3, experts: int = 16) -> ExpertLoad:
    rng = np.random.default_rng(2)
    share = rng.lognormal(sigma=1.0, size=(1, layers, experts))
    return ExpertLoad(rng.poisson(np.broadcast_to(300 * share, (steps, layers, experts))))


@pytest.fixture(scope="module")
def found() -> Findings:
    return find(trace(), ep_size=4, num_redundant_experts=4, costs=COSTS)


def parsed(html: str) -> ET.Element:
    """The file as XML, which allows no tag left open."""
    assert html.startswith("<!DOCTYPE html>\n")
    return ET.fromstring(html.split("\n", 1)[1])  # noqa: S314 - our own


def test_nothing_runs_and_nothing_comes_from_elsewhere(found: Findings) -> None:
    html = as_html(found, HOSTILE)
    root = parsed(html)
    names = {element.tag for element in root.iter()}
    assert not names & {
        "script",
        "img",
        "link",
        "iframe",
        "object",
        "embed",
        "use",
        "image",
        "base",
        "form",
        "a",
    }
    attributes = {name for element in root.iter() for name in element.attrib}
    assert not {name for name in attributes if name.startswith("on")} | (
        attributes & {"src", "href", "style"}
    )
    assert not re.search(r"url\(|@import|https?:|//", root.findtext("head/style") or "//")
    policy = root.find("head/meta[@http-equiv='Content-Security-Policy']")
    assert policy is not None
    assert policy.get("content") == "default-src 'none'; style-src 'unsafe-inline'"
    # The name is told as it is, and what a terminal or a browser would obey is written out.
    title = root.findtext("head/title") or ""
    assert "</title><script>alert(1)</script>\\x1b[31m\\x00\"'&amp; <img" in title
    assert "\x1b" not in html


def test_what_hovering_tells_is_what_evaluate_finds(found: Findings) -> None:
    root = parsed(as_html(found))
    told = [title.text or "" for title in root.iter("title")][1:]
    linear = generate_placement("linear", num_experts=16, ep_size=4, num_layers=3)
    for placement in (linear, found.result.placement):
        result = evaluate(placement, trace())
        for layer, tokens in enumerate(result.rank_load.tolist()):
            for rank, load in enumerate(tokens):
                part = load / (sum(tokens) / 4)
                assert f"layer {layer}, rank {rank}: {part:.3f} × mean, {load:,.0f} tokens" in told
            said = "without EPLB" if placement is linear else "with this plan"
            assert f"layer {layer}: {result.balancedness[layer]:.4f}, {said}" in told
    run = next(run for run in found.runs if run.setting == found.advice.setting)
    again = replay(trace(), run.setting, first=16, costs=COSTS)
    for step in (0, 16, 31):
        assert f"step {step}: {again.mean[step] / again.hottest[step]:.4f}, {run.setting.name}" in told
    late = again.mean[16:].sum() / again.hottest[16:].sum()
    when = f"every {run.setting.interval} steps" if run.setting.interval else "once"
    assert f"4 redundant: {late:.4f}, planned {when}" in told
    cells = [[cell.text for cell in row.iter("td")] for row in root.iter("tr")]
    assert [run.setting.name, f"{late:.4f}", str(again.rearrangements)] in [row[:3] for row in cells]
    worst = int(evaluate(linear, trace()).worst_layers[0])
    hottest = int(trace().total[worst].argmax())
    copies = int(found.result.placement.replica_count[worst, hottest])
    assert any(line.startswith(f"expert {hottest}: ") and f"copies: {copies}, each" in line for line in told)


def test_every_part_and_the_advice_are_there(found: Findings) -> None:
    root = parsed(as_html(found))
    heads = [head.text for head in root.iter("h2")]
    assert heads == ["Balance", "Time", "Memory", "Why, and what it rests on", "Layers", "How this was made"]
    assert root.findtext(".//div[@class='answer yes']/strong") == "Yes"
    said = [item.text for item in root.iter("li")]
    for line in (*found.advice.reasons, *found.advice.assumptions):
        assert line in said
    assert f"digest of the placement: {found.result.placement.digest}" in said
    assert len(list(root.iter("figure"))) == 6
    labelled = [drawn for drawn in root.iter("svg") if drawn.get("class") != "sign"]
    assert all(drawn.get("role") == "img" and drawn.get("aria-label") for drawn in labelled)


def test_a_load_of_one_step_has_no_time_and_one_without_redundancy_takes_what_is_advised() -> None:
    one = find(trace(1), ep_size=4, num_redundant_experts=0, costs=COSTS)
    assert "nothing can be said of steps that come later" in as_html(one)
    assert one.advice.answer == "not enough data"
    free = find(trace(), ep_size=4, costs=COSTS)
    assert free.advice.setting is not None
    assert free.redundant == free.advice.setting.num_redundant_experts
    assert free.runs[0].setting.policy == OFF
    parsed(as_html(find(ExpertLoad(np.zeros((30, 1, 8))), ep_size=4, num_redundant_experts=0, costs=COSTS)))


def test_many_ranks_layers_steps_and_experts_are_drawn_together() -> None:
    loads = np.random.default_rng(0).random((200, 300))
    for figure in figures.rank_loads(loads, loads, UNNUMBERED):
        root = ET.fromstring(f"<p>{figure.drawing}</p>")  # noqa: S314 - our own
        told = [title.text or "" for title in root.iter("title")]
        assert len(told) == figures.MOST_CELLS**2
        layer, rank = (
            int(index)
            for index in np.unravel_index(int((loads / loads.mean(1, keepdims=True)).argmax()), loads.shape)
        )
        assert any(line.startswith(f"layer {layer}, rank {rank}: ") for line in told)
        assert "A cell is the hottest of several" in figure.caption
    run = replay(trace(130), Setting("balanced", 4, 0, 0), costs=COSTS)
    drawn = figures.over_time([replay(trace(130), Setting(OFF, 4), costs=COSTS), run], 65)
    assert drawn.drawing.count("<title>") == 2 * figures.MOST_POINTS
    worse = [replay(trace(4), Setting("balanced", 4, 0, 1 + each), costs=COSTS) for each in range(8)]
    assert worse[7].setting.name in figures.over_time(worse, 2, worse[7].setting).drawing
    assert worse[7].setting.name not in figures.over_time(worse, 2, worse[0].setting).drawing
    assert f"steps 0 to 1: {run.mean[:2].sum() / run.hottest[:2].sum():.4f}" in drawn.drawing


def test_numbers_of_axes_are_round_and_inside() -> None:
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(-0.5, 2.5, whole=True) == [0, 1, 2]
    assert ticks(3, 3) == [3]
    assert all(0.41 <= tick <= 1 for tick in ticks(0.41, 1))
    assert [short(value) for value in (0.5, 1234, 12345, 2.5e6, 3e9)] == [
        "0.5",
        "1234",
        "12.3k",
        "2.5M",
        "3G",
    ]
    assert (colour(0), colour(1), colour(-1), colour(9)) == ("#00204d", "#ffea46", "#00204d", "#ffea46")


def test_the_command_writes_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "<b>&x.npy"
    np.save(name, trace().counts)
    options = (name, "--ep-size", 4, "--expert-bytes", 10**6, "--bandwidth", 25, "--workers", 1)
    result = run("report", *options, "--redundant", 4, "--output", "r.html", "--device-memory", 1)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("worth it: yes\n")
    assert result.stdout.endswith("written: r.html\n")
    root = parsed(Path("r.html").read_text(encoding="utf-8"))
    assert root.findtext("head/title") == "EPLB: <b>&x.npy"
    assert any("1 GB of its device" in (item.text or "") for item in root.iter("li"))
    told = json.loads(run("report", *options, "--output", "r.html", "--json", "--title", "mine").stdout)
    assert (told["answer"], told["output"], told["replaced"]) == ("yes", "r.html", True)
    assert "<title>EPLB: mine</title>" in Path("r.html").read_text(encoding="utf-8")
    whole = run("report", *options, "--redundant", 4, "--output", "-")
    assert parsed(whole.stdout).findtext("head/title") == "EPLB: <b>&x.npy"
    assert "written: standard output" in whole.stderr
    for words, said in (
        (("--output", "r.txt"), "ends in .html or .htm"),
        (
            ("--output", "n.html", "--redundant", 3),
            "--redundant is 3: 16 + 3 = 19 slots do not divide by --ep-size 4",
        ),
        (("--output", "n.html", "--policy", "best"), "--policy is 'best'"),
        (("--output", "n.html", "--step-ms", 3), "--step-ms is given without --moe-ms"),
    ):
        assert_one_line_error(run("report", *options, *words), said)
    assert not Path("n.html").exists()


def test_a_page_says_no_more_than_it_was_given() -> None:
    root = parsed(
        page.page("t", page.table(["a<b"], [["&"], ["<"]], own=1), page.listed(["<li>"]), page.listed([]))
    )
    assert [cell.text for cell in root.iter("td")] == ["&", "<"]
    assert [row.get("class") for row in root.iter("tr")] == [None, None, "own"]
