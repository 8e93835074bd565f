# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""One run: right answers from one rank without the plugin, then chaos on several with it, then the verdict."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from expert_maps import ExpertMapsError, read_load
from harness.accuracy.server import serve
from harness.chaos.answers import prompts, right_answers
from harness.chaos.clients import ask_for
from harness.chaos.operating import Operator
from harness.chaos.outcome import Outcome
from harness.chaos.watching import Watch, growth, still_there

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from harness.accuracy.server import Server
    from harness.chaos.answers import Answer

# Two ranks on a machine with few cores and one NUMA node.
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}
# What a server is given, with or without the plugin.
ARGUMENTS = (
    *("--dtype", "float32"),
    "--enforce-eager",
    *("--max-model-len", "128"),
    *("--max-num-seqs", "32"),
    # Few sizes of a step: vLLM keeps what it has prepared for each, and takes memory until it has seen all of them.
    *("--max-num-batched-tokens", "64"),
    # Each token is computed, and counted, once.
    "--no-enable-prefix-caching",
    # Soon each has been used, and takes memory.
    *("--num-gpu-blocks-override", "64"),
    *("--generation-config", "vllm"),
)
STEP_INTERVAL, REDUNDANT = 8, 4
EXTENSION = "harness.chaos.faults.ChaosWorker"
PROMPTS, _FEWEST = 96, 16
# A limit for what hangs, not for a busy machine.
_START_SECONDS = 900.0
# Warm-up that is left out of slopes: this share of the time, and this many seconds at least.
_WARM_UP_SHARE, _WARM_UP_SECONDS = 1 / 3, 12.0


@dataclass(frozen=True)
class Options:
    """What is asked for.

    Attributes:
        model: folder of a small Mixture-of-Experts checkpoint.
        minutes: of asking.
        seed: of all that is drawn.
        clients: at a time.
        ranks: tensor-parallel ones, over which the experts are spread.
        folder: for logs, the record of load, and what else is written.
    """

    model: Path
    minutes: float
    seed: int
    clients: int
    ranks: int
    folder: Path


def run(options: Options, say: Callable[[str], None]) -> Outcome:
    """Serve, ask, and judge.

    Args:
        options: see there.
        say: is told how far it is.

    Raises:
        ServerError: the server without the plugin, or the start of the one with it, failed.
        ExpertMapsError: the model's folder has no configuration, or too few prompts have clear answers.
    """
    found = Outcome()
    config = _config_of(options.model)
    say(f"seed {options.seed}: asking one rank without the plugin, log in {options.folder / 'one_rank.log'}")
    answers = _baseline(options, int(config["vocab_size"]))
    found.answers = len(answers)
    load = (options.folder / "load.npz").absolute()
    load.unlink(missing_ok=True)
    say(
        f"{len(answers)} of {PROMPTS} prompts are asked; chaos on {options.ranks} ranks, log in {options.folder / 'chaos.log'}"
    )
    with _chaos_server(options, load) as server:
        assert server.process is not None
        operator = Operator(server, options.seed, found)
        begin = time.monotonic()
        with Watch(server.process.pid) as watch, operator:
            ask_for(
                server,
                answers,
                is_over=lambda: operator.is_over(time.monotonic() - begin, 60 * options.minutes),
                clients=options.clients,
                seed=options.seed,
                tally=found.tally,
            )
        found.seconds = time.monotonic() - begin
        try:
            operator.look()
        except (ExpertMapsError, LookupError, TypeError) as error:
            found.problems.append(f"the last look at the slots failed: {error}")
        watch.write(options.folder / "samples.json")
        warm_up = max(_WARM_UP_SECONDS, _WARM_UP_SHARE * found.seconds)
        found.growths = [one for each in watch.samples.values() if (one := growth(each, warm_up)) is not None]
    # The guard, the server, and a worker for each rank.
    judge(found, load, int(config["num_experts_per_tok"]), least=options.ranks + 2)
    if left := still_there(watch.samples):
        found.problems.append(f"processes {left} are left behind; expected none")
    return found


