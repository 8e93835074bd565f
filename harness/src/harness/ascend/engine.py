# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""One engine beside a staged release: started under a guard, with a time limit, and nothing of it left behind."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.accuracy.server import last_lines, start
from harness.ascend.forkserver import ForkServerError
from harness.emulated_npu import NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.ascend.forkserver import ForkServers
    from harness.ascend.stage import Staged

# Of a busy machine: on a quiet one an engine takes a tenth of it.
LIMIT_SECONDS = 420.0
_KILL_SECONDS = 15.0
# As `timeout` says it.
_LATE = 124
_POLL_SECONDS = 0.1
V2 = 2
# Two ranks on a machine with few cores and one NUMA node; the ports of a killed run may still be taken.
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "INFO",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    # Every engine imports some thousand modules in each of its processes: what Python compiles is kept.
    "PYTHONDONTWRITEBYTECODE": "",
    # Importing takes longer than all the rest; a server would start each of its processes anew.
    "VLLM_WORKER_MULTIPROC_METHOD": "fork",
}
# By which runner vllm-ascend serves.
RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
# What runs the engine; a test puts something else in its place.
CHILD = "harness.ascend.child"
EXTENSION = "harness.ascend.inspecting.Inspector"
# An error of the plugin in a worker's log: the front end only says that a worker failed.
_OWN_ERROR = re.compile(
    r"(?:expert_maps|vllm_ascend_moe)[\w.]*\.(\w*Error): (.*)|\b((?:EplbConfig|Upstream|Disagreement|Settings|Placement|"
    r"Format|Layout|Slot\w*)Error): (.*)"
)
_ANY_ERROR = re.compile(r"\b(\w+Error|\w+Exception): (.*)")
# What the front end says when a worker or an engine failed, and why is above it.
_SECOND_HAND = ("Engine core initialization failed", "WorkerProc initialization failed", "Failed core proc")
# The ops by which vllm-ascend's ways to exchange tokens can be told.
_PATHS = (
    ("MC2", "npu_moe_distribute_dispatch"),
    ("ALLTOALL", "npu_moe_token_permute"),
    ("AllGather", "npu_moe_init_routing"),
)


@dataclass(frozen=True)
class Served:
    """What one engine gave.

    Attributes:
        rounds: ``tokens``, ``logprobs`` and ``seconds`` of each.
        inspections: every worker's tables and slots, before the first round and after each.
        mutants: by name: ``changed``, ``inspection``, ``tokens``.
        refused: the plugin's own error, which stopped the start; None where it started.
        failed: what else stopped it; None where nothing did.
        names: ops and the like that were used.
        left: processes that were still there when all should have ended.
        is_late: whether the time limit had to end it.
        has_begun: whether there was an engine's process at all.
        ended_seconds: from a worker's being killed to the engine's error; None where none was killed.
        seconds: from the start of the process to its end.
        log: where it is.
        routes: what the routers chose, counted by the harness, [L][E]; None where that was not asked for.
        accepted: tokens of a draft model's that the model agreed to; None where that was not asked for.
        metrics: what a server's ``/metrics`` shows of the plugin's at the end; None of an engine without a server.
    """

    rounds: list[dict[str, Any]] = field(default_factory=list)
    inspections: list[list[dict[str, Any]]] = field(default_factory=list)
    mutants: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: str | None = None
    failed: str | None = None
    names: tuple[str, ...] = ()
    left: tuple[int, ...] = ()
    is_late: bool = False
    seconds: float = 0.0
    log: Path | None = None
    routes: list[list[int]] | None = None
    has_begun: bool = True
    ended_seconds: float | None = None
    accepted: int | None = None
    metrics: dict[str, float] | None = None

    @property
    def tokens(self) -> list[list[int]] | None:
        """The first round's; None where there is none."""
        tokens: list[list[int]] | None = self.rounds[0]["tokens"] if self.rounds else None
        return tokens

    @property
    def paths(self) -> tuple[str, ...]:
        """By which of vllm-ascend's ways tokens went to their experts."""
        return tuple(path for path, op in _PATHS if any(op in name for name in self.names))


def options(model: Path, ranks: int, config: Mapping[str, Any] | None, **engine: object) -> dict[str, Any]:
    """Return the engine's arguments: greedy, eager, expert-parallel over the ranks; float32, or what quantised models take.

    Args:
        model: a checkpoint's folder.
        ranks: tensor-parallel size.
        config: the additional config; None for none.
        engine: more of vLLM's arguments.
    """
    return {
        "model": str(model.absolute()),
        # vllm-ascend takes no float32 beside int8.
        "dtype": "float16" if is_quantised(model) else "float32",
        "enforce_eager": True,
        "max_model_len": 512,
        "max_num_seqs": 64,
        "max_num_batched_tokens": 512,
        # Otherwise each worker takes most of the memory that the emulated NPU says it has.
        "num_gpu_blocks_override": 1024,
        "enable_prefix_caching": False,
        "seed": 0,
        "tensor_parallel_size": ranks,
        "enable_expert_parallel": ranks > 1,
        "worker_extension_cls": EXTENSION,
        **({} if config is None else {"additional_config": dict(config)}),
        **engine,
    }


def is_quantised(model: Path) -> bool:
    """Say whether a checkpoint is quantised, by its configuration."""
    path = model / "config.json"
    return path.is_file() and "quantization_config" in json.loads(path.read_text(encoding="utf-8"))


