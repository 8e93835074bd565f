# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from typing import TYPE_CHECKING

import fake_vllm

import vllm_ascend_moe
from vllm_ascend_moe.hooks import table, wrapping

if TYPE_CHECKING:
    import pytest

# Where it is installed, vLLM is hidden: then it is neither found nor imported.
WITHOUT_VLLM = "import logging, sys; sys.modules['vllm'] = None; logging.basicConfig(level='INFO'); "
LOADED = "print(*sorted(name for name, module in sys.modules.items() if module is not None))"


def run(code: str) -> tuple[set[str], str]:
    """Run code in a process without vLLM; the modules that it prints, and what it logs."""
    command = [sys.executable, "-c", WITHOUT_VLLM + code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.split()), done.stderr


def heavy(loaded: set[str]) -> set[str]:
    return {name for name in loaded if name.split(".")[0] in {"torch", "torch_npu", "vllm", "vllm_ascend"}}


def import_all(names: set[str]) -> str:
    return "import " + ", ".join(f"vllm_ascend_moe.{name}" for name in sorted(names))


def test_without_vllm_it_does_nothing_and_imports_nothing() -> None:
    loaded, log = run(f"import vllm_ascend_moe as plugin; plugin.register(); plugin.register(); {LOADED}")
    assert "vllm_ascend_moe" in loaded
    assert not heavy(loaded)
    # Of the plugin, the logger and its version alone.
    assert {name for name in loaded if name.startswith("vllm_ascend_moe.")} == {
        "vllm_ascend_moe._log",
        "vllm_ascend_moe._version",
    }
    line = f"vllm-ascend-moe {vllm_ascend_moe.__version__} inactive: vLLM is not installed"
    assert line in log


def test_what_decides_and_reports_loads_no_torch() -> None:
    names = {"cli", "doctor", "report", "backends", "core.activation", "core.settings", "hooks.wrapping"}
    loaded, _ = run(f"{import_all(names)}; {LOADED}")
    assert loaded >= {f"vllm_ascend_moe.{name}" for name in names}
    assert not heavy(loaded)


def test_what_serves_loads_no_vllm() -> None:
    names = {"frontend", "backends.worker", "backends.vllm_eplb", "backends.ascend_v1"}
    names |= {f"backends.{name}" for name in ("eplb_front", "cpu_front", "ascend.front")}
    names |= {f"core.{name}" for name in ("agreement", "checksums", "recorder", "replicas", "sources")}
    loaded, _ = run(f"{import_all(names)}; {LOADED}")
    assert loaded >= {f"vllm_ascend_moe.{name}" for name in names}
    assert {name.split(".")[0] for name in heavy(loaded)} == {"torch"}


def test_with_vllm_it_watches_however_often_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm.install(monkeypatch)
    for _ in range(3):
        vllm_ascend_moe.register()
    for hook in table.WATCHED:
        function = wrapping.original(hook)
        assert wrapping._find(hook)[2] is not function
        assert not hasattr(function, wrapping._MARK)


def test_vllm_finds_it_by_its_entry_point() -> None:
    (point,) = importlib.metadata.entry_points(group="vllm.general_plugins", name="ascend_moe")
    assert point.load() is vllm_ascend_moe.register
