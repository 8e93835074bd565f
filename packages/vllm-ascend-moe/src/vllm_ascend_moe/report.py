# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a running server says of its placement: vLLM's worker extension."""

from __future__ import annotations

from typing import Any


class WorkerReport:
    """Mixed into vLLM's worker (``worker_extension_cls``), unless the user names an extension of their own.

    Called by ``llm.collective_rpc("expert_maps_report")``, or over HTTP where vLLM's development endpoints
    are on.
    """

    def expert_maps_report(self, checksums: bool = False) -> dict[str, Any]:  # noqa: FBT001, FBT002 - a remote call's argument
        """Report this worker's live placement: plain values, which any transport carries.

        Args:
            checksums: also read this rank's expert weights and return a checksum of each slot.

        Returns:
            ``active``, ``ep_rank``, ``ep_size``; and where vLLM's EPLB state serves: ``digest``,
            ``physical_to_logical`` [L, P], ``num_redundant_experts``, ``rearrangements`` (commits since
            loading), ``recorded_steps``, ``slot_checksums`` (hex, [L, slots]). Beside vllm-ascend: the same of this
            pipeline stage's layers, read from them, and ``wrong_slots``: sentences, empty where every table names what
            its slot holds.
        """
        from vllm_ascend_moe.core.session import session_of

        session = session_of(self)
        if session is None:
            return {"active": False}
        report = {
            "active": True,
            "ep_rank": session.ranks.ep_rank,
            "ep_size": session.ranks.ep_size,
            "settings": session.settings.model_dump(),
        }
        return report | session.backend.report(checksums=checksums)

    def expert_maps_record(
        self,
        action: str = "status",
        fresh: bool = False,  # noqa: FBT001, FBT002 - a remote call's arguments
        wait: bool = True,  # noqa: FBT001, FBT002
    ) -> dict[str, Any]:
        """Start, stop or write the record, or say how it stands; steps go on meanwhile.

        Args:
            action: ``start``, ``stop``, ``dump`` (write what was collected) or ``status``.
            fresh: with ``start``: whether the rows until now are dropped; else the record is continued.
            wait: with ``stop`` and ``dump``: whether the file is written on return. Steps wait then; without it another
                thread writes it, and ``until`` is returned: it is written once ``written_steps`` is that much.

        Returns:
            what `vllm_ascend_moe.core.recorder.LoadRecorder.status` returns; nothing on ranks that do not write;
            ``error``, a sentence, where nothing is recorded here or the action is none.
        """
        from vllm_ascend_moe.core.record_control import control
        from vllm_ascend_moe.core.session import session_of

        return control(session_of(self), action, fresh=fresh, wait=wait)

    def destroy_worker_extension(self) -> None:
        """Write what was recorded: vLLM calls this from 0.33 on, before the worker shuts down.

        Older releases do not, and an extension of the user's has none of it; there the session follows the worker's own
        ``shutdown``. Both may happen, in this order.
        """
        from vllm_ascend_moe.core.session import session_of

        if (session := session_of(self)) is not None:
            session.stop()
