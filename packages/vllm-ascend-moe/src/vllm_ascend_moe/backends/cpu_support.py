# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What vLLM's CPU build lacks for expert parallelism beside experts and router: a clock, collectives, int8 that moves."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import torch

from vllm_ascend_moe.hooks import wrapping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class _HostEvent:
    """Stands in for an accelerator's event, where there is only the host's clock."""

    def __init__(self, *args: object, **kwargs: object) -> None:  # noqa: ARG002 - torch's signature
        self._at = 0.0

    def record(self, *args: object) -> None:  # noqa: ARG002 - torch's signature
        self._at = time.perf_counter()

    def wait(self, *args: object) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: _HostEvent) -> float:
        return (end._at - self._at) * 1000.0


@contextlib.contextmanager
def host_events() -> Iterator[None]:
    """Time by the host while vLLM times by events of an accelerator."""
    saved = torch.Event, torch.cuda.Event
    torch.Event = torch.cuda.Event = _HostEvent  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        torch.Event, torch.cuda.Event = saved  # type: ignore[misc]


def let_int8_move() -> None:
    """Let vLLM move int8 experts between ranks: with these experts a slot's weights and scales are its own."""
    from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (
        compressed_tensors_moe_w8a8_int8 as int8,
    )

    method = int8.CompressedTensorsW8A8Int8MoEMethod
    wrapping.replace(method, "supports_eplb", property(lambda self: True))  # noqa: ARG005


def all_gatherv(
    _: Callable[..., Any], communicator: Any, input_: Any, dim: int = 0, sizes: list[int] | None = None
) -> Any:
    """Gather tensors of unequal lengths: padded to the longest, because gloo gathers equal ones."""
    if isinstance(input_, list):
        return [all_gatherv(_, communicator, tensor, dim, sizes) for tensor in input_]
    if dim != 0:
        msg = f"dim is {dim}; expected 0"
        raise ValueError(msg)
    lengths = sizes or [len(input_)] * communicator.world_size
    padded = input_.new_zeros((max(lengths), *input_.shape[1:]))
    padded[: len(input_)] = input_
    parts = [torch.empty_like(padded) for _ in lengths]
    torch.distributed.all_gather(parts, padded, group=communicator.device_group)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])


def reduce_scatterv(
    _: Callable[..., Any],
    communicator: Any,
    input_: torch.Tensor,
    dim: int = 0,
    sizes: list[int] | None = None,
) -> torch.Tensor:
    """Add up over ranks and keep this rank's rows."""
    if dim != 0:
        msg = f"dim is {dim}; expected 0"
        raise ValueError(msg)
    world = communicator.world_size
    lengths = sizes or [len(input_) // world] * world
    total = input_.contiguous().clone()
    torch.distributed.all_reduce(total, group=communicator.device_group)
    start = sum(lengths[: communicator.rank_in_group])
    return total[start : start + lengths[communicator.rank_in_group]].contiguous()


__all__ = ["all_gatherv", "host_events", "let_int8_move", "reduce_scatterv"]
