# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What is put around vLLM's EPLB: each function finds its engine, and that one's backend does the work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm_ascend_moe.core.session import loading_session, session_of
from vllm_ascend_moe.hooks import table

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_ascend_moe.hooks.table import Hook


def _backend_of(owner: Any) -> Any:
    session = session_of(owner)
    return None if session is None else session.backend


def around_initialize_model(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Hook: let the backend of the engine that is being loaded make its model."""
    session = loading_session()
    if session is None:
        return original(*args, **kwargs)
    return session.backend.make_model(lambda: original(*args, **kwargs), kwargs.get("model_config"))


def _around_add_model(
    original: Callable[..., Any], state: Any, model: Any, model_config: Any, *args: Any, **kwargs: Any
) -> Any:
    result = original(state, model, model_config, *args, **kwargs)
    session = loading_session() or session_of(state)
    if session is not None:
        session.backend.add_model(state, model, model_config)
    return result


def _around_commit(original: Callable[..., Any], model_state: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(model_state, *args, **kwargs)
    backend = _backend_of(model_state)
    if backend is not None:
        backend.committed(model_state)
    return result


def _around_commit_layer(
    original: Callable[..., Any], model_state: Any, new_physical_to_logical_map: Any, layer: int
) -> Any:
    backend = _backend_of(model_state)
    if backend is None:
        return original(model_state, new_physical_to_logical_map, layer)
    return backend.commit_layer(model_state, new_physical_to_logical_map, layer)


def _around_update_mapping(original: Callable[..., Any], state: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(state, *args, **kwargs)
    backend = _backend_of(state)
    if backend is not None:
        for model_state in state.model_states.values():
            backend.write_slots(model_state)
    return result


def _around_rearrange(original: Callable[..., Any], state: Any, *args: Any, **kwargs: Any) -> Any:
    backend = _backend_of(state)
    if backend is None:
        return original(state, *args, **kwargs)
    is_profile = kwargs.get("is_profile", bool(args and args[0]))
    if not is_profile and not backend.may_rearrange:
        if backend.session.settings.dynamic:
            backend.session.meter.skipped("reloading")
        return None
    with backend.rearranging(), backend.session.naming("moving experts"):
        return original(state, *args, **kwargs)


def _around_should_record(original: Callable[..., Any], state: Any, *args: Any, **kwargs: Any) -> bool:
    backend = _backend_of(state)
    records = backend is not None and backend.session.settings.record_path is not None
    return records or bool(original(state, *args, **kwargs))


def _around_prepare_forward(original: Callable[..., Any], state: Any, *args: Any, **kwargs: Any) -> Any:
    backend = _backend_of(state)
    if backend is not None:
        backend.begin_forward(kwargs.get("model_config", args[0] if args else None))
    return original(state, *args, **kwargs)


def _around_step(
    original: Callable[..., Any], state: Any, is_dummy: bool = False, is_profile: bool = False, **kwargs: Any
) -> Any:
    backend = _backend_of(state)
    if backend is not None and not is_profile:
        with backend.session.naming("recording load"):
            backend.record(is_dummy=is_dummy)
    return original(state, is_dummy, is_profile, **kwargs)


EPLB_HOOKS: dict[Hook, Callable[..., Any]] = {
    table.INITIALIZE_MODEL: around_initialize_model,
    table.ADD_MODEL: _around_add_model,
    table.STEP: _around_step,
    table.PREPARE_FORWARD: _around_prepare_forward,
    table.SHOULD_RECORD: _around_should_record,
    table.REARRANGE: _around_rearrange,
    table.UPDATE_MAPPING: _around_update_mapping,
    table.COMMIT: _around_commit,
    table.COMMIT_LAYER: _around_commit_layer,
}


__all__ = ["EPLB_HOOKS", "around_initialize_model"]
