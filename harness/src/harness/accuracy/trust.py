# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a configuration of a stranger's may set: what is named here, and nothing else.

A server's arguments and environment can make it run any code: `--trust-remote-code`, worker classes, middleware, plugin
paths, PYTHONPATH, LD_PRELOAD, and what a later release adds. So not those are refused, but all that is not known to set
a number, a name of a list, or a switch. A configuration of this checkout's own, and one that is trusted (`--trust`), may
set anything.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from harness.accuracy.arms import EXPERT_MAPS, Arm

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.accuracy.config import ModelConfig

_NUMBER = r"[0-9]+(\.[0-9]+)?([eE]-?[0-9]+)?"
_NAME = r"[a-z0-9][a-z0-9_-]*"
_SWITCH = ""
# Arguments of `vllm serve`, with what their values look like; a switch has none.
ARGUMENTS: dict[str, str] = {
    **dict.fromkeys(
        (
            *("--tensor-parallel-size", "--data-parallel-size", "--pipeline-parallel-size"),
            *("--max-model-len", "--max-num-seqs", "--max-num-batched-tokens", "--block-size", "--seed"),
            *("--gpu-memory-utilization", "--swap-space", "--num-gpu-blocks-override", "--cpu-offload-gb"),
            *("--max-logprobs", "--max-seq-len-to-capture", "--decode-context-parallel-size"),
        ),
        _NUMBER,
    ),
    **dict.fromkeys(
        (
            *("--enforce-eager", "--enable-expert-parallel", "--enable-eplb", "--disable-log-stats"),
            *("--enable-prefix-caching", "--no-enable-prefix-caching", "--disable-log-requests"),
            *("--enable-chunked-prefill", "--no-enable-chunked-prefill", "--no-enable-log-requests"),
            *("--async-scheduling", "--no-async-scheduling", "--disable-custom-all-reduce"),
        ),
        _SWITCH,
    ),
    "--quantization": _NAME,
    "--kv-cache-dtype": _NAME,
    "--generation-config": "vllm|auto",
    "--distributed-executor-backend": "mp|ray|uni",
    "--all2all-backend": _NAME,
    "--attention-backend": r"[A-Z0-9_]+",
    "--load-format": "auto|safetensors|dummy",
    "--tokenizer-mode": "auto|slow|hf",
}
_PLAIN = r"[A-Za-z0-9_.,:-]*"
# Variables that set a number, a switch or the name of a device or method.
VARIABLES = frozenset(
    (
        *("OMP_NUM_THREADS", "OMP_PROC_BIND", "MKL_NUM_THREADS", "PYTHONHASHSEED", "CUDA_VISIBLE_DEVICES"),
        *("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "CUBLAS_WORKSPACE_CONFIG"),
        *("VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_USE_MODELSCOPE", "VLLM_LOGGING_LEVEL"),
        *("VLLM_USE_V1", "VLLM_ATTENTION_BACKEND", "VLLM_BATCH_INVARIANT", "VLLM_ASCEND_ENABLE_NZ"),
        "VLLM_USE_V2_MODEL_RUNNER",
        *("HCCL_BUFFSIZE", "HCCL_DETERMINISTIC", "HCCL_OP_EXPANSION_MODE", "HCCL_CONNECT_TIMEOUT"),
        *("ASCEND_RT_VISIBLE_DEVICES", "ASCEND_LAUNCH_BLOCKING", "TASK_QUEUE_ENABLE", "LCCL_DETERMINISTIC"),
    )
)
# Arguments of a chat template that are its own text.
_TEMPLATES = ("chat_template", "tokenize")
_LIST = "the list in harness.accuracy.trust"


def find_strange(config: ModelConfig) -> str | None:
    """Return what a stranger may not set, with its place and what is expected; None where there is nothing."""
    servings = {"server": config.server, **{f"arms.{name}": arm for name, arm in config.arms.items()}}
    found = [("task", _template(config.task.chat_template_kwargs))]
    for place, serving in servings.items():
        found += [(place, _argument(serving.arguments)), (place, _variable(serving.environment))]
        if isinstance(serving, Arm):
            found.append((place, _additional(serving.additional_config)))
    return next((f"{place}: {what}, or --trust" for place, what in found if what), None)


def _argument(arguments: Sequence[str]) -> str | None:
    """Return what is wrong with the first argument that is not in the list, abbreviated, or has another value."""
    words = list(arguments)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        pattern = ARGUMENTS.get(name)
        if pattern is None:
            return f"arguments hold {word!r:.80}, which may run code or read files; expected one of {_LIST}"
        if pattern and not equals:
            value = words.pop(0) if words else ""
        if (equals and not pattern) or re.fullmatch(pattern, value) is None:
            return f"arguments hold {name} with {value!r:.80}; expected {pattern or 'no value'}"
    return None


def _variable(environment: Mapping[str, str]) -> str | None:
    for name, value in environment.items():
        if name not in VARIABLES or re.fullmatch(_PLAIN, value) is None:
            return f"environment sets {name} to {value!r:.80}; expected one of {_LIST}, with no path"
    return None


def _additional(config: Mapping[str, Any]) -> str | None:
    other = next((name for name in config if name != EXPERT_MAPS), None)
    return None if other is None else f"additional_config holds {other!r:.80}; expected {EXPERT_MAPS} alone"


def _template(arguments: Mapping[str, Any]) -> str | None:
    """A chat template is a program."""
    found = next((name for name in _TEMPLATES if name in arguments), None)
    return None if found is None else f"chat_template_kwargs hold {found!r}; expected none"
