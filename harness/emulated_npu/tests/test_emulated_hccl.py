# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from emulated_processes import start, variables

if TYPE_CHECKING:
    from pathlib import Path

RANK = """
import json, sys, torch, torch.distributed as dist
rank, store, task = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
dist.init_process_group("cpu:gloo,npu:hccl", init_method=f"file://{store}", rank=rank, world_size=2)
from torch_npu import _hccl
from torch_npu.ops import dispatch
backend = dist.group.WORLD._get_backend(torch.device("npu"))
group = backend.get_hccl_comm_name(rank)
"""
COLLECTIVES = (
    RANK
    + """
tensor = torch.full((rank + 1, 2), float(rank + 1), device="npu")
parts = [torch.empty(1, 2), torch.empty(2, 2)]
dist.all_gather(parts, tensor)
even = [torch.empty(1), torch.empty(1)]
dist.all_gather(even, torch.tensor([float(rank)]))
total = torch.ones(2, device="npu") * (rank + 1)
dist.all_reduce(total)
rows = _hccl.gather_rows(group, tensor)
try:
    _hccl.gather_rows("nobody", tensor)
except ValueError as error:
    unknown = str(error)
print(json.dumps([[p.tolist() for p in parts], [p.tolist() for p in even], total.tolist(), [r.tolist() for r in rows], unknown]))
"""
)
MOE = (
    RANK
    + """
x = torch.tensor(task["x"][rank]).view(-1, 3)
ids = torch.tensor(task["ids"][rank], dtype=torch.int32).view(-1, 2)
weights = torch.tensor(task["weights"][rank]).view(-1, 2)
mask = torch.tensor(task["mask"][rank]) if task["mask"] else None
rows, scale, origins, numbers, received, _, _ = dispatch.npu_moe_distribute_dispatch_v2(
    x, ids, group, 2, rank, task["experts"], x_active_mask=mask, quant_mode=task["quant"], expert_token_nums_type=task["kind"]
)
dispatched = rows.tolist()
values = rows.float() * scale[:, None] if task["quant"] else rows
per_expert = torch.diff(numbers, prepend=torch.zeros(1, dtype=torch.int64)) if task["kind"] == 0 else numbers
local = task["experts"] // 2
factors = torch.arange(rank * local, (rank + 1) * local).repeat_interleave(per_expert) + 1.0
shared = torch.full_like(x, 100.0) if task["shared"] else None
out = dispatch.npu_moe_distribute_combine_v2(
    values * factors[:, None], ids, origins, weights, group, rank, x_active_mask=mask, shared_expert_x=shared
)
print(json.dumps({"rows": dispatched, "numbers": numbers.tolist(), "received": received.tolist(), "out": out.tolist()}))
"""
)


def both(tmp_path: Path, script: str, task: object = None) -> list[Any]:
    environ = variables(tmp_path)
    ranks = [
        start(script, environ, str(rank), str(tmp_path / "store"), json.dumps(task)) for rank in range(2)
    ]
    results = [process.communicate(timeout=240) for process in ranks]
    assert all(process.returncode == 0 for process in ranks), results[0][1] + results[1][1]
    return [json.loads(out) for out, _ in results]


def test_groups_end_before_the_interpreter(tmp_path: Path) -> None:
    # What is registered first runs last: after what torch_npu registers while torch is imported.
    last = "import atexit\natexit.register(lambda: print(json.dumps([len(_hccl._groups), dist.is_initialized()])))"
    assert both(tmp_path, last + RANK) == [[0, False]] * 2


def test_hccl_gathers_tensors_of_different_sizes(tmp_path: Path) -> None:
    for parts, even, total, rows, unknown in both(tmp_path, COLLECTIVES):
        assert parts == rows == [[[1.0, 1.0]], [[2.0, 2.0], [2.0, 2.0]]]
        assert even == [[0.0], [1.0]]
        assert total == [3.0, 3.0]
        assert unknown.startswith("the communicator is 'nobody'; expected one of ['emulated_")


@pytest.mark.parametrize("quant", [0, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_rows_reach_their_experts_and_come_back_weighted(tmp_path: Path, quant: int, masked: bool) -> None:
    # Rank 1 has a token less. Expert e multiplies by e + 1.
    x: list[Any] = [[[1.0, 2, 3], [4, 5, 6], [7, 8, 9]], [[10.0, 11, 12], [13, 14, 15]]]
    ids: list[Any] = [[[0, 3], [2, 1], [3, 2]], [[1, 0], [3, 0]]]
    weights: list[Any] = [[[0.5, 0.25], [1, 2], [0.5, 0.5]], [[1, 1], [0.1, 0.2]]]
    mask = [[True, False, True], [True, True]] if masked else None
    task: dict[str, Any] = {
        "x": x, "ids": ids, "weights": weights, "mask": mask, "experts": 4, "quant": quant, "kind": int(not masked),
        "shared": masked,
    }  # fmt: skip
    found = both(tmp_path, MOE, task)
    for rank in range(2):
        sent = [
            (expert, origin, token)
            for expert in range(rank * 2, rank * 2 + 2)
            for origin in range(2)
            for token, chosen in enumerate(ids[origin])
            if expert in chosen and (mask is None or mask[origin][token])
        ]
        if not quant:
            assert found[rank]["rows"] == [x[origin][token] for _, origin, token in sent]
        else:
            assert all(max(map(abs, row)) == 127 for row in found[rank]["rows"])
        numbers = [sum(expert == mine for expert, _, _ in sent) for mine in (rank * 2, rank * 2 + 1)]
        assert found[rank]["numbers"] == ([numbers[0], sum(numbers)] if masked else numbers)
        by_origin = [
            sum((expert, origin) == pair[:2] for pair in sent)
            for expert in (rank * 2, rank * 2 + 1)
            for origin in range(2)
        ]
        assert found[rank]["received"] == [sum(by_origin[: i + 1]) for i in range(4)]
        for token, row in enumerate(found[rank]["out"]):
            if mask is not None and not mask[rank][token]:
                assert all(value != value for value in row)  # noqa: PLR0124 - NaN
                continue
            factor = sum((e + 1) * w for e, w in zip(ids[rank][token], weights[rank][token], strict=True))
            wanted = [value * factor + (100 if masked else 0) for value in x[rank][token]]
            assert row == pytest.approx(wanted, rel=1e-5 if not quant else 0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": [[[0, 4]], [[0, 1]]]}, "expert ids 0 … 4; expected 0 … 3"),
        ({"experts": 3}, "quant_mode is 0, 3 experts on 2 ranks; expected 0 or 2, and equal shares"),
        ({"quant": 4}, "quant_mode is 4"),
    ],
)
def test_ids_and_modes_that_there_are_not_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    task: dict[str, Any] = {
        "x": [[[1.0, 2, 3]]] * 2, "ids": [[[0, 1]]] * 2, "weights": [[[1, 1]]] * 2, "mask": None, "experts": 4,
        "quant": 0, "kind": 1, "shared": False, **changes,
    }  # fmt: skip
    environ = variables(tmp_path)
    ranks = [start(MOE, environ, str(rank), str(tmp_path / "store"), json.dumps(task)) for rank in range(2)]
    # Only rank 0 is asked for something wrong where ids are: the other waits for it, and is ended.
    error = ranks[0].communicate(timeout=240)[1]
    ranks[1].kill()
    ranks[1].communicate()
    assert message in error
