# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""vllm-ascend's policies, loaded from its wheel or from a folder of it; nothing of it is installed or kept here.

They import torch_npu, vLLM's logger and a process group of vllm-ascend's. The policies need none of the three
to plan, so stand-ins take the place of torch_npu and the group while they are imported. numba compiles FlashLB.
"""

from __future__ import annotations

import atexit
import importlib
import os
import shutil
import sys
import tempfile
import zipfile
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from harness.bench.planner.peers import Answer, Peer, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from harness.bench.planner.problems import Problem

_POLICIES = "vllm_ascend/eplb/core/policy"
_PACKAGE = _POLICIES.replace("/", ".")
FLASHLB = "FlashLB"
SWIFT = "Ascend swift"
_CLASSES = {
    FLASHLB: ("policy_flashlb", "FlashLB"),
    "Ascend default": ("policy_default_eplb", "DefaultEplb"),
    SWIFT: ("policy_swift_balancer", "SwiftBalanceEplb"),
}
NAMES = tuple(_CLASSES)
# FlashLB adds a token to every count: loads must be counts of some size.
_TOKENS_PER_EXPERT = 10_000
# What SwiftBalanceEplb asks torch_npu for, and uses only where experts are kept on their node.
_NPUS_PER_HOST = 16


def find(source: Path, scratch: Path) -> tuple[Path, str]:
    """Return a folder that has vllm-ascend's policies, and the version if a wheel's name tells it.

    Args:
        source: a wheel, a folder with one wheel, or a folder that contains the package `vllm_ascend`.
        scratch: where a wheel's policies are unpacked to.

    Raises:
        FileNotFoundError: there are none.
    """
    wheels = [source] if source.is_file() else sorted(source.glob("vllm_ascend-*.whl"))
    if wheels:
        with zipfile.ZipFile(wheels[-1]) as archive:
            for name in archive.namelist():
                if name.startswith(f"{_POLICIES}/"):
                    archive.extract(name, scratch)
        if (scratch / _POLICIES).is_dir():
            return scratch, wheels[-1].name.split("-")[1]
    elif (source / _POLICIES).is_dir():
        return source, "from a folder"
    msg = f"{source}: no wheel of vllm-ascend and no folder {_POLICIES} in it"
    raise FileNotFoundError(msg)


def load_policies(source: Path) -> tuple[list[Peer], str]:
    """Import the policies of a wheel or folder.

    Returns:
        The peers, and vllm-ascend's version.

    Raises:
        FileNotFoundError: there are none.
        ImportError: one needs something that is not installed.
    """
    scratch = Path(tempfile.mkdtemp(prefix="planner-bench-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    # numba keeps what it compiled beside the source, which may be a folder of somebody's.
    os.environ.setdefault("NUMBA_CACHE_DIR", str(scratch / "numba"))
    folder, version = find(source, scratch)
    # numba finds a compiled function by its module's name, so the stand-in packages stay; torch_npu's does not.
    for name in ("vllm_ascend", "vllm_ascend.eplb", "vllm_ascend.eplb.core", _PACKAGE):
        package = ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = package
    peers = []
    with _stand_ins():
        for name, (module, policy) in _CLASSES.items():
            found = importlib.import_module(f"{_PACKAGE}.{module}")
            peers.append(_peer(name, getattr(found, policy)))
    return peers, version


@contextmanager
def _stand_ins() -> Iterator[None]:
    group = "vllm_ascend.distributed.parallel_state"
    names = ("torch_npu", "vllm_ascend.distributed", group)
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update({name: ModuleType(name) for name in names})
    # With fewer than 32 ranks FlashLB is quicker to leave a layer alone, which a new one never does.
    cast("Any", sys.modules[group]).get_dynamic_eplb_group = lambda: SimpleNamespace(world_size=32)
    try:
        yield
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


@contextmanager
def _npus() -> Iterator[None]:
    torch = cast("Any", importlib.import_module("torch"))
    had = hasattr(torch, "npu")
    if not had:
        torch.npu = SimpleNamespace(device_count=lambda: _NPUS_PER_HOST)
    try:
        yield
    finally:
        if not had:
            del torch.npu


def _peer(name: str, policy: Callable[..., Any]) -> Peer:
    def prepare(problem: Problem) -> Callable[[], Any]:
        if problem.num_nodes > 1 and problem.num_groups > 1:
            msg = "it knows no groups"
            raise RefusedError(msg)
        if problem.current is None and name == SWIFT:
            msg = "it only moves from a placement"
            raise RefusedError(msg)
        torch = importlib.import_module("torch")
        table = _first_placement(problem) if problem.current is None else problem.current
        by_rank = (len(table), problem.ep_size, -1)
        work = _slot_loads(problem, table)
        if name == FLASHLB:
            work = work.reshape(len(work), *table.reshape(by_rank).shape)
        else:
            work = work.sum(axis=0).reshape(by_rank)
        given = torch.from_numpy(table.reshape(by_rank).copy()), torch.from_numpy(work.copy())
        if name == SWIFT:
            with _npus():
                swift = policy()
            return lambda: swift.rebalance_experts(*given)
        # FlashLB remembers, and answers a second call by the first: each call has a new one.
        return lambda: policy().rebalance_experts(*given)

    def read(problem: Problem, result: Any) -> Answer:  # noqa: ANN401 - (changed, order of layers, table)
        return Answer(np.asarray(result[2], dtype=np.int64).reshape(len(problem.total), -1))

    return Peer(name, prepare, read)


def _first_placement(problem: Problem) -> NDArray[np.int64]:
    """Return the placement [L, P] from which a planner starts that wants one: experts in order, then again."""
    row = np.arange(problem.num_physical) % problem.total.shape[1]
    return np.tile(row, (len(problem.total), 1))


def _slot_loads(problem: Problem, table: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the tokens of each slot, [windows, L, P], which is what vllm-ascend records."""
    windows = problem.load if problem.load.ndim > problem.total.ndim else problem.load[None]
    counted = np.array_equal(windows, np.floor(windows))
    scaled = windows if counted else windows / problem.total.mean() * _TOKENS_PER_EXPERT
    copies = np.stack([np.bincount(row, minlength=problem.total.shape[1]) for row in table])
    slots = np.broadcast_to(table, (len(windows), *table.shape))
    return np.take_along_axis(scaled / copies, slots, axis=2)
