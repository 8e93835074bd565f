# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of objectives counts; the recorded loads are not needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from typer.testing import CliRunner

from expert_maps import Placement
from expert_maps.activation import Batch, activated
from harness.bench import objectives
from harness.bench.planner.studies import ESFT_FILE

if TYPE_CHECKING:
    from pathlib import Path


def test_thrown_batches_activate_what_they_must() -> None:
    # Six experts, all in every token: each slot is active with one copy; of two copies one is with one token.
    load = np.ones((1, 6))
    assert objectives.thrown(Placement([[0, 1, 2, 3, 4, 5]], 2), load, 4) == 3
    twice = Placement([[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]], 2)
    assert objectives.thrown(twice, load, 100) == 6
    assert 3 < objectives.thrown(twice, load, 1) < 5


def test_thrown_batches_agree_with_the_model_on_one_rank() -> None:
    # One rank is always the busiest, so that its mean is what the model expects; six of many rare experts are as good as drawn alone.
    load = np.random.default_rng(0).lognormal(sigma=0.3, size=(1, 64))
    placement = Placement([np.arange(64).tolist()], 1)
    expected = activated(placement, load, Batch(16, 6)).max()
    assert objectives.thrown(placement, load, 16) == pytest.approx(expected, rel=0.03)


def test_a_run_prints_and_writes_both_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.random.default_rng(1).poisson(20, size=(16, 2, 64))
    np.savez(tmp_path / ESFT_FILE, one=counts, two=counts[::-1])
    monkeypatch.setattr(objectives, "SIZES", ((80, 16),))
    monkeypatch.setattr(objectives, "TOKENS", (16,))
    monkeypatch.setattr(objectives, "BUDGETS", (8,))
    monkeypatch.setattr(objectives, "_THROWN", 2)
    import typer

    app = typer.Typer()
    app.command()(objectives.main)
    page = tmp_path / "page.md"
    done = CliRunner().invoke(app, ["--loads", str(tmp_path), "--table", str(page)])
    assert done.exit_code == 0, done.output
    text = page.read_text(encoding="utf-8")
    assert "## Activated slots" in text
    assert "| 80/16, 16 tokens | " in text
    assert "| 8 a layer | 4 | " in text
    absent = CliRunner().invoke(app, ["--loads", str(tmp_path / "no")])
    assert absent.exit_code == 2
    assert "--loads names no folder" in absent.output
