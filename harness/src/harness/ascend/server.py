# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The OpenAI server beside a staged release, with data parallelism: asked over loopback, then stopped.

Two engines share the case's ranks, each with its part as tensor-parallel ones.
"""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.accuracy.server import ServerError
from harness.accuracy.server import serve as serve_http
from harness.ascend import engine, metering
from harness.ascend.ending import LIMIT_SECONDS, left_behind
from harness.ascend.served import Served, own_error, read_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.accuracy.server import Server
    from harness.ascend.case import Case

_DATA_PARALLEL = 2
_AT_ONCE = 8
_STOP_SECONDS = 20.0
_ANSWER_SECONDS = 60.0


def serve(
    case: Case, folder: Path, variables: Mapping[str, str], prompts: Sequence[str], num_rounds: int = 1
) -> Served:
    """Serve a case by the OpenAI server with data parallel 2, and inspect what its engines answer.

    Args:
        case: its model and additional config.
        folder: for the log.
        variables: environment variables.
        prompts: to complete.
        num_rounds: how often.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    log, names = folder / "log.txt", folder / "names.txt"
    names.unlink(missing_ok=True)
    begin, rounds, inspections, failed, session = time.monotonic(), [], [], None, None
    metrics: dict[str, float] | None = None
    try:
        with serve_http(
            str(case.model.absolute()),
            _arguments(case),
            log,
            environment={**variables, "VLLM_SERVER_DEV_MODE": "1"},
            startup_seconds=LIMIT_SECONDS,
            stop_seconds=_STOP_SECONDS,
        ) as server:
            assert server.process is not None
            session = _session_below(server.process.pid)
            inspections.append(_inspect(server, folder, case.ranks))
            for _ in range(num_rounds):
                rounds.append(_complete(server, prompts))
                inspections.append(_inspect(server, folder, case.ranks))
            metrics = metering.scrape(server.url)
    except ServerError as error:
        failed = str(error)
    refused = own_error(log) if failed else None
    return Served(
        rounds,
        inspections,
        {},
        refused,
        None if refused else failed,
        read_names(names),
        left_behind(session),
        False,  # noqa: FBT003 - a server is ended in any case
        time.monotonic() - begin,
        log,
        metrics=metrics,
    )


def _arguments(case: Case) -> list[str]:
    """Return vLLM's arguments: greedy, eager, float32, and half of the ranks for each of the two engines."""
    given = {
        "--dtype": "float32",
        "--max-model-len": 512,
        "--max-num-seqs": 64,
        "--max-num-batched-tokens": 512,
        "--num-gpu-blocks-override": 1024,
        "--seed": 0,
        "--data-parallel-size": _DATA_PARALLEL,
        "--tensor-parallel-size": case.ranks // _DATA_PARALLEL,
        "--worker-extension-cls": engine.EXTENSION,
        **({} if case.config is None else {"--additional-config": json.dumps(case.config)}),
    }
    switches = ["--enforce-eager", "--no-enable-prefix-caching", "--enable-expert-parallel"]
    return [*switches, *(str(word) for pair in given.items() for word in pair)]


def _session_below(guard: int) -> int:
    """Return the session of the server that a guard has started: the guard's only child leads it."""
    children = Path(f"/proc/{guard}/task/{guard}/children").read_text(encoding="ascii").split()
    return os.getsid(int(children[0]))


def _complete(server: Server, prompts: Sequence[str]) -> dict[str, Any]:
    def one(prompt: str) -> list[int]:
        body = {
            "model": server.model,
            "prompt": prompt,
            "max_tokens": 16,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        choice = server.post("/v1/completions", body)["choices"][0]
        return [int(token) for token in choice["token_ids"]]

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return {"tokens": list(pool.map(one, prompts))}


def _inspect(server: Server, folder: Path, ranks: int) -> list[dict[str, Any]]:
    """Return what every rank's layers hold; the server answers once all of them have written it."""
    for left in folder.glob("rank-*.json"):
        left.unlink()
    body = {"method": "write_inspection", "args": [str(folder)]}
    server.post("/collective_rpc", body, _ANSWER_SECONDS)
    written = [folder / f"rank-{rank}.json" for rank in range(ranks)]
    if absent := [path.name for path in written if not path.exists()]:
        msg = f"{', '.join(absent)} not written; expected what each of {ranks} ranks holds"
        raise ServerError(msg)
    return [json.loads(path.read_text(encoding="utf-8")) for path in written]
