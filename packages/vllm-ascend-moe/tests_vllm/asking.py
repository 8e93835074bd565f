# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What the tests of servers ask, and how answers are held against those of one rank."""

from __future__ import annotations

import contextlib
import json
import re
import urllib.error
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from engine import IN_PROCESS, fetch, random_prompts, run
from prometheus_client.parser import text_string_to_metric_families

from vllm_ascend_moe.core.metric_table import PREFIX

if TYPE_CHECKING:
    from engine import Run, Server

PROMPTS = random_prompts(64, 256, seed=2)
MAX_TOKENS = 12
TOKENS = sum(len(prompt) for prompt in PROMPTS) + len(PROMPTS) * (MAX_TOKENS - 1)


def run_alone(model: Path, folder: Path) -> Run:
    """Return the answers of one rank."""
    return run(model, PROMPTS, folder, max_tokens=MAX_TOKENS, environ=IN_PROCESS)


def config(**options: Any) -> tuple[str, str]:  # noqa: ANN401 - JSON
    """Return the arguments that give the plugin its options."""
    return "--additional-config", json.dumps({"expert_maps": options})


def report(running: Server) -> list[dict[str, Any]]:
    """Return every rank's report."""
    answer = running.post("/collective_rpc", {"method": "expert_maps_report"})
    found: list[dict[str, Any]] = answer["results"]
    return found


def scrape(running: Server) -> dict[str, dict[str, float]]:
    """Return the plugin's metrics: name → the value of its own label, empty for none → value."""
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(fetch(running.port, "/metrics").decode()):
        for sample in family.samples:
            if sample.name.startswith(PREFIX):
                labels = dict(sample.labels)
                assert labels.pop("model_name") == running.model
                assert labels.pop("stage") == "0"
                (own,) = labels.values() or [""]
                of_name = found.setdefault(sample.name, {})
                assert own not in of_name, f"{sample.name} is there twice"
                of_name[own] = sample.value
    return found


def ask_record(running: Server, action: str, body: object = None, **headers: str) -> tuple[int, Any]:
    """Ask for something about the record, and return status and answer."""
    content = b"" if body is None else json.dumps(body).encode()
    try:
        answer = fetch(running.port, f"/{action}_expert_distribution_record", content, headers)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]["message"]
    return 200, json.loads(answer)


def ask_record_on_ranks(running: Server, action: str) -> None:
    """Ask for something about the record by vLLM's own way to call workers."""
    running.post("/collective_rpc", {"method": "expert_maps_record", "args": [action]})


def worker_process(log: str, ep_rank: int) -> int:
    """Return the process of an expert-parallel rank, as vLLM's lines name it."""
    found = re.search(rf"\(Worker\w*_EP{ep_rank} pid=(\d+)\)", log)
    assert found is not None, f"no line of rank {ep_rank}"
    return int(found[1])


def processes(session: int) -> list[int]:
    """Return the processes of a server that run: it leads a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # After the name in brackets; a zombie does not run.
            status = (folder / "stat").read_text(encoding="utf-8", errors="replace")
            state, _, _, of = status.rpartition(")")[2].split()[:4]
            if int(of) == session and state not in {"Z", "X"}:
                found.append(int(folder.name))
    return found


def assert_answers_as(alone: Run, running: Server) -> None:
    """Require the texts of one rank, with log-probabilities near to its."""
    choices = running.complete(PROMPTS, MAX_TOKENS)
    assert [choice["token_ids"] for choice in choices] == alone.tokens[0]
    for choice, output in zip(choices, alone.rounds[0], strict=True):
        expected = output["logprobs"][-MAX_TOKENS:]
        assert np.abs(np.array(choice["logprobs"]["token_logprobs"]) - expected).max() <= 1e-4
