# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""One engine beside a staged release: started under a guard, with a time limit, and nothing of it left behind."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.accuracy.server import last_lines
from harness.ascend.ending import LIMIT_SECONDS, left_behind, run_module
from harness.ascend.forkserver import ForkServerError
from harness.ascend.served import Served, last_error, own_error, read_names
from harness.emulated_npu import NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.ascend.forkserver import ForkServers
    from harness.ascend.stage import Staged

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
# What a request asks for if it does not say so.
_DEFAULTS = {
    "rounds": 1,
    "mutants": [],
    "max_tokens": 16,
    "counts": False,
    "kills": False,
    "drafts": False,
}
# What the child answers under the names of `Served`.
_ANSWERED = ("rounds", "inspections", "mutants", "routes", "ended_seconds", "accepted")


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
    """Say whether a checkpoint is quantised, by its configuration or by ModelSlim's file."""
    path = model / "config.json"
    return (model / "quant_model_description.json").is_file() or (
        path.is_file() and "quantization_config" in json.loads(path.read_text(encoding="utf-8"))
    )


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
    used = Path(variables[NAMES]) if NAMES in variables else None
    for left in filter(None, (answer, used)):
        left.unlink(missing_ok=True)
    ask.write_text(json.dumps({**_DEFAULTS, **request}), encoding="utf-8")
    words = [CHILD, str(ask), str(answer)]
    begin, session, broken = time.monotonic(), None, None
    if servers is None:
        is_late = run_module(words, log, variables, seconds) is None
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
    late = f"took more than {seconds:g} s in phase {response['phase']}" if is_late else None
    refused, failed = _why(response, log, late, broken)
    return Served(
        refused=refused,
        failed=failed,
        names=read_names(used),
        left=left_behind(response.get("session") or session),
        is_late=is_late,
        seconds=duration,
        log=log,
        has_begun=answer.exists(),
        **{name: response[name] for name in _ANSWERED if name in response},
    )


def _why(
    response: Mapping[str, Any], log: Path, late: str | None, broken: str | None
) -> tuple[str | None, str | None]:
    """Return why an engine was refused, and what else stopped it: `Served.refused` and `Served.failed`.

    Args:
        response: of the child.
        log: of the engine.
        late: what to say where the time limit had to end it; else None.
        broken: what to say where the server that forks engines failed; else None.
    """
    refused: str | None = response.get("refused")
    if late is not None:
        return refused, f"{late}{last_lines(log)}"
    if refused is not None or broken is not None or response["phase"] == "end":
        return refused, broken
    # A server that has started was not refused; the plugin may be what ended it.
    own = own_error(log)
    if own and response["phase"] == "start":
        return own, None
    return None, f"{own or last_error(log)} (log: {log.name}, phase {response['phase']})"
