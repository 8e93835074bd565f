# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""vLLM's test of execution on gloo ranks: processes without an accelerator, our placements, our way to move weights.

vLLM starts a process for each rank and wants a GPU for each. Here ranks are forked from a server that has vLLM imported
already, each with the CPU as its accelerator and gloo for NCCL.
"""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import socket
import sys
import traceback
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from expert_maps import Placement, plan
from harness.peers import calls

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_TIMEOUT_S = 60
# What moves weights with more than tensors on a CPU.
_NEEDS_GPU = {"pynccl": "works with GPUs only", "torch_gloo": "stages through an accelerator"}
RANKS = 2


def device_count(_theirs: object, _variant: str) -> Callable[[], int]:
    """Return the number of accelerators to claim."""
    return lambda: RANKS


def is_available(_theirs: object, _variant: str) -> Callable[[], bool]:
    """Claim a GPU, which vLLM asks for where it means NCCL; in the ranks it is gloo."""
    return lambda: True


def distributed_run(_theirs: object, _variant: str) -> Callable[..., None]:
    """Return what runs a function of vLLM's test on some ranks."""

    def run(function: Callable[..., None], world_size: int, *args: Any) -> None:  # noqa: ANN401 - vLLM's test's
        for name in (arg for arg in args if arg in _NEEDS_GPU):
            pytest.skip(f"{name} {_NEEDS_GPU[name]}")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, function.__module__])
        results = context.Queue()
        port = _free_port()
        ranks = [
            context.Process(
                target=_rank,
                args=(function.__module__, function.__name__, rank, world_size, port, args, results),
                daemon=True,
            )
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        try:
            told = [results.get(timeout=_TIMEOUT_S) for _ in ranks]
        finally:
            for process in ranks:
                process.kill()
                process.join()
        calls.hit(min(count for count, _ in told))
        errors = [error for _, error in told if error]
        assert not errors, errors[0]

    return run


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _rank(
    module: str,
    name: str,
    rank: int,
    world_size: int,
    port: int,
    args: tuple[Any, ...],
    results: Any,  # noqa: ANN401 - a queue
) -> None:
    """Be one rank, and tell how often ours was called and what went wrong."""
    env = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    texts = {key: str(value) for key, value in env.items()}
    texts |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    try:
        tests = importlib.import_module(module)
        _put_in_place(tests)
        getattr(tests, name)(texts, world_size, *args)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent must know
        last = traceback.format_exception_only(error)[-1].strip()
        results.put((calls.count(), last))
    else:
        results.put((calls.count(), ""))
    results.close()
    results.join_thread()


def _put_in_place(tests: Any) -> None:  # noqa: ANN401 - a module
    """Make the CPU the accelerator, gloo NCCL, and ours what plans and moves."""
    accelerator: Any = torch.accelerator
    accelerator.current_accelerator = lambda: torch.device("cpu")
    accelerator.set_device_index = lambda _: None
    utils: Any = sys.modules[tests.set_env_vars_and_device.__module__]
    start = utils.init_distributed_environment
    utils.init_distributed_environment = lambda **kwargs: start(**{**kwargs, "backend": "gloo"})
    tests.create_expert_indices_with_redundancy = _planned_rows
    tests.rearrange_expert_weights_inplace = functools.partial(_move, tests.rearrange_expert_weights_inplace)


_before: list[NDArray[np.int64]] = []


def _planned_rows(
    num_layers: int, num_logical_experts: int, total_physical_experts: int, redundancy_config: list[int]
) -> torch.Tensor:
    """Plan the placement that the test asks for: anew the first time, and then from there for another load.

    The test's own wish for copies becomes the load: an expert that should have many is hot.
    """
    calls.hit()
    noise = np.random.default_rng(len(_before)).random((num_layers, num_logical_experts))
    load = np.array(redundancy_config, dtype=np.float64) + 2 * noise
    result = plan(
        load,
        num_physical_experts=total_physical_experts,
        ep_size=RANKS,
        current=Placement(_before[-1], RANKS, num_logical_experts=num_logical_experts) if _before else None,
    )
    rows = result.placement.physical_to_logical.astype(np.int64)
    _before.append(rows)
    return torch.from_numpy(rows)


def _move(
    theirs: Callable[..., None],
    old: torch.Tensor,
    new: torch.Tensor,
    weights: list[list[torch.Tensor]],
    buffer: list[torch.Tensor],
    group: Any,  # noqa: ANN401 - torch's
    communicator: Any,  # noqa: ANN401 - vLLM's
    **kwargs: Any,  # noqa: ANN401 - vLLM's
) -> None:
    """Move by the plugin: with checksums before and after, and the tables committed."""
    if kwargs:
        theirs(old, new, weights, buffer, group, communicator, **kwargs)
        return
    from vllm_ascend_moe.backends.moving import move_experts

    calls.hit()
    experts = int(old.max()) + 1
    model = SimpleNamespace(
        expert_weights=weights,
        moe_layers=[SimpleNamespace() for _ in weights],
        num_local_physical_experts=old.shape[1] // RANKS,
        num_logical_experts=experts,
        num_moe_layers=len(weights),
    )
    most = int(new.shape[1])
    state = SimpleNamespace(
        model=model,
        expert_buffer=buffer,
        communicator=communicator,
        physical_to_logical_map=old.clone(),
        physical_to_logical_map_buffer=old.clone(),
        logical_to_physical_map=torch.full((len(weights), experts, most), -1),
        logical_replica_count=torch.zeros((len(weights), experts), dtype=torch.int64),
    )
    ranks: Any = SimpleNamespace(
        ep_group=SimpleNamespace(device_group=group, cpu_group=group), cpu_group=group, ep_size=RANKS
    )
    target = Placement(new.numpy(), RANKS, num_logical_experts=experts)
    move_experts(target, "a plan", model, state, ranks)
    assert torch.equal(state.physical_to_logical_map, new), "what was committed is not what was asked for"
