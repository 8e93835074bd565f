# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Memory formats: every tensor stays as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch_npu._registry import NPU, given

if TYPE_CHECKING:
    import torch

_ND = 2


@given(NPU, "npu_format_cast", ignored=("acl_format", "customize_dtype", "input_dtype"))
def npu_format_cast(self: torch.Tensor) -> torch.Tensor:
    """Return a copy, as a cast is one on the device."""
    return self.clone()


@given(NPU, "npu_format_cast_.acl_format", ignored=("acl_format", "customize_dtype", "input_dtype"))
def npu_format_cast_(self: torch.Tensor) -> torch.Tensor:
    """Return the tensor."""
    return self


@given(NPU, "get_npu_format")
def get_npu_format(self: torch.Tensor) -> int:  # noqa: ARG001 - every tensor's is the same
    """Return the number of the plain format."""
    return _ND


@given(NPU, "npu_prefetch", ignored=("dependency", "max_size", "offset"))
def npu_prefetch(self: torch.Tensor) -> None:
    """Do nothing: there is no other memory to fetch from."""