def environment(
    staged: Staged | None, chip: str, folder: Path, *, plugin: bool, runner: int = 1
) -> dict[str, str]:
    """Return the variables of an engine's processes.

    Args:
        staged: the release; None for vLLM's CPU build alone.
        chip: A2 or A3.
        folder: for the list of names that are used.
        plugin: whether this project's plugin is loaded.
        runner: vllm-ascend's, 1 or 2; 2 launches Triton kernels.
    """
    is_v2 = runner == V2
    beside = {} if staged is None else staged.environment(chip, folder / "names.txt", triton=is_v2)
    # What vLLM keeps of a model's class is another for every version, under the same name.
    cache = (folder.parent if staged is None else staged.folder).absolute() / "vllm_cache"
    variables = {**ENVIRONMENT, **beside, "VLLM_CACHE_ROOT": str(cache)}
    if is_v2:
        variables[RUNNER] = "1"
    if staged is None:
        # vLLM's CPU build does so whatever is set, but one rank needs no second process.
        variables["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if not plugin:
        # One list for all kinds of plugins: vllm-ascend's own are named, which leaves ours out.
        variables["VLLM_PLUGINS"] = "" if staged is None else ",".join(staged.plugins())
    return variables


def serve(
    request: Mapping[str, Any],
    folder: Path,
    variables: Mapping[str, str],
    seconds: float = LIMIT_SECONDS,
    servers: ForkServers | None = None,
) -> Served:
    """Run one engine to its end, or end it and all its processes after the time limit.

    Args:
        request: see `harness.ascend.child`.
        folder: of its own; for request, response and log.
        variables: environment variables.
        seconds: most seconds.
        servers: the engine is forked by one of them; None starts a process of its own.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    ask, answer, log = (folder / name for name in ("request.json", "response.json", "log.txt"))
    answer.unlink(missing_ok=True)
    used = Path(variables[NAMES]) if NAMES in variables else None
    if used is not None:
        used.unlink(missing_ok=True)
    defaults = {
        "rounds": 1,
        "mutants": [],
        "max_tokens": 16,
        "counts": False,
        "kills": False,
        "drafts": False,
    }
    ask.write_text(json.dumps({**defaults, **request}), encoding="utf-8")
    words = [CHILD, str(ask), str(answer)]
    begin, session, broken = time.monotonic(), None, None
    if servers is None:
        is_late = _run_alone(words, log, variables, seconds)
    else:
        try:
            with servers.server({**variables, NAMES: ""}) as server:
                session, is_late = server.run(words, log, variables, seconds)
        except ForkServerError as error:
            broken, is_late = str(error), False
    duration = time.monotonic() - begin
    response: dict[str, Any] = {"phase": "start"}
    if answer.exists():
        response = json.loads(answer.read_text(encoding="utf-8"))
    refused, failed = response.get("refused"), broken
    if is_late:
        failed = f"took more than {seconds:g} s in phase {response['phase']}{last_lines(log)}"
    elif refused is None and failed is None and response["phase"] != "end":
        refused = own_error(log)
        failed = None if refused else f"{_last_error(log)} (log: {log.name}, phase {response['phase']})"
    return Served(
        response.get("rounds", []),
        response.get("inspections", []),
        response.get("mutants", {}),
        refused,
        failed,
        read_names(used),
        left_behind(response.get("session") or session),
        is_late,
        duration,
        log,
        response.get("routes"),
        answer.exists(),
        response.get("ended_seconds"),
        accepted=response.get("accepted"),
    )


def read_names(path: Path | None) -> tuple[str, ...]:
    """Return the names that an engine's processes listed."""
    if path is None or not path.exists():
        return ()
    return tuple(sorted(set(path.read_text(encoding="utf-8").split())))


def run_module(
    words: Sequence[str], log: Path, variables: Mapping[str, str], seconds: float = LIMIT_SECONDS
) -> int:
    """Run a module in a process of its own and return its exit code; 124 where the time limit had to end it."""
    with start([sys.executable, "-m", *words], log, variables, stop_seconds=5.0) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return _LATE


def _run_alone(words: Sequence[str], log: Path, variables: Mapping[str, str], seconds: float) -> bool:
    """Run a module in a process of its own; whether the time limit had to end it."""
    with start([sys.executable, "-m", *words], log, variables, stop_seconds=5.0) as process:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
    return False


def left_behind(session: int | None, seconds: float = _KILL_SECONDS) -> tuple[int, ...]:
    """Return the processes of a session that run still, when those that are being killed have had time to end.

    Args:
        session: its id; None for one that is not known.
        seconds: that time.
    """
    deadline = time.monotonic() + seconds
    while (found := _running(session)) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return found


def _running(session: int | None) -> tuple[int, ...]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat") if session is not None else ():
        with contextlib.suppress(OSError):
            # The name in brackets may hold anything: state, parent, group and session come after it.
            state, _, _, of_session = (
                status.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[:4]
            )
            # A zombie does not run.
            if int(of_session) == session and state not in {"Z", "X"}:
                found.append(int(status.parent.name))
    return tuple(sorted(found))


def own_error(log: Path) -> str | None:
    """Return the plugin's error that a worker logged, if it is what stopped it."""
    for line in reversed(log.read_text(encoding="utf-8", errors="replace").splitlines()):
        if found := _OWN_ERROR.search(line):
            name, said = (found[1], found[2]) if found[1] else (found[3], found[4])
            return f"{name}: {said}"
    return None


def _last_error(log: Path) -> str:
    for line in reversed(log.read_text(encoding="utf-8", errors="replace").splitlines()):
        found = _ANY_ERROR.search(line)
        if found and not any(words in line for words in _SECOND_HAND):
            return f"{found[1]}: {found[2]}"
    return "the engine ended without an error message"


def compare_tokens(
    found: Sequence[Sequence[int]] | None, expected: Sequence[Sequence[int]]
) -> tuple[int, int]:
    """Return how many texts are equal, and of how many."""
    if found is None:
        return 0, len(expected)
    return sum(list(a) == list(b) for a, b in zip(found, expected, strict=True)), len(expected)
