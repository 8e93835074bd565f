# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Where the emulated NPU is, and how a process is made to load it. Importing this loads neither torch nor it."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGES = Path(__file__).resolve().parents[2] / "emulated_npu"
# The variables that harness/emulated_npu/torch_npu/_environment.py reads.
TORCH_NPU = "EMULATED_NPU_TORCH_NPU"
BINDING = "EMULATED_NPU_BINDING"
SOC = "EMULATED_NPU_SOC"
NAMES = "EMULATED_NPU_NAMES"
DEVICES = "EMULATED_NPUS"
TRITON = "EMULATED_NPU_TRITON"
CHIPS = ("A2", "A3")


def packages_folder() -> Path:
    """Return the folder that holds the import packages, for PYTHONPATH."""
    return _PACKAGES


def write_metadata(folder: Path, version: str) -> Path:
    """Write what an installed torch_npu has beside its package, so that torch loads the emulation.

    Args:
        folder: what is put on PYTHONPATH beside `packages_folder()`.
        version: torch_npu's, as the release pins it.

    Returns:
        The folder torch_npu-VERSION.dist-info.
    """
    made = folder / f"torch_npu-{version}.dist-info"
    made.mkdir(parents=True, exist_ok=True)
    metadata = f"Metadata-Version: 2.1\nName: torch_npu\nVersion: {version}\nSummary: emulated, no hardware\n"
    (made / "METADATA").write_text(metadata, encoding="utf-8")
    entry_point = "[torch.backends]\ntorch_npu = torch_npu:_autoload\n"
    (made / "entry_points.txt").write_text(entry_point, encoding="utf-8")
    return made


def environment(
    metadata: Path,
    *,
    torch_npu_wheel: Path,
    chip: str,
    binding: Path | None = None,
    names: Path | None = None,
    devices: int | None = None,
    before: tuple[Path, ...] = (),
    triton: bool = False,
) -> dict[str, str]:
    """Return the environment variables under which a process loads the emulation.

    Args:
        metadata: the folder given to `write_metadata`.
        torch_npu_wheel: whose schemas are used.
        chip: A2 or A3.
        binding: a source release's csrc/torch_binding.cpp; None for a wheel.
        names: where the names that are used are listed; None for nowhere.
        devices: how many there are; None for the emulation's default.
        before: more folders for PYTHONPATH: vllm-ascend's and vLLM's.
        triton: whether there is a Triton, whose kernels are then interpreted; the runner V2 needs one.

    Raises:
        ValueError: there is no such chip.
    """
    if chip not in CHIPS:
        msg = f"chip is {chip!r}; expected {' or '.join(CHIPS)}"
        raise ValueError(msg)
    inherited = os.environ.get("PYTHONPATH")
    folders = [*before, _PACKAGES, metadata, *([inherited] if inherited else [])]
    made = {
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        TORCH_NPU: str(torch_npu_wheel),
        SOC: chip,
    }
    if binding is not None:
        made[BINDING] = str(binding)
    if names is not None:
        made[NAMES] = str(names)
    if devices is not None:
        made[DEVICES] = str(devices)
    if triton:
        made[TRITON] = "1"
    return made
