# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Expert-parallel ranks that split tokens by data parallelism, a core each, which say what their experts took.

Every rank is a process with an engine of its own and prompts of its own, as vLLM's offline data parallelism has them. In
each layer all ranks' tokens are gathered, each rank computes those of its experts, and all wait for the hottest one.
"""

from __future__ import annotations

import json
import os
import random
import socket
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.bench.serving_arm import ArmError, Engine
from harness.bench.skewed import VOCABULARY

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

PROMPT_TOKENS = 1024
# Ids below may be special.
_FIRST_ID = 8
_CACHE_BYTES = 64 * 1024**2


@dataclass(frozen=True)
class Round:
    """What a round took.

    Attributes:
        seconds: until the last rank was through.
        expert_seconds: of them, those that the hottest rank computed experts, summed over steps and layers.
        rank_tokens: routed tokens that each rank computed.
        hottest_tokens: those of the hottest rank, summed over steps and layers.
        digests: of the placement that each rank serves.
    """

    seconds: float
    expert_seconds: float
    rank_tokens: list[int]
    hottest_tokens: int
    digests: list[str]

    @property
    def balancedness(self) -> float:
        """Tokens of the mean rank / those of the hottest, both summed over steps and layers."""
        return sum(self.rank_tokens) / len(self.rank_tokens) / self.hottest_tokens


class Ranks:
    """The ranks of one engine; its `with` block starts and ends them."""

    def __init__(self, model: Path, options: Mapping[str, Any], ranks: int) -> None:
        """Know what is served.

        Args:
            model: folder of the checkpoint.
            options: the plugin's.
            ranks: R, each of which gets a core.

        Raises:
            ArmError: there are fewer cores.
        """
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < ranks:
            msg = f"{len(cores)} cores are free to be used; expected {ranks}, one for each rank"
            raise ArmError(msg)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        together = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
        }
        words = [str(model), json.dumps(dict(options)), str(ranks)]
        self._engines = [
            Engine(__name__, [*words, str(core)], {**together, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank, core in enumerate(cores[:ranks])
        ]

    def __enter__(self) -> Self:
        """Start them; the first round waits until they are there."""
        with ExitStack() as stack:
            for engine in self._engines:
                stack.enter_context(engine)
            self._stack = stack.pop_all()
        return self

    def run_round(self, seed: int, prompts: int) -> Round:
        """Serve so many prompts on each rank, one a step, and read one token after each.

        Args:
            seed: what their ids are drawn by.
            prompts: of each rank.

        Raises:
            ArmError: a rank did not start, or ended, or took too long.
        """
        for engine in self._engines:
            engine.ask(json.dumps([seed, prompts]))
        return as_round([engine.answer() for engine in self._engines])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End them together: each may wait for the others."""
        for engine in self._engines:
            engine.end()
        self._stack.close()


def as_round(answers: list[dict[str, Any]]) -> Round:
    """Put the answers of all ranks together.

    Args:
        answers: a rank's each: `seconds`, `digest`, and `calls`, seconds and tokens of its experts in the order of steps
            and layers.

    Raises:
        ArmError: ranks computed different numbers of layers.
    """
    calls = [answer["calls"] for answer in answers]
    if len({len(of_rank) for of_rank in calls}) != 1 or not calls[0]:
        msg = f"experts were called {[len(of_rank) for of_rank in calls]} times on the ranks; expected equal counts above 0"
        raise ArmError(msg)
    together = list(zip(*calls, strict=True))
    return Round(
        max(answer["seconds"] for answer in answers),
        sum(max(seconds for seconds, _ in layer) for layer in together),
        [sum(tokens for _, tokens in of_rank) for of_rank in calls],
        sum(max(tokens for _, tokens in layer) for layer in together),
        [answer["digest"] for answer in answers],
    )


def _watch_experts(calls: list[tuple[float, int]]) -> None:
    """Add seconds and local tokens of each call of this process's experts."""
    from vllm_ascend_moe.backends.cpu_experts import LocalRows

    original = LocalRows.apply

    def apply(self: LocalRows, **given: Any) -> None:  # noqa: ANN401 - passed on
        began = time.perf_counter()
        original(self, **given)
        taken = time.perf_counter() - began
        here = given["expert_map"][given["topk_ids"].long()] >= 0
        calls.append((taken, int(here.sum())))

    LocalRows.apply = apply  # type: ignore[assignment, method-assign]


def main(model: str, options: str, ranks: str, core: str, answers: str) -> None:
    """Serve as one of the ranks."""
    os.sched_setaffinity(0, {int(core)})
    from vllm import LLM, SamplingParams

    calls: list[tuple[float, int]] = []
    _watch_experts(calls)
    llm = LLM(
        model=model,
        dtype="float32",
        enforce_eager=True,
        max_model_len=PROMPT_TOKENS + 1,
        # A prompt a step.
        max_num_batched_tokens=PROMPT_TOKENS,
        enable_prefix_caching=False,
        seed=0,
        kv_cache_memory_bytes=_CACHE_BYTES,
        skip_tokenizer_init=True,
        enable_expert_parallel=True,
        data_parallel_size=int(ranks),
        distributed_executor_backend="external_launcher",
        additional_config={"expert_maps": json.loads(options)},
    )
    sampling = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False)
    for line in sys.stdin:
        seed, count = json.loads(line)
        draw = random.Random(f"{seed} {os.environ['RANK']}")  # noqa: S311 - a benchmark's data
        prompts = [
            {"prompt_token_ids": draw.choices(range(_FIRST_ID, VOCABULARY), k=PROMPT_TOKENS)}
            for _ in range(count)
        ]
        calls.clear()
        began = time.perf_counter()
        llm.generate(prompts, sampling, use_tqdm=False)
        seconds = time.perf_counter() - began
        digest = llm.collective_rpc("expert_maps_report")[0].get("digest", "")
        answer = {"seconds": seconds, "calls": calls, "digest": digest}
        os.write(int(answers), f"{json.dumps(answer)}\n".encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
