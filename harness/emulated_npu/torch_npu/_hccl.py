# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""HCCL by gloo."""

from __future__ import annotations

import atexit
from typing import Any

import torch
import torch.distributed as dist

# A communicator's name → its backend, for ops that communicate by themselves.
_groups: dict[str, dist.ProcessGroup] = {}


class ProcessGroupHCCL:
    """What is taken of torch_npu's process group: its options."""

    class Options:
        """Options of a group; they change nothing here."""

        def __init__(self, *_: object, **__: object) -> None:
            """Take what torch_npu takes."""
            self.hccl_config: dict[str, object] = {}


def register() -> None:
    """Make "hccl" a backend of torch.distributed, for tensors on the device and on the CPU."""
    dist.ProcessGroupGloo.get_hccl_comm_name = _name  # type: ignore[attr-defined]
    dist.is_hccl_available = lambda: True  # type: ignore[attr-defined]
    dist.Backend.register_backend("hccl", _create, extended_api=True, devices=["cpu", "npu"])
    dist.all_gather = _all_gather
    atexit.register(_end)


def gather_rows(group: str, rows: torch.Tensor) -> list[torch.Tensor]:
    """Return every rank's rows; their number may differ from rank to rank.

    Args:
        group: the communicator's name.
        rows: [n, …] of this rank.

    Raises:
        ValueError: there is no such communicator.
    """
    backend = _groups.get(group)
    if backend is None:
        msg = f"the communicator is {group!r}; expected one of {sorted(_groups)}"
        raise ValueError(msg)
    size = backend.size()
    mine = torch.tensor([rows.shape[0]])
    counts = [torch.empty_like(mine) for _ in range(size)]
    backend.allgather([counts], [mine]).wait()
    most = max(int(count) for count in counts)
    padded = rows.new_zeros((most, *rows.shape[1:]))
    padded[: rows.shape[0]] = rows
    parts = [torch.empty_like(padded) for _ in range(size)]
    backend.allgather([parts], [padded]).wait()
    return [part[: int(count)] for part, count in zip(parts, counts, strict=True)]


def _end() -> None:
    # A group that outlives the interpreter ends the process: gloo's threads then free Python objects that are gone.
    _groups.clear()
    if dist.is_initialized():
        dist.destroy_process_group()


def _create(opts: Any, pg_options: object = None) -> dist.ProcessGroupGloo:  # noqa: ANN401, ARG001 - torch's signature
    return dist.ProcessGroupGloo(opts.store, opts.group_rank, opts.group_size, opts.timeout)


def _name(self: dist.ProcessGroup, rank: int = 0, *_: object) -> str:  # noqa: ARG001 - torch_npu's signature
    name = f"emulated_{id(self)}"
    _groups[name] = self
    return name


_gloo_all_gather = dist.all_gather


def _all_gather(
    tensor_list: list[torch.Tensor],
    tensor: torch.Tensor,
    group: dist.ProcessGroup | None = None,
    async_op: bool = False,
) -> object:
    """Gather tensors, as HCCL does also of different sizes; gloo does not."""
    if len({part.shape for part in tensor_list}) == 1:
        return _gloo_all_gather(tensor_list, tensor, group, async_op)
    rank = dist.get_rank(group)
    for source, part in enumerate(tensor_list):
        whole = tensor.contiguous() if source == rank else torch.empty_like(part).contiguous()
        dist.broadcast(whole, group=group, group_src=source)
        part.copy_(whole)
    return None
