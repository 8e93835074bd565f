# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A worker extension by which a rank is killed in the middle of something: what, is in DIES_WHILE."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from vllm.distributed.eplb import eplb_state
from vllm.model_executor.model_loader import base_loader

from vllm_ascend_moe.report import WorkerReport

# What is called, how often before the last time, and on which rank that is.
_PLACES: dict[str, tuple[Any, str, int, int]] = {
    "loading": (base_loader.BaseModelLoader, "load_model", 0, 1),
    "moving experts": (eplb_state, "rearrange_expert_weights_inplace", 1, 1),
    # In the file, between its being written and its taking the record's place.
    "writing the record": (os, "fsync", 2, 0),
}


class Dying(WorkerReport):
    """Mixed into vLLM's worker, which imports this before it has a model."""


def _die_in(owner: Any, name: str, calls_before: int, rank: int) -> None:  # noqa: ANN401 - a class or a module
    original, left = getattr(owner, name), [calls_before]

    def last(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if not left[0] and _is_rank(rank):
            # Read by the test, which looks how long the rest takes.
            Path(os.environ["DIED_AT"]).write_text(str(time.monotonic()), encoding="ascii")
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return original(*args, **kwargs)

    setattr(owner, name, last)


def _is_rank(rank: int) -> bool:
    from vllm.distributed.parallel_state import get_ep_group

    return int(get_ep_group().rank_in_group) == rank


_die_in(*_PLACES[os.environ["DIES_WHILE"]])
