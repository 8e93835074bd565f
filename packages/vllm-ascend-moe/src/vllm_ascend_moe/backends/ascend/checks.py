# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a release of vllm-ascend would serve wrongly, or not at all: found and refused before anything is loaded."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm_ascend_moe.backends.ascend.options import POLICY_TYPE
from vllm_ascend_moe.core.replicas import BY_RANK
from vllm_ascend_moe.core.settings import VLLM_POLICY
from vllm_ascend_moe.eplb import EplbConfigError
from vllm_ascend_moe.hooks import wrapping
from vllm_ascend_moe.releases import RELEASES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm_ascend_moe.core.settings import Settings
    from vllm_ascend_moe.core.sources import PlacementSource
    from vllm_ascend_moe.releases import Release

_CHIPS = ("A2", "A3", "A5", "310P")
# From so many ranks on an A2 exchanges small batches by MC2.
_EXCHANGING_RANKS = 16
_FIRST_TO_EXCHANGE = next(release.vllm_ascend for release in RELEASES if release.lora_exchanges)


@dataclass(frozen=True)
class World:
    """What vllm-ascend chooses the path of the tokens by, beside the chip, and the kind of the layers.

    Attributes:
        size: processes, over all kinds of parallelism.
        top_k: experts that a token goes to; None where the model's configuration does not say.
        uses_lora: whether adapters are served.
        is_quantised: whether the model is.
        filters_weights: whether each rank reads the weights of what it takes for its experts only.
        data_parallel: ranks with batches of their own.
    """

    size: int
    top_k: int | None
    uses_lora: bool
    is_quantised: bool
    filters_weights: bool = False
    data_parallel: int = 1

    @classmethod
    def of_config(cls, config: Any) -> World:
        """Read it from vLLM's complete configuration, in a worker."""
        parallel, model = config.parallel_config, config.model_config
        size = parallel.world_size * parallel.data_parallel_size
        return cls(
            size,
            _top_k(model),
            uses_lora=config.lora_config is not None,
            is_quantised=model.quantization is not None,
            data_parallel=parallel.data_parallel_size,
        )

    @classmethod
    def of(cls, engine_args: Any, model_config: Any) -> World:
        """Read it from vLLM's arguments and the model's configuration."""
        size = 1
        for name in ("tensor", "data", "pipeline", "prefill_context"):
            size *= getattr(engine_args, f"{name}_parallel_size", 1)
        uses_lora = bool(getattr(engine_args, "enable_lora", False))
        return cls(
            size,
            _top_k(model_config),
            uses_lora,
            is_quantised=model_config.quantization is not None,
            filters_weights=bool(getattr(engine_args, "enable_ep_weight_filter", False)),
            data_parallel=getattr(engine_args, "data_parallel_size", 1),
        )


def _top_k(model_config: Any) -> int | None:
    text = model_config.hf_text_config
    found: int | None = getattr(text, "num_experts_per_tok", None) or getattr(text, "top_k_experts", None)
    return found


def chip() -> str:
    """Return the chip that this vllm-ascend was built for: A2, A3, A5 or 310P.

    Raises:
        EplbConfigError: it does not say, or says one that the plugin does not know.
    """
    try:
        found = str(importlib.import_module("vllm_ascend.utils").get_ascend_device_type().name).lstrip("_")
    except (AttributeError, *wrapping.IMPORT_ERRORS, KeyError) as error:
        msg = (
            f"vllm-ascend does not say which chip it was built for ({type(error).__name__}: {error}); expected one of "
            f"{', '.join(_CHIPS)}, by which it chooses how tokens reach their experts"
        )
        raise EplbConfigError(msg) from error
    if found not in _CHIPS:
        msg = f"the chip is {found}; expected one of {', '.join(_CHIPS)}, whose paths the plugin knows"
        raise EplbConfigError(msg)
    return found


def can_gather(release: Release, chip_name: str, world: World) -> bool:
    """Whether some batch may take vllm-ascend's path AllGather, with two expert-parallel ranks or more.

    An A2 takes it for every batch above a capacity and in small worlds for all, a 310P always, an A3 never.
    """
    if world.uses_lora and release.lora_exchanges:
        return False
    if chip_name == "A5":
        return release.small_worlds_gather and (world.top_k is None or world.size <= world.top_k)
    return chip_name != "A3"


def check_runner(engine_args: Any) -> None:
    """Refuse vLLM's own EPLB beside vllm-ascend's runner V1, which has another.

    Raises:
        EplbConfigError: it is asked for.
    """
    if engine_args.enable_eplb:
        msg = (
            "--enable-eplb is given beside vllm-ascend; expected its own EPLB, by which its runner V1 serves: leave it out, "
            "and set dynamic in expert_maps"
        )
        raise EplbConfigError(msg)


