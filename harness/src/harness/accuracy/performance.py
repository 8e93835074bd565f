# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The speed of an arm beside the baseline: the same requests to both servers in turn, by vLLM's own client.

Both servers run at the same time, so that rounds can take turns and whatever else the machine does meets both alike. The
baseline's is started once more for this, with the same recording as an arm's, or is the one of `--base-url`.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import TYPE_CHECKING, Any

from expert_maps.files import write_text
from harness.accuracy import proof, speed
from harness.accuracy.arm_run import ArmRun
from harness.accuracy.asking import MAX_STOPS
from harness.accuracy.config import BASELINE
from harness.accuracy.evidence import Evidence
from harness.accuracy.loads import QuestionLoad
from harness.accuracy.serving import serving
from harness.accuracy.stream_client import Client
from harness.record import history
from harness.record.provenance import describe
from harness.record.schema import RunRecord

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from harness.accuracy.questions import Prompt
    from harness.accuracy.server import Server
    from harness.accuracy.settings import RunSettings
    from harness.accuracy.streams import Stream

RECORDS = "performance.jsonl"
# No arm can have this name.
_FOLDER = ".streams"
# What vLLM's idle workers spin for after a round.
_PAUSE_SECONDS = 1.5
CLIENT = "vllm.benchmarks.serve"


class _Baseline(ArmRun):
    """The baseline's second server, with a folder of its own."""

    @property
    def work(self) -> Path:
        return self.settings.work / _FOLDER


class Rounds:
    """Times arms, one after the other, beside the one baseline."""

    def __init__(self, settings: RunSettings, prompts: Sequence[Prompt], stack: contextlib.ExitStack) -> None:
        """Write the task's prompts and start the client.

        Args:
            settings: of the run, with `performance`.
            prompts: of the task.
            stack: ends what is started.
        """
        assert settings.performance is not None
        self._settings, self._plan, self._stack = settings, settings.performance, stack
        self._prompts, self._stop = settings.work / _FOLDER / "prompts.jsonl", prompts[0].stop[:MAX_STOPS]
        self._is_chat = prompts[0].is_chat
        settings.make_folder(self._prompts.parent)
        most = max(stream.requests for stream in self._plan.streams.values())
        texts = _texts(prompts[:most], settings)
        write_text(self._prompts, "".join(json.dumps({"prompt": text}) + "\n" for text in texts))
        self._traces: dict[str, Path] = {}
        for name, stream in self._plan.streams.items():
            if stream.trace is not None:
                self._traces[name] = settings.work / _FOLDER / f"trace-{name}.jsonl"
                stream.write_trace(self._traces[name])
        self._client = Client(settings.work / _FOLDER / "client.log")
        stack.callback(self._client.close)
        self._baseline: Server | None = None

    def measure(self, run: ArmRun, server: Server) -> None:
        """Put all streams to an arm's server and to the baseline's, and add the record to the model's file of them.

        Raises:
            ServerError: the client or a server failed.
            ProofError: the baseline's server is none.
        """
        other = self._baseline = self._baseline or self._start()
        servers = {BASELINE: other, run.name: server}
        found: dict[str, Any] = {}
        for name, stream in self._plan.streams.items():
            rows: dict[str, list[dict[str, Any]]] = {BASELINE: [], run.name: []}
            # A server is slow at first: the first round warms both up, and does not count.
            for one in servers.values():
                self._once(name, one, self._plan.rounds)
            for round_ in range(self._plan.rounds):
                for side, one in list(servers.items())[:: -1 if round_ % 2 else 1]:  # who is first changes
                    time.sleep(_PAUSE_SECONDS)
                    rows[side].append(self._once(name, one, round_))
            found[name] = self._judged(stream, rows[run.name], rows[BASELINE])
            self._settings.say(f"{run.name}: {name}: {shown(found[name])}")
        answer = speed.overall({name: one["answer"] for name, one in found.items()})
        self._keep(run, found, answer)

    def _once(self, name: str, server: Server, round_: int) -> dict[str, Any]:
        config, stream = self._settings.config, self._plan.streams[name]
        seconds = config.request_seconds + (stream.requests / stream.rate if stream.rate else 0)
        words = [
            *("--backend", "openai", "--base-url", server.url, "--endpoint", "/v1/completions"),
            *("--model", server.model, "--tokenizer", self._settings.model, "--disable-tqdm"),
            *("--percentile-metrics", "ttft,tpot,e2el", "--metric-percentiles", "50,90,99"),
            *("--ready-check-timeout-sec", "0", "--save-detailed"),
            *stream.words(
                self._traces.get(name, self._prompts),
                seed=round_,
                max_tokens=config.task.max_tokens,
                stop=self._stop,
                is_chat=self._is_chat,
            ),
        ]
        return self._client.run(words, seconds)

    def _judged(
        self, stream: Stream, arm: list[dict[str, Any]], baseline: list[dict[str, Any]]
    ) -> dict[str, Any]:
        sides = {"arm": arm, "baseline": baseline}
        measured = [name for name in speed.METRICS if name in arm[0] and name in baseline[0]]
        values = {
            side: {name: [float(row[name]) for row in rows] for name in measured}
            for side, rows in sides.items()
        }
        ratios = {
            name: speed.time_ratio(name, values["arm"][name], values["baseline"][name]) for name in measured
        }
        decides = speed.CLOSED if stream.concurrency else speed.OPEN
        failed = sum(int(row["failed"]) for row in (*arm, *baseline))
        own, other = (float(sum(row["total_output_tokens"] for row in rows)) for rows in sides.values())
        answer, why = speed.answer_of(ratios.get(decides), len(arm), self._plan.margin, failed, (own, other))
        error = next((row["error"] for row in (*arm, *baseline) if row["error"]), None)
        return {
            "answer": answer,
            "why": why + (f": {error}" if failed and error else ""),
            "decides": decides,
            "failed": failed,
            **values,
            "ratios": {name: None if one is None else vars(one) for name, one in ratios.items()},
        }

    def _start(self) -> Server:
        run = _Baseline(self._settings, BASELINE)
        self._settings.make_folder(run.work)
        if run.arm.record_load and BASELINE not in self._settings.base_urls:
            # Recording takes time, in an arm too.
            run.questions_load = QuestionLoad(run.work, "", "")
            run.questions_load.begin(resumed=False)
        server = self._stack.enter_context(serving(run))
        proof.require_arm(run.arm, proof.read_state(server, needed=False))
        return server

    def _keep(self, run: ArmRun, found: Mapping[str, Any], answer: str) -> None:
        plan, evidence = self._plan, run.evidence or Evidence(None, None)
        record = RunRecord(
            kind="performance",
            name=run.name,
            settings={
                "model": self._settings.config.name,
                "started": run.started,
                "dtype": self._settings.dtype,
                "arguments": run.arguments,
                **json.loads(plan.model_dump_json()),
            },
            provenance=describe(checkpoint=run.checkpoint, environment=run.environment),
            proof=evidence.as_record(),
            quality={"answer": answer},
            performance=dict(found),
        )
        history.append(self._settings.folder / RECORDS, record)


