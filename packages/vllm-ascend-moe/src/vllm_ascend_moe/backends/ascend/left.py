# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What vllm-ascend keeps in the process of an engine, and has still when the next one is made there."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_ascend_moe.releases import Release


def forget_engine(release: Release) -> None:
    """Let vllm-ascend number its layers anew: an engine before this one has left its own in the process."""
    for name in release.layers:
        for value in list(vars(importlib.import_module(name)).values()):
            if isinstance(value, type) and "moe_counter" in vars(value):
                value.moe_counter = -1  # type: ignore[attr-defined]
    registered = registered_layers()
    if registered is not None:
        registered.clear()  # vllm-ascend never does


def registered_layers() -> list[Any] | None:
    """Return the layers that vllm-ascend's EPLB takes for the model's, of whichever model; None where it asks the model."""
    adaptor = importlib.import_module("vllm_ascend.eplb.adaptor.vllm_adaptor").VllmEplbAdaptor
    found: list[Any] | None = getattr(adaptor, "_registered_moe_layers", None)
    return found
