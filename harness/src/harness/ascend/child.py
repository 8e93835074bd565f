# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""vLLM in a process of its own: a request as JSON in, what was served as JSON out.

python -m harness.ascend.child REQUEST.json RESPONSE.json
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from expert_maps import ExpertMapsError

_STOP_SECONDS = 30.0
_KILL_AFTER_SECONDS, _LONG = 1.0, 400


def main(request_path: str, response_path: str) -> None:
    """Start an engine, generate, inspect, damage and inspect again; every step is written as soon as it is known."""
    request: dict[str, Any] = json.loads(Path(request_path).read_text(encoding="utf-8"))
    response: dict[str, Any] = {"phase": "start", "session": os.getsid(0)}
    response |= {"rounds": [], "inspections": [], "mutants": {}}

    def write() -> None:
        Path(response_path).write_text(json.dumps(response), encoding="utf-8")

    write()
    from vllm import LLM

    begin = time.perf_counter()
    try:
        llm = LLM(**request["engine"])
    except ExpertMapsError as error:
        response["refused"] = f"{type(error).__name__}: {error}"
        write()
        return
    response["start_seconds"] = time.perf_counter() - begin
    response["phase"] = "serve"
    response["inspections"].append(_inspect(llm))
    write()
    if request["counts"]:
        llm.collective_rpc("count_routes")
    for _ in range(request["rounds"]):
        response["rounds"].append(_generate(llm, request))
        response["inspections"].append(_inspect(llm))
        write()
    if request["drafts"]:
        response["accepted"] = _accepted(llm)
    for mutant in request["mutants"]:
        response["mutants"][mutant] = _damaged(llm, request, mutant)
        write()
    if request["kills"]:
        response["ended_seconds"] = _kill_one(llm, request)
        response["phase"] = "killed" if response["ended_seconds"] is not None else "end"
        write()
        os._exit(1)
    if request["counts"]:
        response["routes"] = _count_and_stop(llm)
    response["phase"] = "end"
    write()
    # A clean stop takes vLLM ten seconds; the guard ends what is left, and what stays all the same is looked for.
    sys.stdout.flush()
    os._exit(0)


def _generate(llm: Any, request: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401 - vLLM's
    from vllm import SamplingParams

    prompts = request["prompts"]
    options = SamplingParams(temperature=0, max_tokens=request["max_tokens"], ignore_eos=True, logprobs=0)
    begin = time.perf_counter()
    results = llm.generate(prompts, options, use_tqdm=False)
    seconds = time.perf_counter() - begin
    outputs = [result.outputs[0] for result in results]
    return {
        "tokens": [list(output.token_ids) for output in outputs],
        "logprobs": [
            [choice[token].logprob for token, choice in zip(output.token_ids, output.logprobs, strict=True)]
            for output in outputs
        ],
        "seconds": seconds,
    }


def _damaged(llm: Any, request: dict[str, Any], mutant: str) -> dict[str, Any]:  # noqa: ANN401 - vLLM's
    """Return what is seen of a damage, and what is served with it; it is mended again."""
    changed = llm.collective_rpc("damage", args=(mutant,))
    found = {"changed": any(changed), "inspection": _inspect(llm), **_generate(llm, request)}
    llm.collective_rpc("repair")
    return found


def _accepted(llm: Any) -> int:  # noqa: ANN401 - vLLM's
    """Return how many tokens a draft model proposed and the model agreed to."""
    name = "vllm:spec_decode_num_accepted_tokens"
    return sum(int(metric.value) for metric in llm.get_metrics() if metric.name == name)


def _kill_one(llm: Any, request: dict[str, Any]) -> float | None:  # noqa: ANN401 - vLLM's
    """Kill the last rank's worker amid a round; the seconds until that is seen, None where it never is."""
    places: list[dict[str, int]] = llm.collective_rpc("place")
    last = max(places, key=lambda place: place["ep_rank"])
    killed: list[float] = []

    def kill() -> None:
        os.kill(last["process"], signal.SIGKILL)
        killed.append(time.monotonic())

    timer = threading.Timer(_KILL_AFTER_SECONDS, kill)
    timer.start()
    try:
        # So long that it is not over by then.
        _generate(llm, {**request, "max_tokens": _LONG})
    except Exception:  # noqa: BLE001 - whatever vLLM makes of it
        return time.monotonic() - killed[0] if killed else None
    return None


def _count_and_stop(llm: Any) -> list[list[int]]:  # noqa: ANN401 - vLLM's
    """Return what was counted on the first rank, and end it by SIGTERM, as an operator would: its record must be whole."""
    answers: list[dict[str, Any]] = llm.collective_rpc("counted_routes")
    first = next(answer for answer in answers if answer["ep_rank"] == 0)
    os.kill(first["process"], signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while Path(f"/proc/{first['process']}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    counts: list[list[int]] = first["counts"]
    return counts


def _inspect(llm: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - vLLM's
    answers: list[dict[str, Any]] = llm.collective_rpc("inspect_layers")
    return answers


if __name__ == "__main__":
    main(*sys.argv[1:])
