# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A stand-in for torch_npu: the device "npu" with CPU tensors underneath, for running vllm-ascend without an NPU.

Importing this package changes nothing. torch loads it, as it loads the real one, by the entry point `_autoload`
of the group `torch.backends`, at the end of `import torch`; only then is there a device "npu".
"""

from __future__ import annotations

import sys
from typing import NoReturn

from torch_npu import _environment

# What tells it from the real one.
IS_EMULATED = True


def _autoload() -> None:
    """Be what torch calls at the end of its own import."""
    from torch_npu import _load

    _load.load(sys.modules[__name__])


def __getattr__(name: str) -> NoReturn:
    """Refuse by its name what is not given."""
    if name.startswith("__") and name != "__version__":
        raise AttributeError(name)
    if _environment.loaded():
        msg = f"torch_npu.{name} is not emulated"
    else:
        msg = (
            f"torch_npu.{name}: the emulated NPU is not loaded; torch loads it by the entry point of its "
            "dist-info, unless TORCH_DEVICE_BACKEND_AUTOLOAD is 0"
        )
    raise AttributeError(msg)
