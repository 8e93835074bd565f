# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Run vLLM offline in a process of its own: a request as JSON in, what was generated as JSON out."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main(request_path: str, response_path: str) -> None:
    """Generate; every round runs all prompts, and reports are taken before the first and after each."""
    from forked_server import fork_processes
    from vllm import LLM, SamplingParams

    # Importing takes longer than all the rest. Servers of one and two ranks are tested with processes started anew.
    fork_processes()
    request: dict[str, Any] = json.loads(Path(request_path).read_text(encoding="utf-8"))
    llm = LLM(**request["engine"])
    prompts = [{"prompt_token_ids": ids} for ids in request["prompts"]]
    options = SamplingParams(
        temperature=0, max_tokens=request["max_tokens"], ignore_eos=True, logprobs=0, prompt_logprobs=0
    )
    observes = request["observes"]
    if observes:
        llm.collective_rpc("observe_routes")
    reports = [_report(llm)]
    rounds = []
    for round_ in range(request["rounds"]):
        weights = request["weights"].get(str(round_))
        if weights is not None:
            llm.collective_rpc("reload_weights", kwargs={"weights_path": weights})
        start = time.perf_counter()
        results = llm.generate(prompts, options, use_tqdm=False)
        seconds = time.perf_counter() - start
        rounds.append({"outputs": [_output(result) for result in results], "seconds": seconds})
        reports.append(_report(llm))
    routes = llm.collective_rpc("observed_routes") if observes else None
    response = {"rounds": rounds, "reports": reports, "routes": routes}
    Path(response_path).write_text(json.dumps(response), encoding="utf-8")
    if not request["ends_in_order"]:
        # The caller ends the processes that are left.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _report(llm: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - vLLM's
    reports: list[dict[str, Any]] = llm.collective_rpc("expert_maps_report", args=(True,))
    return reports


def _output(result: Any) -> dict[str, Any]:  # noqa: ANN401 - vLLM's
    output = result.outputs[0]
    ids = list(output.token_ids)
    prompt = zip(result.prompt_token_ids[1:], result.prompt_logprobs[1:], strict=True)
    return {
        "ids": ids,
        "logprobs": [
            *(choice[token].logprob for token, choice in prompt),
            *(choice[token].logprob for token, choice in zip(ids, output.logprobs, strict=True)),
        ],
    }
