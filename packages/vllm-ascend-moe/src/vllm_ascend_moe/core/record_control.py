# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What may be asked of the record while a server serves, and the answers, in a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from expert_maps import ExpertMapsError

if TYPE_CHECKING:
    from vllm_ascend_moe.core.recorder import LoadRecorder
    from vllm_ascend_moe.core.session import Session

START, STOP, DUMP, STATUS = ACTIONS = ("start", "stop", "dump", "status")
NO_PATH = "record_path is not given; expected one at the start of the server, as the file to write"


def control(session: Session | None, action: str, *, fresh: bool, wait: bool) -> dict[str, Any]:
    """Do what is asked for; see `vllm_ascend_moe.report.WorkerReport.expert_maps_record`."""
    error = None
    if session is None:
        error = "the plugin is inactive in this engine"
    elif session.settings.record_path is None:
        error = NO_PATH
    elif action not in ACTIONS:
        error = f"action is {action!r}; expected one of {', '.join(ACTIONS)}"
    if session is None or error is not None:
        return {"error": error}
    return {} if session.recorder is None else _act(session.recorder, action, fresh=fresh, wait=wait)


def _act(recorder: LoadRecorder, action: str, *, fresh: bool, wait: bool) -> dict[str, Any]:
    if action == START:
        recorder.start(fresh=fresh)
    elif action == STOP:
        recorder.stop()
    if action not in {STOP, DUMP}:
        return recorder.status()
    if not wait:
        until = recorder.request_write()
        return {**recorder.status(), "until": until}
    try:
        recorder.flush()
    except (ExpertMapsError, OSError, RuntimeError) as error:
        return {"error": f"the record {recorder.path} could not be written: {error}"}
    return recorder.status()


__all__ = ["ACTIONS", "DUMP", "NO_PATH", "START", "STATUS", "STOP", "control"]
