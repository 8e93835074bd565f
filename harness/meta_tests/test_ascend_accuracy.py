# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`accuracy` beside vllm-ascend: what it runs, and that the configuration's arms are options that vllm-ascend takes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from harness.accuracy import versions
from harness.accuracy.loading import load_config
from harness.ascend import __main__ as command
from harness.ascend import accuracy, engine
from harness.ascend.models import SIZES, TINY_MOE
from vllm_ascend_moe import releases
from vllm_ascend_moe.backends.ascend.front import AscendFront
from vllm_ascend_moe.backends.ascend.options import ascend_options
from vllm_ascend_moe.core.settings import read_settings

ROOT = Path(__file__).parents[2]


class Staged:
    """A release that was never fetched."""

    @staticmethod
    def environment(chip: str, *, triton: bool) -> dict[str, str]:
        return {"PYTHONPATH": f"/staged/{chip}", "TRITON": str(triton)}


@pytest.mark.parametrize(
    ("runner", "given", "model"),
    [
        (1, [], ["--model", "tiny-moe-ascend"]),
        (2, [], ["--model", "tiny-moe-ascend-v2"]),
        (1, ["--model=my.yaml"], []),
        (2, ["--model", "x"], []),
    ],
)
def test_it_is_run_as_it_is_where_the_release_can_be_imported(
    runner: int, given: list[str], model: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []

    def run(words: list[str], *, env: dict[str, str], check: bool) -> SimpleNamespace:
        assert not check
        ran.append((words, env))
        return SimpleNamespace(returncode=3)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(command, "stage", lambda _: Staged())
    options = ["--release", "newest", "--chip", "A2", "--runner", str(runner)]
    result = CliRunner().invoke(command.app, ["accuracy", *options, "--questions", "9", *given])
    assert result.exit_code == 3, "the verdict is the gate's"
    ((words, env),) = ran
    assert words[1:] == ["-m", "harness.accuracy", "run", *model, "--questions", "9", *given]
    assert env == {**os.environ, "PYTHONPATH": "/staged/A2", "TRITON": str(runner == 2)}


def test_bad_input_is_refused_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "stage", lambda _: pytest.fail("fetched"))
    for words in (["--chip", "A9"], ["--release", "9.9"], ["--runner", "2"], ["--runner", "3"]):
        result = CliRunner().invoke(command.app, ["accuracy", *words])
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("error: --")


@pytest.mark.parametrize("release", [one for one in releases.RELEASES if one.checked == "ci"], ids=str)
@pytest.mark.parametrize("runner", accuracy.MODELS)
def test_its_arms_are_options_that_vllm_ascend_takes(
    runner: int, release: releases.Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(accuracy.MODELS[runner])
    assert config.server.environment.get(engine.RUNNER, "0") == str(runner - 1)
    assert {(arm.role, bool(arm.plan), arm.dynamic) for arm in config.arms.values()} == {
        ("baseline", False, False),
        ("eplb", True, False),
        ("eplb", False, True),
    }
    policies = set()
    layers, _ = SIZES[TINY_MOE]
    for arm in config.arms.values():
        settings = AscendFront(release).settle(read_settings(arm.additional_config.get("expert_maps")))
        assert ascend_options(settings, {}, release, layers).get("dynamic_eplb", False) == arm.dynamic
        policies |= {settings.policy} if arm.dynamic else set()
    assert policies == {None, "vllm"}, "by expert-maps' planner, and by vllm-ascend's"


def test_a_record_names_vllm_ascend() -> None:
    assert {"vllm", "vllm_ascend", "torch_npu"} <= set(versions.NAMES)
