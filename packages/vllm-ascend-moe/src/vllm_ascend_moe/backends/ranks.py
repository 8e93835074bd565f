# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What the ranks of a worker are to each other: by experts, by tokens, by pipeline stage."""

from __future__ import annotations

from typing import Any

from vllm_ascend_moe.core.agreement import gather
from vllm_ascend_moe.eplb import EplbConfigError
from vllm_ascend_moe.hooks import table, wrapping


class Ranks:
    """This worker among the others. Groups exist only once vLLM has set up its distributed environment."""

    def __init__(self, vllm_config: Any) -> None:
        """Keep vLLM's parallel configuration."""
        self._parallel = vllm_config.parallel_config
        # Whether the ranks of a tensor-parallel group see different tokens of the main model (sequence parallelism).
        # vLLM's configuration only permits it; each layer says whether it does.
        self.splits_tokens = False

    @property
    def tp_size(self) -> int:
        """Tensor-parallel size; the ranks of such a group see the same tokens, unless they split them."""
        return int(self._parallel.tensor_parallel_size)

    @property
    def ep_size(self) -> int:
        """R."""
        pcp = getattr(self._parallel, "prefill_context_parallel_size", 1)
        return int(self._parallel.tensor_parallel_size * self._parallel.data_parallel_size * pcp)

    def splits(self, model: Any) -> bool:
        """Find out from a model's MoE layers whether its tokens are split.

        Raises:
            EplbConfigError: some layers split them and some do not.
        """
        allowed = bool(getattr(self._parallel, "use_sequence_parallel_moe", False))
        found = {
            bool(layer.moe_config.is_sequence_parallel) if hasattr(layer, "moe_config") else allowed
            for layer in model.moe_layers
        }
        if len(found) > 1:
            msg = "some MoE layers split their tokens over tensor-parallel ranks and some do not; expected one of both"
            raise EplbConfigError(msg)
        return found == {True}

    @property
    def share_all_tokens(self) -> bool:
        """Whether every rank sees every token."""
        return not self.splits_tokens and self.ep_size == self.tp_size

    @property
    def ep_rank(self) -> int:
        """This rank's place in the expert-parallel group."""
        return int(self.ep_group.rank_in_group) if self.ep_size > 1 else 0

    @property
    def tp_rank(self) -> int:
        """This rank's place in its tensor-parallel group."""
        return self.ep_rank % self.tp_size

    @property
    def counts_tokens(self) -> bool:
        """Whether the tokens that this rank sees are counted here, and not by another that sees them too."""
        return self.splits_tokens or self.tp_rank == 0

    @property
    def ep_group(self) -> Any:
        """VLLM's expert-parallel group."""
        return wrapping.call(table.EP_GROUP)

    @property
    def num_nodes(self) -> int:
        """Servers, as vLLM's rearrangement counts them: one where the ranks do not divide by them."""
        nodes = int(wrapping.call(table.NODE_COUNT))
        return 1 if self.ep_size % nodes else nodes

    @property
    def cpu_group(self) -> Any:
        """Its process group for objects on the CPU; None for a single rank."""
        return self.ep_group.cpu_group if self.ep_size > 1 else None

    @property
    def eplb_group(self) -> Any:
        """The process group for objects on the CPU in which nothing but EPLB speaks; None for a single rank.

        Asynchronous EPLB plans in a thread of its own, while the other group may be in use.
        """
        return wrapping.call(table.EPLB_GROUP).cpu_group if self.ep_size > 1 else None

    @property
    def num_stages(self) -> int:
        """Pipeline stages."""
        return int(wrapping.call(table.PP_GROUP).world_size)

    @property
    def stage_rank(self) -> int:
        """This rank's pipeline stage."""
        return int(wrapping.call(table.PP_GROUP).rank_in_group)

    def stage(self, num_layers: int) -> tuple[int, int, int]:
        """Return which of the model's MoE layers are this pipeline stage's: (first, how many, of how many)."""
        counts = [int(str(count)) for count in self._over_stages(num_layers)]
        return sum(counts[: wrapping.call(table.PP_GROUP).rank_in_group]), num_layers, sum(counts)

    def require_own_layers(self, model: Any) -> None:
        """Refuse a model that counts the MoE layers of other pipeline stages as this one's; on all stages.

        Args:
            model: vLLM's MixtureOfExperts.

        Raises:
            EplbConfigError: vLLM's EPLB would look for experts that are not here.
        """
        if self.num_stages == 1:
            return
        pairs: list[Any] = self._over_stages((model.num_moe_layers, len(model.moe_layers)))
        for stage, (counted, held) in enumerate(pairs):
            if counted != held:
                msg = (
                    f"{type(model).__name__} counts {counted} MoE layers on pipeline stage {stage}, which holds {held}: "
                    "vLLM's EPLB takes experts from there that are on other stages; expected one pipeline stage for this "
                    "model, or a linear layout without redundant experts that stays, which needs no EPLB"
                )
                raise EplbConfigError(msg)

    def _over_stages(self, value: object) -> list[object]:
        group = wrapping.call(table.PP_GROUP)
        return gather(value, group.cpu_group) if group.world_size > 1 else [value]
