# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The chip: what `vllm_ascend._build_info` says of it, which a build writes and a source release lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch_npu import _environment
from torch_npu._imports import Supplied, find_first

if TYPE_CHECKING:
    import types


def install() -> None:
    """Supply the module: the wheels are built for A2, and a build for another chip differs in this one word."""
    find_first(Supplied("vllm_ascend._build_info", _fill))


def _fill(module: types.ModuleType, _: object) -> None:
    module.__dict__["__device_type__"] = _environment.soc()