def check_served(
    settings: Settings, source: PlacementSource, release: Release, given: Mapping[str, Any], world: World
) -> None:
    """Refuse what this release would serve with wrong experts, or hang with.

    Args:
        settings: the plugin's, with the redundancy filled in.
        source: the placement to start from.
        release: vllm-ascend's.
        given: the user's ``eplb_config``.
        world: see there.

    Raises:
        EplbConfigError: with the reason and the ways out.
    """
    if source.placement.ep_size == 1:
        return  # no maps at all
    source.require_even(
        f"with vllm-ascend {release.vllm_ascend}, which takes a rank's first expert to be its number times its own count, "
        "so that tokens would reach wrong experts without an error"
    )
    if not source.is_linear:
        _check_path(settings, source, release, world)
        if world.filters_weights:
            msg = (
                f"enable_ep_weight_filter is given, and {source.name} is not linear; expected it without: by itself vLLM then reads "
                "the experts of the linear layout only, and from 0.20.2 on vllm-ascend has it do nothing"
            )
            raise EplbConfigError(msg)
    redundant = source.placement.num_redundant_experts
    if redundant and release.profiles_slots and not world.is_quantised:
        msg = (
            f"{source.name} has {redundant} redundant experts, on a model that is not quantised; expected none with "
            f"vllm-ascend {release.vllm_ascend}, whose profile run looks up ids of slots as if they were experts' and "
            "fails: take a later vllm-ascend, or a placement without redundant experts"
        )
        raise EplbConfigError(msg)
    if world.data_parallel > 1:
        _check_counting(settings, release, world)
    if settings.dynamic and settings.policy == VLLM_POLICY:
        _check_policy(source, release, given.get(POLICY_TYPE))


def _check_path(settings: Settings, source: PlacementSource, release: Release, world: World) -> None:
    """Refuse what the plugin does not mend where a batch may take the path AllGather."""
    name = chip()
    if not can_gather(release, name, world):
        return
    ep_size, redundant = source.placement.ep_size, source.placement.num_redundant_experts
    if redundant and settings.replica_choice in BY_RANK:
        msg = (
            f"replica_choice is {settings.replica_choice} on {ep_size} ranks of {name}; expected rank_offset or weighted: "
            f"vllm-ascend {release.vllm_ascend} may send a batch by AllGather, where all ranks must choose the same copy"
        )
        raise EplbConfigError(msg)
    if name == "310P":
        reason = "may send a batch by AllGather, which it does in a way of its own there that the plugin does not mend"
        way = "Serve on an A2 or A3"
    elif world.uses_lora:
        reason = (
            "may send a batch by AllGather, where the plugin changes ids, and was not tried with adapters"
        )
        way = f"Take vllm-ascend {_FIRST_TO_EXCHANGE} or later, or no adapters"
    elif name == "A2" and redundant and ep_size >= _EXCHANGING_RANKS:
        reason = "may send a batch by MC2, for which it documents no redundant experts on an A2"
        way = "Take a map without redundant experts, or an A3"
    else:
        return
    found = f"has {redundant} redundant experts" if redundant else "is not linear"
    wanted = "none" if name == "A2" and not world.uses_lora else "the linear layout without redundant experts"
    msg = (
        f"{source.name} {found}, on {ep_size} ranks of {name}; expected {wanted}: vllm-ascend {release.vllm_ascend} {reason}, so "
        f"tokens could reach wrong experts without an error. {way}, or serve without a map"
    )
    raise EplbConfigError(msg)


def _check_counting(settings: Settings, release: Release, world: World) -> None:
    """Refuse to count load where data-parallel ranks make vllm-ascend count something else."""
    ranks = f"data_parallel_size {world.data_parallel}"
    if settings.load_collection_phase != "all" and not release.agrees_on_stage:
        msg = (
            f"load_collection_phase is {settings.load_collection_phase} with {ranks}; expected 'all' with vllm-ascend "
            f"{release.vllm_ascend}, in which each rank tells the phase by its own batch: some would count what others do not, "
            "and then wait for each other"
        )
        raise EplbConfigError(msg)
    name = chip()
    if settings.record_path is not None and can_gather(release, name, world):
        msg = (
            f"record_path is {settings.record_path} with {ranks} on a {name}; expected one data-parallel rank, or an A3: on the "
            "path AllGather batches are padded to the longest, and vllm-ascend counts the padding as tokens"
        )
        raise EplbConfigError(msg)


def _check_policy(source: PlacementSource, release: Release, policy: object) -> None:
    policy = release.policy_type if policy is None else policy
    redundant, ep_size = source.placement.num_redundant_experts, source.placement.ep_size
    if policy not in release.one_copy_policies or redundant <= ep_size:
        return
    others = sorted({1, 2} - set(release.one_copy_policies))
    way = f", or {POLICY_TYPE} {others[0]} in eplb_config of the additional config" if others else ""
    msg = (
        f"{source.name} has {redundant} redundant experts on {ep_size} ranks; expected at most {ep_size} with {POLICY_TYPE} "
        f"{policy} of vllm-ascend {release.vllm_ascend}: its process fails at more, and the server then waits for it "
        f"for ever. Take fewer{way}, or leave the plan to expert-maps (no {POLICY_TYPE}, no policy {VLLM_POLICY!r})"
    )
    raise EplbConfigError(msg)


__all__ = ["World", "can_gather", "check_runner", "check_served", "chip"]
