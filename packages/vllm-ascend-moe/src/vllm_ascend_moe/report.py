# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a running server says of its placement: vLLM's worker extension."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expert_maps import Placement
    from vllm_ascend_moe.backends.serving import Serving


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
        from vllm_ascend_moe.backends.moving import local_checksums
        from vllm_ascend_moe.backends.serving import current

        serving = current()
        if serving is None:
            return {"active": False}
        report: dict[str, Any] = {
            "active": True,
            "ep_rank": serving.ranks.ep_rank,
            "ep_size": serving.ranks.ep_size,
            "settings": serving.settings.model_dump(),
        }
        model = serving.model
        if model is None:
            return report | ({} if serving.ascend is None else serving.ascend.report(checksums=checksums))
        report |= _placed(serving, serving.live_placement())
        if checksums:
            # In hex: not every transport carries integers of 64 bits.
            sums = local_checksums(model).view("u8")
            report["slot_checksums"] = [[f"{int(slot):016x}" for slot in layer] for layer in sums]
        return report


def _placed(serving: Serving, placement: Placement) -> dict[str, Any]:
    return {
        "digest": placement.digest,
        "physical_to_logical": placement.physical_to_logical.tolist(),
        "num_redundant_experts": placement.num_redundant_experts,
        "rearrangements": serving.rearrangements,
        "recorded_steps": serving.recorder.num_rows if serving.recorder else 0,
    }
