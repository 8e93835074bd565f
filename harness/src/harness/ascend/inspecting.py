# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a worker is asked: its live tables, what its slots hold, and to be made wrong on purpose.

Mixed into vLLM's worker, with the plugin and without it. Checksums and tables are read here by code of the harness's
own: what the plugin reports is not taken for a proof of the plugin.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vllm_ascend_moe.report import WorkerReport

if TYPE_CHECKING:
    from collections.abc import Iterator

_GATE = re.compile(r"(?:^|\.)layers\.(\d+)\.mlp\.gate$")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
# vllm-ascend's names for expert → local slot, newest first: vLLM's own map may stand beside it.
_EXPERT_MAPS = ("ascend_expert_map", "_expert_map", "expert_map")
# A layer's weights by slot, and under which names a layer computes by them, the one that counts first: lists of tensors
# where vllm-ascend moves experts, scales in float32 beside those of the checkpoint.
_WEIGHTS = ("w13_weight", "w2_weight", "w13_weight_scale", "w2_weight_scale")
_FORMS = ("_fp32_list", "_fp32", "_list", "")


class Inspector(WorkerReport):
    """Reads and, for mutants, changes the MoE layers of one worker."""

    def inspect_layers(self) -> dict[str, Any]:
        """Return this worker's place and what its MoE layers hold.

        Returns:
            ``ep_rank``; ``layers``: for each MoE layer ``layer`` (its index in the model), ``expert_map`` and
            ``log2phy`` (lists, or None) as they are now, ``slots``: SHA-256 of each slot's bytes, and of the runner
            V2 ``routes``: every physical expert that its table names for each expert.
        """
        from vllm.distributed.parallel_state import get_ep_group

        moved = self._moved_maps()
        return {
            "ep_rank": int(get_ep_group().rank_in_group),
            "layers": [
                {
                    "layer": index,
                    **_tables(parts, moved[place] if moved else None),
                    "slots": [hashlib.sha256(slot).hexdigest() for slot in _slots(parts[0])],
                }
                for place, (index, parts) in enumerate(self._moe_layers())
            ],
        }

    def write_inspection(self, folder: str) -> None:
        """Write what `inspect_layers` says as ``rank-N.json``, by the expert-parallel rank.

        With data parallelism a server asks every engine and passes on the answer of one. Ranks do not gather the answers
        among themselves: while one waits for them, another may be in a step that waits for it.
        """
        found = self.inspect_layers()
        (Path(folder) / f"rank-{found['ep_rank']}.json").write_text(json.dumps(found), encoding="utf-8")

    def _moved_maps(self) -> list[torch.Tensor]:
        """Return the maps that vllm-ascend's dynamic EPLB keeps, by layer; none where it moves nothing.

        It never writes them back to the layers, whose own maps stay those of the start.
        """
        updator = getattr(self.model_runner, "eplb_updator", None)  # type: ignore[attr-defined]
        maps = getattr(getattr(updator, "adaptor", None), "expert_map_per_layer_cpu", {})
        return [maps[key] for key in sorted(maps)]

    def _moe_layers(self) -> Iterator[tuple[int, list[Any]]]:
        """Yield each MoE layer's index, the module with the weights and the modules around it."""
        model = self.model_runner.model  # type: ignore[attr-defined]  # of the worker it is mixed into
        modules = dict(model.named_modules())
        for name, module in modules.items():
            if not hasattr(module, "w13_weight") and not hasattr(module, "w13_weight_list"):
                continue
            found = _LAYER.search(f"{name}.")
            around = [name.rpartition(".")[0], name.rpartition(".")[0].rpartition(".")[0]]
            yield (
                int(found[1]) if found else 0,
                [module, *(modules[each] for each in around if each in modules)],
            )

    def place(self) -> dict[str, int]:
        """Return this worker's process and its expert-parallel rank."""
        from vllm.distributed.parallel_state import get_ep_group

        return {"process": os.getpid(), "ep_rank": int(get_ep_group().rank_in_group)}

    def count_routes(self) -> None:
        """From now on, count to which experts the routers send tokens, from what enters each block, by code of the harness's.

        For models whose router takes the largest logits; every rank of a tensor-parallel group has all tokens there.
        """
        model = self.model_runner.model  # type: ignore[attr-defined]
        modules, top_k = dict(model.named_modules()), int(model.config.num_experts_per_tok)
        self._routes: dict[int, torch.Tensor] = {}

        def hook(layer: int, gate: Any) -> Any:  # noqa: ANN401 - a module, and a hook of torch's
            def count(_: object, given: tuple[Any, ...]) -> None:
                # Some releases multiply by the gate's weights without calling it.
                hidden = given[0].reshape(-1, given[0].shape[-1]).float()
                chosen = torch.nn.functional.linear(hidden, gate.weight.float()).topk(top_k, dim=-1).indices
                found = torch.bincount(chosen.flatten().cpu(), minlength=len(gate.weight))
                self._routes[layer] = self._routes.get(layer, 0) + found

            return count

        for name, module in modules.items():
            found = _GATE.search(name)
            if found:
                block = modules[name.rpartition(".")[0]]
                block.register_forward_pre_hook(hook(int(found[1]), module))

    def counted_routes(self) -> dict[str, Any]:
        """Return this worker's process and rank, and what was counted, [L][E]."""
        return {
            **self.place(),
            "counts": [self._routes[layer].tolist() for layer in sorted(self._routes)],
        }

    def damage(self, mutant: str) -> bool:
        """Make this worker wrong on purpose, until `repair`.

        Args:
            mutant: ``log2phy``: rolled by one; ``neighbour``: rank 0's first slot has its neighbour's weights;
                ``layer_shift``: every layer's tables are those of the next layer.

        Returns:
            Whether anything was changed here.
        """
        kinds = {"log2phy": self._roll, "neighbour": self._take_neighbour, "layer_shift": self._shift_layers}
        if mutant not in kinds:
            msg = f"mutant is {mutant!r}; expected one of {', '.join(kinds)}"
            raise ValueError(msg)
        self._undo: list[tuple[torch.Tensor, torch.Tensor]] = []
        kinds[mutant]([parts for _, parts in self._moe_layers()])
        return bool(self._undo)

    def _roll(self, layers: list[list[Any]]) -> None:
        for parts in layers:
            table = _lookup(parts)
            if table is not None:
                self._overwrite(table, table.roll(1))

    def _take_neighbour(self, layers: list[list[Any]]) -> None:
        from vllm.distributed.parallel_state import get_ep_group

        if get_ep_group().rank_in_group == 0:
            for weight in _weights(layers[0][0]):
                self._overwrite(weight[0], weight[1])

    def _shift_layers(self, layers: list[list[Any]]) -> None:
        for find in (_lookup, lambda parts: _find(parts, *_EXPERT_MAPS)):
            tables = [find(parts) for parts in layers]
            values = [None if table is None else table.clone() for table in tables]
            for table, value in zip(tables, [*values[1:], values[0]], strict=True):
                if table is not None and value is not None:
                    self._overwrite(table, value)

    def repair(self) -> None:
        """Undo `damage`."""
        for tensor, value in self._undo:
            tensor.copy_(value)
        self._undo = []

    def _overwrite(self, tensor: torch.Tensor, value: torch.Tensor) -> None:
        self._undo.append((tensor, tensor.clone()))
        tensor.copy_(value.clone())


