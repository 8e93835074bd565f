# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A report opened in a browser (Qt's Chromium), where PyQt6-WebEngine is installed; `test_report` needs none."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from expert_maps.report import as_html, find
from expert_maps.simulation import Costs

HERE = Path(__file__).resolve().parent

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("PyQt6") is None,
    reason="PyQt6-WebEngine is not installed; test_report reads the page as XML",
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    counts = rng.poisson(np.broadcast_to(200 * rng.lognormal(sigma=1.0, size=(1, 58, 32)), (32, 58, 32)))
    found = find(counts, ep_size=8, num_redundant_experts=8, costs=Costs(10**6, 25.0))
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(as_html(found, "<img src=http://x.invalid/y onerror=alert(1)>"), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_and_asks_for_nothing(page: Path, width: int, scheme: str) -> None:
    command = [sys.executable, str(HERE / "browser_page.py"), str(page), str(width), scheme]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = json.loads(ran.stdout)
    assert found["console"] == found["requests"] == []
    seen = found["page"]
    assert (seen["wider"], seen["outside"], seen["scripts"], seen["figures"]) == (0, 0, 0, 8)
    assert seen["letters"] >= 9  # pixels
    assert "layer 0: " in seen["hovered"]
    paper, ink = (int(seen[name].removeprefix("rgb(").split(",")[0]) for name in ("paper", "ink"))
    light, dark = (paper, ink) if scheme == "light" else (ink, paper)
    assert light > 200
    assert dark < 60
