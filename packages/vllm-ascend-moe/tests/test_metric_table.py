# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Every metric is on the dashboard, in the page and named by Prometheus' conventions; alerts name no other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from vllm_ascend_moe import monitoring
from vllm_ascend_moe.cli import app
from vllm_ascend_moe.core import metric_table
from vllm_ascend_moe.core.metric_table import COMMON_LABELS, METRICS, PREFIX

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
SAMPLES = {name: metric for metric in METRICS for name in metric.samples}
# What a name is looked up by; the last two are Prometheus' own.
LABELS = {*COMMON_LABELS, "instance", "job"}
SELECTOR = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"([^\"]*)\"")


def names_in(expression: str) -> set[str]:
    return set(re.findall(rf"{PREFIX}\w+", expression))


def expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(monitoring.DASHBOARD.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def rules() -> list[dict[str, Any]]:
    found = yaml.safe_load(monitoring.ALERTS.read_text(encoding="utf-8"))
    return [rule for group in found["groups"] for rule in group["rules"]]


def assert_labels_exist(expression: str) -> None:
    """Each selector, and each `by`, names labels that its metric has, and values that those have."""
    for name, selectors in re.findall(rf"({PREFIX}\w+)\{{([^}}]*)\}}", expression):
        metric = SAMPLES[name]
        for label, value in SELECTOR.findall(selectors):
            assert label in LABELS | {metric.label}, f"{name} has no label {label}"
            if label == metric.label:
                assert value in metric.values
    own = {SAMPLES[name].label for name in names_in(expression)}
    for labels in re.findall(r"\bby \(([^)]*)\)", expression):
        assert {label.strip() for label in labels.split(",")} <= LABELS | own


def test_names_follow_prometheus_conventions() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(rf"{PREFIX}[a-z]+(_[a-z]+)*", metric.name)
        assert not metric.name.endswith("_total")  # which the kind adds
        assert not re.search(r"_(ms|milliseconds|mib|kb|percent|ratio_percent)(_|$)", metric.name)
        assert (metric.kind == "summary") == metric.name.endswith("_seconds") or metric.kind == "gauge"
        # What waits has no sample at 0; what has values has all of them from the start.
        assert not (metric.waits and metric.values)
        assert metric.label is None or metric.values or metric.waits


def test_every_metric_is_on_the_dashboard_and_nothing_else(dashboard: dict[str, Any]) -> None:
    assert set().union(*map(names_in, expressions(dashboard))) == metric_table.sample_names()
    for expression in expressions(dashboard):
        assert_labels_exist(expression)
        assert 'model_name=~"$model", instance=~"$instance"' in expression


def test_the_dashboard_can_be_imported(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    text = json.dumps(dashboard)
    builtin = {"__rate_interval", "__range", "__all"}
    assert set(re.findall(r"\$\{?(\w+)", text)) - builtin <= variables
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["description"] or panel["title"]
        # No two panels lie on each other.
        for other in panels:
            there = other["gridPos"]
            assert other is panel or (
                place["x"] + place["w"] <= there["x"]
                or there["x"] + there["w"] <= place["x"]
                or place["y"] + place["h"] <= there["y"]
                or there["y"] + there["h"] <= place["y"]
            )
    # A label of a legend is one of its metric's.
    for panel in panels:
        for target in panel["targets"]:
            own = {SAMPLES[name].label for name in names_in(target["expr"])}
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= LABELS | own


def test_alerts_are_of_metrics_that_exist(rules: list[dict[str, Any]]) -> None:
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 5
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert names_in(rule["expr"])
        assert names_in(rule["expr"]) <= metric_table.sample_names()
        assert_labels_exist(rule["expr"])
        assert rule["labels"]["severity"] in {"warning", "critical"}
        own = {SAMPLES[name].label for name in names_in(rule["expr"])}
        used = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        assert used <= LABELS | own
        assert set(rule["annotations"]) == {"summary", "description"}


def test_the_page_has_exactly_the_table() -> None:
    _, _, rest = PAGE.read_text(encoding="utf-8").partition("<!-- metrics -->\n")
    table, _, _ = rest.partition("<!-- /metrics -->")
    assert table == metric_table.markdown()


def test_the_command_line_prints_all_of_it() -> None:
    def printed(*options: str) -> str:
        result = CliRunner().invoke(app, ["metrics", *options])
        assert result.exit_code == 0
        return result.stdout

    assert names_in(printed()) >= metric_table.sample_names()
    assert printed("--markdown") == metric_table.markdown()
    assert printed("--dashboard") == monitoring.DASHBOARD.read_text(encoding="utf-8")
    assert printed("--alerts") == monitoring.ALERTS.read_text(encoding="utf-8")
    assert CliRunner().invoke(app, ["metrics", "--alerts", "--markdown"]).exit_code == 2
