# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What serves, by platform: a row for each backend. A new one is a file with a class, and its row here."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_ascend_moe.backends.interface import Backend
    from vllm_ascend_moe.core.activation import Way

# By what serves on a platform (`platforms.Kind`) and whose balancer it is (`activation.Way`): module and class.
_BACKENDS = {
    ("cpu", "vllm-eplb"): ("vllm_cpu", "VllmCpu"),
    ("gpu", "vllm-eplb"): ("vllm_eplb", "VllmEplb"),
    ("ascend", "vllm-ascend"): ("ascend_v1", "AscendV1"),
}


def find(kind: str, way: Way) -> type[Backend]:
    """Return the class of the backend; only its module is imported, because some import vLLM.

    Args:
        kind: of `vllm_ascend_moe.platforms.platform_kind`.
        way: which balancer serves.
    """
    module, name = _BACKENDS[kind, way]
    found: type[Backend] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return found


__all__ = ["find"]
