# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A worker of vLLM's: it gets a session and a backend before it is made, and loads its model within them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from vllm_ascend_moe import backends
from vllm_ascend_moe.backends.ranks import Ranks
from vllm_ascend_moe.backends.reloading import Reloads
from vllm_ascend_moe.core.activation import read_resolved, say_inactive
from vllm_ascend_moe.core.session import Session, State, has_sessions
from vllm_ascend_moe.hooks import wrapping

if TYPE_CHECKING:
    from collections.abc import Callable


def around_worker_init(
    original: Callable[..., Any], worker: Any, vllm_config: Any, *args: Any, **kwargs: Any
) -> Any:
    """Hook: in a worker, put the other hooks in place before it is made."""
    activation = read_resolved(vllm_config)
    if not activation.is_active:
        if not has_sessions():
            # An engine before this one, in the same process, may have been active.
            wrapping.restore()
        say_inactive(activation)
        return original(worker, vllm_config, *args, **kwargs)
    session = Session(vllm_config, activation, Ranks(vllm_config))
    session.backend = backends.backend(activation.backend)(session)
    session.backend.install()
    result = original(worker, vllm_config, *args, **kwargs)
    session.attach(worker)
    session.follow_shutdown(worker)
    Reloads(worker, session.backend)
    # Whatever loads the model: this is around all of it.
    worker.load_model = functools.partial(_load, session, worker.load_model)
    return result


def _load(session: Session, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    wrapping.forget_calls()
    session.start_metrics()
    with session.loading(), session.naming("loading"):
        result = original(*args, **kwargs)
        session.backend.finish_loading()
    session.advance(State.SERVING)
    return result


__all__ = ["around_worker_init"]
