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

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
# Of vLLM's additional config: the plugin's options, which name files at most.
ADDITIONAL = frozenset({"expert_maps"})
# Arguments of a chat template that are its own text.
_TEMPLATES = frozenset({"chat_template", "tokenize"})


def refuse_arguments(arguments: Sequence[str]) -> None:
    """Refuse an argument that a stranger may not set.

    Raises:
        ValueError: it is not in the list, abbreviated, or has another value.
    """
    words = list(arguments)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        pattern = ARGUMENTS.get(name)
        if pattern is None:
            msg = f"arguments hold {word!r:.80}, which may run code or read files; expected one of the list in harness.accuracy.trust, or --trust"
            raise ValueError(msg)
        if pattern and not equals:
            value = words.pop(0) if words else ""
        if (bool(equals) and not pattern) or re.fullmatch(pattern, value) is None:
            msg = f"arguments hold {name} with {value!r:.80}; expected {pattern or 'no value'}, or --trust"
            raise ValueError(msg)


def refuse_environment(environment: Mapping[str, str]) -> None:
    """Refuse a variable that a stranger may not set.

    Raises:
        ValueError: it is not in the list, or its value may be a path.
    """
    for name, value in environment.items():
        if name not in VARIABLES or re.fullmatch(_PLAIN, value) is None:
            msg = f"environment sets {name} to {value!r:.80}; expected one of the list in harness.accuracy.trust, with no path, or --trust"
            raise ValueError(msg)


def refuse_additional(config: Mapping[str, Any]) -> None:
    """Refuse a part of vLLM's additional config that a stranger may not set.

    Raises:
        ValueError: there is another than the plugin's.
    """
    for name in config:
        if name not in ADDITIONAL:
            msg = f"additional_config holds {name!r:.80}; expected {', '.join(sorted(ADDITIONAL))} alone, or --trust"
            raise ValueError(msg)


def refuse_template(arguments: Mapping[str, Any]) -> None:
    """Refuse a chat template of a stranger's: it is a program.

    Raises:
        ValueError: there is one.
    """
    for name in _TEMPLATES & set(arguments):
        msg = f"chat_template_kwargs hold {name!r}; expected none, or --trust"
        raise ValueError(msg)