def _tables(parts: list[Any], moved: torch.Tensor | None) -> dict[str, Any]:
    """Return where a layer sends tokens, and which experts are in its slots as its tables name them."""
    routes = _routes(parts)
    if routes is None:
        expert_map = moved if moved is not None else _find(parts, *_EXPERT_MAPS)
        return {"expert_map": _listed(expert_map), "log2phy": _listed(_find(parts, "log2phy"))}
    from vllm.distributed.parallel_state import get_ep_group

    # Of the runner V2 only this says which expert is where; vLLM's own map beside it is of physical experts.
    named = [sorted(set(column)) for column in routes.T.tolist()]
    width = sum(1 for _ in _slots(parts[0]))
    first = get_ep_group().rank_in_group * width
    local = [[each - first for each in slots if first <= each < first + width] for slots in named]
    return {
        "expert_map": [slots[0] if slots else -1 for slots in local],
        "log2phy": routes[0].tolist(),
        "routes": named,
    }


def _routes(parts: list[Any]) -> torch.Tensor | None:
    """Return the table of the runner V2, a row a token, physical experts; None with the runner V1, or without EPLB."""
    for part in parts:
        state = getattr(getattr(part, "router", None), "eplb_state", None)
        found = getattr(state, "expert_replica_routing_table", None)
        if isinstance(found, torch.Tensor):
            return found
    return None


def _lookup(parts: list[Any]) -> torch.Tensor | None:
    """Return what a layer looks physical experts up in."""
    routes = _routes(parts)
    return _find(parts, "log2phy") if routes is None else routes


def _find(parts: list[Any], *names: str) -> torch.Tensor | None:
    """Return the first tensor of one of the names, by name, then from the inner module outwards.

    A module with log2phy comes first: in some releases vLLM's own map, of physical experts, is under the same name within it.
    """
    ordered = sorted(parts, key=lambda part: not hasattr(part, "log2phy"))
    for name in names:
        for part in ordered:
            value = getattr(part, name, None)
            if isinstance(value, torch.Tensor):
                return value
    return None


def _listed(tensor: torch.Tensor | None) -> list[int] | None:
    return None if tensor is None else [int(value) for value in tensor.cpu()]


def _weights(module: Any) -> list[Any]:  # noqa: ANN401 - vllm-ascend's
    """Return what has a row or an entry for each slot: weights and their scales, as the layer computes by them."""
    found = []
    for stem in _WEIGHTS:
        values = (getattr(module, f"{stem}{form}", None) for form in _FORMS)
        value = next((value for value in values if value is not None), None)
        if value is not None:
            found.append(value.data if isinstance(value, torch.nn.Parameter) else value)
    return found


def _slots(module: Any) -> Iterator[bytes]:  # noqa: ANN401 - vllm-ascend's
    weights = [weight for weight in _weights(module) if len(weight)]
    for slot in range(len(weights[0])):
        yield b"".join(_bytes(weight[slot]) for weight in weights)


def _bytes(weight: torch.Tensor) -> bytes:
    weight = weight.detach()
    # Of a quantised model's the scales alone are no int8: in float32 in one mode, and as the checkpoint has them in another.
    weight = weight.float() if weight.dtype == torch.float16 else weight
    return bytes(weight.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
