# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""New weights for a model that serves: whatever loads them is called between two steps of the backend."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_ascend_moe.backends.interface import Backend


class Reloads:
    """What stands around the functions of one worker that load weights anew.

    vLLM loads them at once (``reload_weights``) or in parts, between ``start_weight_update`` and
    ``finish_weight_update``.
    """

    def __init__(self, worker: Any, backend: Backend) -> None:
        """Put the backend's `begin_reload` and `end_reload` around what the worker has of these functions."""
        self._backend = backend
        self._is_open = False
        around = {
            "reload_weights": self._at_once,
            "start_weight_update": self._start,
            "start_draft_weight_update": self._start,
            "update_weights": self._part,
            "finish_weight_update": self._finish,
        }
        for name, function in around.items():
            if hasattr(worker, name):
                setattr(worker, name, functools.partial(function, name, getattr(worker, name)))

    def _at_once(self, name: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._is_open:  # a part of an update
            return original(*args, **kwargs)
        self._begin(name)
        return self._end(self._part(name, original, *args, **kwargs))

    def _start(self, name: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._is_open:  # which vLLM refuses
            return original(*args, **kwargs)
        self._begin(name)
        return self._part(name, original, *args, **kwargs)

    def _part(self, _: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        except BaseException:
            # vLLM ends an update of which a part has failed.
            if self._is_open:
                self._is_open = False
                self._backend.abort_reload()
            raise

    def _finish(self, name: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._end(self._part(name, original, *args, **kwargs))

    def _begin(self, name: str) -> None:
        self._backend.begin_reload(name)
        self._is_open = True

    def _end(self, result: Any) -> Any:
        if self._is_open:
            self._is_open = False
            self._backend.end_reload()
        return result


__all__ = ["Reloads"]
