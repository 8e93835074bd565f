# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The first plan in a new process, which is what a server waits for when it starts.

python -m harness.bench.planner.first POLICY [WHEEL_OR_FOLDER_OF_VLLM_ASCEND]
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_START_SECONDS = 300


def plan_once(policy: str, source: str | None) -> dict[str, float]:
    """Import what a policy needs and plan 58×256 on 288 slots of 32 ranks, in seconds."""
    start = time.perf_counter()
    from pathlib import Path

    from harness.bench.planner.peers import own_peers, vllm
    from harness.bench.planner.problems import Problem, lognormal

    peers = [*own_peers(), vllm()]
    if source is not None:
        from harness.bench.planner.ascend import load_policies

        peers += load_policies(Path(source))[0]
    peer = next(peer for peer in peers if peer.name == policy)
    call = peer.prepare(Problem("first", lognormal(58, 256), 288, 32))
    ready = time.perf_counter()
    call()
    return {"import_s": ready - start, "plan_s": time.perf_counter() - ready}


def first_calls(policies: Sequence[str], source: Path | None, repeats: int) -> dict[str, dict[str, float]]:
    """Return, for each policy, the median seconds of its imports and of its first plan, in turn.

    Args:
        policies: names of peers.
        source: vllm-ascend's wheel or folder, where one of the policies is its.
        repeats: new processes for each policy.

    Raises:
        subprocess.CalledProcessError: one failed; its stderr is shown.
    """
    from harness.bench.planner.ascend import NAMES

    seconds: dict[str, list[dict[str, float]]] = {policy: [] for policy in policies}
    for _ in range(repeats):
        for policy in policies:
            command = [sys.executable, "-m", "harness.bench.planner.first", policy]
            command += [str(source)] if policy in NAMES else []
            with tempfile.TemporaryDirectory() as empty:
                done = subprocess.run(  # noqa: S603 - this interpreter
                    command,
                    env={**os.environ, "NUMBA_CACHE_DIR": empty},
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                    timeout=_START_SECONDS,
                )
            # vLLM may print before.
            seconds[policy].append(json.loads(done.stdout.splitlines()[-1]))
    return {
        policy: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for policy, runs in seconds.items()
    }


if __name__ == "__main__":
    print(json.dumps(plan_once(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)))  # noqa: PLR2004 - name and source