def shown(stream: Mapping[str, Any]) -> str:
    """Return what was found of a stream, in a few words: how many times the baseline's time, with the interval."""
    ratio = stream["ratios"].get(stream["decides"])
    text = (
        "not measured"
        if ratio is None
        else f"{ratio['value']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"
    )
    why = f" ({stream['why']})" if stream["why"] else ""
    return f"{speed.METRICS[stream['decides']]}: {text} times the baseline's time: {stream['answer']}{why}"


def of_arm(folder: Path, name: str, started: str) -> RunRecord | None:
    """Return the record of an arm's speed that belongs to a record of its answers; None where there is none.

    Args:
        folder: of the model.
        name: of the arm.
        started: when its run began.

    Raises:
        FormatError: the file is malformed.
    """
    if not (folder / RECORDS).exists():
        return None
    found = [
        one
        for one in history.read(folder / RECORDS)
        if (one.kind, one.name, one.settings.get("started")) == ("performance", name, started)
    ]
    return found[-1] if found else None


def medians(stream: Mapping[str, Any], side: str) -> dict[str, float]:
    """Return the median over rounds of each metric that was measured; `side` is `arm` or `baseline`."""
    return {name: statistics.median(values) for name, values in stream[side].items()}


def _texts(prompts: Sequence[Prompt], settings: RunSettings) -> list[str]:
    """Return prompts as the client sends them; a chat's with its template, which a server applies otherwise."""
    if not prompts[0].is_chat:
        return [str(prompt.content) for prompt in prompts]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    options = settings.config.task.chat_template_kwargs
    return [
        tokenizer.apply_chat_template(prompt.content, tokenize=False, add_generation_prompt=True, **options)
        for prompt in prompts
    ]