def _config_of(model: Path) -> dict[str, Any]:
    try:
        found = json.loads((model / "config.json").read_text(encoding="utf-8"))
        wanted = {name: found[name] for name in ("vocab_size", "num_experts_per_tok")}
    except (OSError, ValueError, LookupError, TypeError) as error:
        msg = f"model is {model}: {error}; expected the folder of a Mixture-of-Experts checkpoint"
        raise ExpertMapsError(msg) from error
    return wanted


def _baseline(options: Options, vocabulary: int) -> list[Answer]:
    # One list for all kinds of plugins: an empty one leaves ours out.
    environment = {**ENVIRONMENT, "VLLM_PLUGINS": ""}
    log = options.folder / "one_rank.log"
    with serve(
        str(options.model), ARGUMENTS, log, environment=environment, startup_seconds=_START_SECONDS
    ) as server:
        answers = right_answers(server, prompts(PROMPTS, vocabulary, options.seed))
    if len(answers) < _FEWEST:
        msg = f"{len(answers)} of {PROMPTS} prompts have clear answers; expected {_FEWEST} at least: take another model"
        raise ExpertMapsError(msg)
    return answers


def serving_arguments(options: Options, load: Path) -> list[str]:
    """Return the arguments of the server with the plugin, whose experts move every few steps."""
    plugin = {
        "num_redundant_experts": REDUNDANT,
        "dynamic": True,
        "step_interval": STEP_INTERVAL,
        "window_size": STEP_INTERVAL,
        "min_gain": 0,
        "record_path": str(load),
        "record_interval": 50,
    }
    return [
        *ARGUMENTS,
        *("--tensor-parallel-size", str(options.ranks), "--worker-extension-cls", EXTENSION),
        *("--additional-config", json.dumps({"expert_maps": plugin})),
    ]


@contextlib.contextmanager
def _chaos_server(options: Options, load: Path) -> Iterator[Server]:
    environment = {**ENVIRONMENT, "VLLM_SERVER_DEV_MODE": "1"}
    arguments, log = serving_arguments(options, load), options.folder / "chaos.log"
    with serve(
        str(options.model), arguments, log, environment=environment, startup_seconds=_START_SECONDS
    ) as server:
        yield server


def judge(found: Outcome, load: Path, top_k: int, *, least: int) -> None:
    """Add what is not as it must be to the problems.

    Args:
        found: what was seen.
        load: the record of it.
        top_k: experts of a token.
        least: processes whose memory and descriptors must have been sampled often enough.
    """
    tally, faults = found.tally, found.faults
    if tally.wrong or tally.lost or tally.right != tally.sent or not tally.sent:
        said = "".join(f"\n  {text}" for text in tally.said)
        found.problems.append(
            f"{tally.sent} requests were sent: {tally.right} right, {tally.wrong} wrong, {tally.lost} lost{said}"
        )
    if faults["changed by a refusal"]:
        found.problems.append(
            f"{faults['changed by a refusal']} plans that failed moved something; expected none"
        )
    if missing := [name for name in ("moved", "stirred", "raises", "rubbish", "late") if not faults[name]]:
        found.problems.append(f"no plan was there with {', '.join(missing)}; run it longer")
    for one in found.growths:
        found.problems += one.problems()
    if len(found.growths) < least:
        found.problems.append(
            f"memory and descriptors of {len(found.growths)} processes were sampled often enough; expected those of {least}: run "
            "it longer"
        )
    try:
        counted = read_load(load).total.sum(axis=1).astype(int).tolist()
    except ExpertMapsError as error:
        found.problems.append(f"the record of load cannot be read: {error}")
        return
    if not tally.lost and set(counted) != {tally.tokens * top_k}:
        found.problems.append(
            f"the record has {counted} choices of experts by layer; expected {tally.tokens * top_k} in each, "
            f"{top_k} for each token that was computed"
        )


def acting_environment() -> dict[str, str]:
    """Return the variables of the server's processes, for a record."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    return {**kept, **ENVIRONMENT}


__all__ = ["Options", "Outcome", "acting_environment", "judge", "run", "serving_arguments"]
