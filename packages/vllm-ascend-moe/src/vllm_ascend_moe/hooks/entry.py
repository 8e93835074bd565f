# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Where the plugin enters: every process looks at its configuration before it is used."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from vllm_ascend_moe._log import logger
from vllm_ascend_moe.hooks import table, wrapping

if TYPE_CHECKING:
    from collections.abc import Callable


def watch() -> None:
    """Look at each configuration before it is used; without ``expert_maps`` in it nothing else happens."""
    from vllm_ascend_moe import frontend
    from vllm_ascend_moe.backends import worker

    # A worker never makes a configuration, and the module is large.
    hooks = [hook for hook in table.WATCHED if hook.module in sys.modules or "arg_utils" not in hook.module]
    found = list(wrapping.problems(hooks))
    if found:
        # Whether the plugin is wanted is not known here, and a vLLM without it must run.
        logger.warning("vllm-ascend-moe inactive: it cannot see vLLM's configuration: %s", "; ".join(found))
        return
    around: dict[table.Hook, Callable[..., Any]] = {
        table.CREATE_ENGINE_CONFIG: frontend.around_create_engine_config,
        table.CREATE_MODEL_CONFIG: frontend.around_create_model_config,
        table.EXECUTOR_INIT: frontend.around_executor_init,
        table.WORKER_INIT: worker.around_worker_init,
    }
    for hook in hooks:
        wrapping.wrap(hook, around[hook])
