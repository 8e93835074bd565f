# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""One of the engines that `harness.bench.serving` times: a process that runs a round for each line that it is sent.

Engines that exist at the same time can take turns, so that what else the machine does meets all of them alike.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 64, 64, 64
# Room for all prompts, and not for more: several engines are there at once.
_CACHE_BYTES = 128 * 1024**2
# A start, or a round.
_SECONDS = 300
_ENDED, _SILENT = "has ended", f"has not answered for {_SECONDS} seconds"
# Two ranks on a machine with few cores and one NUMA node.
_ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


class ArmError(RuntimeError):
    """An engine did not start, or ended, or took too long; its last lines."""


def arm_environment() -> dict[str, str]:
    """Return the variables of an arm's process: this one's, with none of vLLM's but those that are set here."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("VLLM_")},
        **_ENVIRONMENT,
    }


class Engine:
    """A process of its own that answers each line with one of JSON; its `with` block starts and ends it."""

    def __init__(
        self, module: str, words: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        """Know what is started.

        Args:
            module: run with these words, and behind them the number of the file that it answers into.
            words: of its command line.
            environment: in place of what is set for every arm.
        """
        self._module, self._words = module, list(words)
        self._environment = {**arm_environment(), **(environment or {})}

    def __enter__(self) -> Self:
        """Start it; the first answer waits until it is there."""
        self._log = tempfile.TemporaryFile()
        self._answers, write = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter
                [sys.executable, "-m", self._module, *self._words, str(write)],
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                pass_fds=(write,),
            )
        finally:
            os.close(write)
        return self

    def ask(self, line: str = "") -> None:
        """Send it a line.

        Raises:
            ArmError: it has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()
        except OSError as error:
            raise self._error(_ENDED) from error

    def answer(self) -> Any:  # noqa: ANN401 - whatever JSON holds
        """Wait for its answer to a line.

        Raises:
            ArmError: see the class.
        """
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([self._answers], [], [], _SECONDS)[0]:
                raise self._error(_SILENT)
            part = os.read(self._answers, 2**16)
            if not part:
                raise self._error(_ENDED)
            line += part
        return json.loads(line)

    def end(self) -> None:
        """Let it end; the `with` block's end waits for that."""
        assert self._process.stdin is not None
        # A line may be on its way to one that has ended.
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def _error(self, what: str) -> ArmError:
        self._log.seek(0)
        return ArmError(f"an engine {what}:\n{self._log.read()[-4000:].decode(errors='replace')}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it by itself, so that what it records is written."""
        self.end()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._answers)
        self._log.close()


class Arm(Engine):
    """An engine that runs the same round for each line."""

    def __init__(self, model: Path, options: Mapping[str, Any]) -> None:
        """Know what is served.

        Args:
            model: folder of the checkpoint.
            options: vLLM's, beside those that all arms have.
        """
        super().__init__(__name__, [str(model), json.dumps(options)])

    def run_round(self) -> tuple[float, float]:
        """Return the seconds of a round, and the processor seconds of all its processes.

        Raises:
            ArmError: see the class.
        """
        self.ask()
        wall, cpu = self.answer()
        return float(wall), float(cpu)


def main(model: str, options: str, answers: str) -> None:
    """Generate for each line of standard input."""
    import psutil  # type: ignore[import-untyped] # it comes with vLLM
    from vllm import LLM, SamplingParams

    def cpu_seconds() -> float:
        this = psutil.Process()
        times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
        return float(sum(time_.user + time_.system for time_ in times))

    llm = LLM(
        model=model,
        dtype="float32",
        enforce_eager=True,
        max_model_len=2 * (PROMPT_TOKENS + NEW_TOKENS),
        enable_prefix_caching=False,
        seed=0,
        kv_cache_memory_bytes=_CACHE_BYTES,
        # Prompts are ids, and so are answers.
        skip_tokenizer_init=True,
        **json.loads(options),
    )
    draw = random.Random(0)  # noqa: S311 - a benchmark's data
    prompts = [
        {"prompt_token_ids": [draw.randrange(8, 256) for _ in range(PROMPT_TOKENS)]} for _ in range(PROMPTS)
    ]
    sampling = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False)
    for _ in sys.stdin:
        start, used = time.perf_counter(), cpu_seconds()
        llm.generate(prompts, sampling, use_tqdm=False)
        answer = json.dumps([time.perf_counter() - start, cpu_seconds() - used])
        os.write(int(answers), f"{answer}\n".encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
