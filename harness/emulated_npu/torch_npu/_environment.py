# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The environment variables of the emulation, all of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

TORCH_NPU = "EMULATED_NPU_TORCH_NPU"
BINDING = "EMULATED_NPU_BINDING"
SOC = "EMULATED_NPU_SOC"
NAMES = "EMULATED_NPU_NAMES"
DEVICES = "EMULATED_NPUS"
TRITON = "EMULATED_NPU_TRITON"

# What vllm-ascend's releases call the two chips, as torch.npu.get_soc_version numbers them.
SOC_VERSIONS = {"A2": 223, "A3": 253}
_DEFAULT_DEVICES = 16
_MOST_DEVICES = 1024


def torch_npu_wheel() -> Path:
    """Return the path of the torch_npu wheel whose schemas are used.

    Raises:
        ValueError: none is named, or it is no file.
    """
    return _file(TORCH_NPU, "the path of the torch_npu wheel that the release pins")


def binding() -> Path | None:
    """Return the path of a source release's csrc/torch_binding.cpp; None for a release that is a wheel.

    Raises:
        ValueError: it is no file.
    """
    return _file(BINDING, "the path of csrc/torch_binding.cpp") if os.environ.get(BINDING) else None


def soc() -> str:
    """Return the chip, A2 (the default) or A3.

    Raises:
        ValueError: another one is named.
    """
    name = os.environ.get(SOC, "A2")
    if name not in SOC_VERSIONS:
        msg = f"{SOC} is {name!r}; expected {' or '.join(SOC_VERSIONS)}"
        raise ValueError(msg)
    return name


def names_file() -> Path | None:
    """Return where the names that are used are listed; None if they are not."""
    return Path(os.environ[NAMES]) if os.environ.get(NAMES) else None


def device_count() -> int:
    """Return how many devices there are.

    Raises:
        ValueError: it is no number from 1 on.
    """
    text = os.environ.get(DEVICES, str(_DEFAULT_DEVICES))
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_DEVICES:
        msg = f"{DEVICES} is {text!r}; expected a number from 1 to {_MOST_DEVICES}"
        raise ValueError(msg)
    return int(text)


def has_triton() -> bool:
    """Return whether there is a Triton for the device.

    Raises:
        ValueError: the variable is neither 0 (the default) nor 1.
    """
    text = os.environ.get(TRITON, "0")
    if text not in {"0", "1"}:
        msg = f"{TRITON} is {text!r}; expected 0 or 1"
        raise ValueError(msg)
    return text == "1"


def loaded() -> bool:
    """Return whether this process has the device."""
    return "torch_npu.npu" in sys.modules


def _file(variable: str, expected: str) -> Path:
    path = Path(os.environ.get(variable, ""))
    if not path.is_file():
        msg = f"{variable} is {os.environ.get(variable, '')!r}; expected {expected}"
        raise ValueError(msg)
    return path
