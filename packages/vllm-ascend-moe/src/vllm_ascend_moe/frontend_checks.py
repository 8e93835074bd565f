# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What the front end checks and derives on every platform, before anything is loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vllm_ascend_moe.core.replicas import SlotRule
from vllm_ascend_moe.core.settings import Settings, read_settings
from vllm_ascend_moe.eplb import EplbConfigError

if TYPE_CHECKING:
    from vllm_ascend_moe.core.sources import PlacementSource
    from vllm_ascend_moe.platforms import Kind

# Steps that no server lives to see.
_NEVER = 10**9


def count_ranks(engine_args: Any) -> int:
    """Return R, the expert-parallel ranks that vLLM will make."""
    sizes = ("tensor_parallel_size", "data_parallel_size", "prefill_context_parallel_size")
    product = 1
    for name in sizes:
        product *= getattr(engine_args, name, 1)
    return product


def count_stage_layers(engine_args: Any, source: PlacementSource) -> int | None:
    """Return how many MoE layers every pipeline stage has; None for not known, or where stages may differ."""
    return source.num_layers if getattr(engine_args, "pipeline_parallel_size", 1) == 1 else None


def change(settings: Settings, **changes: object) -> Settings:
    """Return the settings with some of them changed, validated as if they had been given so."""
    return read_settings({**settings.model_dump(), **changes})


def check_supported(settings: Settings, engine_args: Any, kind: Kind) -> None:
    """Refuse what no placement can be served with.

    Raises:
        EplbConfigError: see above.
    """
    if getattr(engine_args, "enable_elastic_ep", False):
        msg = "enable_elastic_ep is true; expected false: a placement is for one number of ranks"
        raise EplbConfigError(msg)
    if settings.load_collection_phase != "all" and kind == "gpu":
        msg = (
            f"load_collection_phase is {settings.load_collection_phase}; expected 'all': vLLM's kernels do not tell "
            "prompts from what is generated"
        )
        raise EplbConfigError(msg)


def check_one_rank(settings: Settings, ep_size: int, *, dynamic: bool, kind: Kind) -> None:
    """Refuse what one rank cannot do.

    Raises:
        EplbConfigError: see above.
    """
    if ep_size > 1:
        return
    for quantity, value, wrong in (
        ("num_redundant_experts", settings.num_redundant_experts, bool(settings.num_redundant_experts)),
        ("dynamic", True, dynamic),
        ("record_path", settings.record_path, settings.record_path is not None and kind != "cpu"),
    ):
        if wrong:
            msg = (
                f"{quantity} is {value} on one rank; expected at least two: start with a "
                "--tensor-parallel-size or --data-parallel-size above 1, or leave it out"
            )
            raise EplbConfigError(msg)


def check_choice(settings: Settings, source: PlacementSource, engine_args: Any) -> None:
    """Refuse a replica choice or weights that do not fit, before anything is loaded."""
    tp_size = engine_args.tensor_parallel_size
    # Whether vLLM splits tokens is not known yet; it does so only with data parallelism.
    may_split = engine_args.data_parallel_size > 1
    rule = SlotRule.from_settings(
        settings, ep_size=source.placement.ep_size, tp_size=tp_size, splits_tokens=may_split
    )
    if source.is_file or rule.weights is None:
        rule.tables(source.placement)


def needs_eplb_state(settings: Settings, given: Any, source: PlacementSource) -> bool:
    """Say whether vLLM's EPLB is needed: not for what its expert parallelism does without."""
    logs = given.log_balancedness if settings.log_balancedness is None else settings.log_balancedness
    moves = source.placement.ep_size > 1 and not source.is_linear
    return bool(settings.dynamic or moves or settings.record_path is not None or logs)


def check_even(source: PlacementSource) -> None:
    """Refuse ranks of unequal numbers of slots.

    Raises:
        EplbConfigError: see above.
    """
    ep_size, num_experts = source.placement.ep_size, source.placement.num_logical_experts
    if source.placement.num_physical_experts % ep_size or not source.placement.is_even:
        lacking = -num_experts % ep_size
        msg = (
            f"{source.name} gives {ep_size} ranks {sorted(set(source.placement.slots_per_rank.tolist()))} slots; "
            f"expected equally many: experts are moved and their load is recorded only then. num_redundant_experts "
            f"{lacking} makes it so"
        )
        raise EplbConfigError(msg)


def make_eplb_config(settings: Settings, given: Any, kind: Kind) -> Any:
    """Return vLLM's EPLB settings: the user's, with the plugin's over them."""
    changes: dict[str, Any] = {
        name: value
        for name in ("step_interval", "window_size", "log_balancedness", "log_balancedness_interval")
        if (value := getattr(settings, name)) is not None
    }
    changes["num_redundant_experts"] = settings.num_redundant_experts
    if not settings.dynamic:
        # No rearrangement, so no window to look back on.
        changes |= {"step_interval": _NEVER, "window_size": 1, "use_async": False}
    if kind == "cpu":
        # The asynchronous worker needs a device with streams. This communicator takes the CPU's process group
        # for tensors on a CPU; the one for gloo stages through an accelerator.
        changes |= {"use_async": False, "communicator": "torch_nccl"}
    return replace(given, **changes)


__all__ = [
    "change",
    "check_choice",
    "check_even",
    "check_one_rank",
    "check_supported",
    "count_ranks",
    "count_stage_layers",
    "make_eplb_config",
    "needs_eplb_state",
]
