# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Make this process one with NPUs: what torch's entry point does."""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
from typing import TYPE_CHECKING

import torch

from torch_npu import (
    _chip,
    _custom,
    _device,
    _environment,
    _hccl,
    _imported,
    _imports,
    _interpreted,
    _registry,
    _schemas,
    _triton,
    ops,
)

if TYPE_CHECKING:
    from types import ModuleType

# What keeps things registered as long as the process lives.
_kept: list[object] = []


def load(package: ModuleType) -> None:
    """Register the device, its ops and its communication, once.

    Args:
        package: torch_npu, which gets its names.

    Raises:
        ValueError: an environment variable is missing or wrong.
    """
    if _environment.loaded():
        return
    wheel = _environment.torch_npu_wheel()
    # All variables at once: a wrong one stops the start, not the first use.
    _environment.soc(), _environment.binding(), _environment.device_count()
    ops.load()
    module, library = _device.set_up()
    _kept.append(library)
    _add_ops(package, _schemas.of_torch_npu(wheel))
    _imported.add_modules()
    attributes = {
        "npu": module,
        "Format": _imported.Format,
        "__version__": importlib.metadata.version("torch_npu"),
        **_imported.DTYPES,
    }
    package.__dict__.update(attributes)
    _without_torchvisions_library()
    _hccl.register()
    (_interpreted if _environment.has_triton() else _triton).install()
    _chip.install()
    _custom.install()


def _add_ops(package: ModuleType, schemas: dict[str, str]) -> None:
    _kept.append(_registry.define(_registry.NPU, schemas))
    for name in {name.partition(".")[0] for name in schemas}:
        package.__dict__[name] = getattr(torch.ops.npu, name)
    atb = _imports.add_module("torch_npu.atb")
    for (namespace, name), op in _registry.GIVEN.items():
        if namespace == _registry.ATB:
            owner = atb if name.startswith("atb.") else package
            owner.__dict__[name.removeprefix("atb.")] = _registry.counted(f"torch_npu.{name}", op.function)


def _without_torchvisions_library() -> None:
    """Define the two ops that torchvision looks for: its C++ part is built for CUDA and does not load."""
    if "torchvision" in sys.modules:
        return
    with contextlib.suppress(RuntimeError):
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        _kept.append(library)
