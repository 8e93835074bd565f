# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Facts of the table of releases, each looked up anew in the release's own source."""

from __future__ import annotations

import ast
import re
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch

from expert_maps import generate_placement
from harness.contract.ascend import Findings, option_defaults
from harness.contract.source import SourceError
from vllm_ascend_moe.hooks import table

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.contract.source import Sources
    from vllm_ascend_moe.releases import Release

_FORWARD = "vllm_ascend/ascend_forward_context.py"
_ADAPTOR = "vllm_ascend/eplb/adaptor/vllm_adaptor.py"
_CONFIG = "vllm_ascend/config_utils.py"
# Sizes at which the two layouts differ: experts, ranks, copies.
_SIZES = ((10, 4, 6), (16, 2, 4), (8, 8, 8))


def check_facts(sources: Sources, row: Release) -> Findings:
    """Compare a row of the table with the source of its release.

    Not compared, because no single place says it: what the loader fills slots by (that a layer's maps are made
    for slots that vLLM has allocated is), policies that fail with many copies, and the layout of the runner V2.
    """
    result = Findings(num_expected=len(_FACTS))
    for name, look in _FACTS.items():
        try:
            found = look(sources, row)
        except SourceError as error:
            result.problems.append(f"{error} (for {name})")
            continue
        expected = getattr(row, name, None)
        if found == expected:
            result.num_found += 1
        else:
            result.problems.append(f"{name} is {found} in the source; the table has {expected}")
    return result


def _pinned(project: str) -> Callable[[Sources, Release], object]:
    def look(sources: Sources, _: Release) -> object:
        found = re.search(rf"^Requires-Dist: {project}==(\S+)$", sources.text("PKG-INFO"), re.MULTILINE)
        return None if found is None else found[1]

    return look


def _option(name: str) -> Callable[[Sources, Release], object]:
    return lambda sources, _: option_defaults(sources).get(name)


def _layout(sources: Sources, _: Release) -> object:
    """Run the function that makes the default placement, alone, and name what it makes."""
    (definition,) = sources.find(table.INIT_EPLB_CONFIG.module, "generate_global_placement")
    if not isinstance(definition.node, ast.FunctionDef):
        msg = f"{definition.where}: expected a function"
        raise SourceError(msg)
    scope: dict[str, object] = {"np": np, "torch": torch}
    module = ast.Module(body=[definition.node], type_ignores=[])
    exec(compile(module, definition.path, "exec"), scope)  # noqa: S102 - a pinned release's own function, without its imports
    make: Callable[..., torch.Tensor] = scope["generate_global_placement"]  # type: ignore[assignment]
    shared = (0,) if "num_shared_experts" in ast.unparse(definition.node.args) else ()
    for name in ("ring", "append"):
        expected = [
            generate_placement(name, num_experts=experts, ep_size=ranks, num_redundant_experts=copies)
            .physical_to_logical.reshape(ranks, -1)
            .tolist()
            for experts, ranks, copies in _SIZES
        ]
        with warnings.catch_warnings():
            # Of how others make tensors.
            warnings.simplefilter("ignore")
            found = [make(*sizes, *shared).tolist() for sizes in _SIZES]
        if found == expected:
            return name
    return "another"


def _fills(sources: Sources, row: Release) -> object:
    """Say whether the layer makes its maps for slots that vLLM has allocated, and then fills by its own order."""
    texts = [sources.module_text(module) for module in row.layers]
    return "append" if all("placement_eplb_config" in text for text in texts) else "map"


def _has(path: str, pattern: str) -> Callable[[Sources, Release], object]:
    def look(sources: Sources, _: Release) -> object:
        return path in sources and re.search(pattern, sources.text(path)) is not None

    return look


def _profiles_slots(sources: Sources, row: Release) -> object:
    """Say whether the profile run draws ids below the number of slots rather than of experts."""
    drawn: set[str] = set()
    for module in row.layers:
        text = sources.module_text(module)
        drawn |= set(re.findall(r"torch\.rand\(\s*topk_ids\.size\(0\),\s*(\w+)", text))
    if not drawn:
        msg = f"{', '.join(row.layers)}: nothing draws ids for the profile run"
        raise SourceError(msg)
    return not all("logical" in name for name in drawn)


_FACTS: dict[str, Callable[[Sources, Release], object]] = {
    "torch": _pinned("torch"),
    "torch_npu": _pinned("torch-npu"),
    "layout": _layout,
    "fills": _fills,
    "forbids_unknown_keys": _has(_CONFIG, r"extra=.forbid."),
    "has_heat_stage": lambda sources, _: "eplb_heat_collection_stage" in option_defaults(sources),
    "heat_interval": _option("expert_heat_collection_interval"),
    "policy_type": _option("eplb_policy_type"),
    "profiles_slots": _profiles_slots,
    "small_worlds_gather": _has(_FORWARD, r"world_size <= num_experts_per_tok"),
    "registers_drafts": _has(_ADAPTOR, r"_registered_moe_layers"),
    "lora_exchanges": _has(_FORWARD, r"lora_config is not None and \S*enable_expert_parallel"),
}
