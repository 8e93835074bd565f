# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a loader really wrote into which slot: seen while it writes, by the checkpoint's own names.

vLLM's loaders pass each weight of an expert to the layer with a number, and from the number on only the layer's
tables know whose it is. Here the number is not believed: the name under which the weight stands in the checkpoint
says which expert it is, and sums of its content say whether the slot holds it afterwards.
"""

from __future__ import annotations

import functools
import re
import weakref
from typing import TYPE_CHECKING, Any

import torch

from vllm_ascend_moe._log import logger
from vllm_ascend_moe.core.checksums import content_sum

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from vllm_ascend_moe.backends.ascend.layers import MoELayer

# As checkpoints name an expert's weight: "model.layers.3.mlp.experts.17.gate_proj.weight".
_EXPERT = re.compile(r"experts\.(\d+)\.")
# Of vLLM's weight_loader of a MoE layer, in its order.
ARGUMENTS = ("param", "loaded_weight", "weight_name", "shard_id", "expert_id")

# Sums of the content of each slot, by parameter: [2] each, see `content_sum`.
Contents = dict[str, list[list[int]]]


class CheckpointNames:
    """Which expert of the checkpoint a tensor is, while a model reads its weights."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._current: tuple[str, torch.Tensor] | None = None
        self._named: dict[int, tuple[weakref.ref[torch.Tensor], str]] = {}

    def follow(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the weights as they come, and remember the names."""
        for name, tensor in weights:
            self._current = (name, tensor)
            self._named[tensor.data_ptr()] = (weakref.ref(tensor), name)
            yield name, tensor
        # Whoever took all of them before the first was written gives no order to go by.
        self._current = None

    def expert_of(self, loaded: torch.Tensor) -> int | None:
        """Return the expert's number in the checkpoint; None where nothing says it."""
        if self._current is not None:
            name, tensor = self._current
            if tensor.untyped_storage().data_ptr() == loaded.untyped_storage().data_ptr():
                return _number(name, tensor, loaded)
        alive, name = self._named.get(loaded.data_ptr(), (None, ""))
        tensor_or_none = alive() if alive is not None else None
        if tensor_or_none is not None:
            return _number(name, tensor_or_none, loaded)
        # A copy, made on the way: of the weight that was read last.
        return _number(*self._current, None) if self._current is not None else None


def _number(name: str, tensor: torch.Tensor, loaded: torch.Tensor | None) -> int | None:
    found = _EXPERT.findall(name)
    if found:
        return int(found[-1])
    if loaded is None or tensor.dim() < 2 or not tensor.stride(0):  # noqa: PLR2004 - experts, and what each has
        return None
    # All experts in one tensor: where in it this one starts.
    return (loaded.storage_offset() - tensor.storage_offset()) // tensor.stride(0)


def instead_of(loader: Callable[..., Any], write: Callable[..., Any], *more: object) -> Callable[..., Any]:
    """Return a function that calls another with a loader in front, and has the marks that vLLM's models look for on it."""
    made = functools.partial(write, loader, *more)
    functools.update_wrapper(made, loader)
    return made


class LoadWatch:
    """Watches one model's MoE layers being loaded.

    Attributes:
        has_read: whether weights came by name, from a checkpoint.
    """

    def __init__(self, model: Any, layers: Sequence[MoELayer]) -> None:
        """Put itself between the loader and the layers, on these objects alone."""
        self.has_read = False
        self._layers = list(layers)
        self._names = CheckpointNames()
        self._experts: list[dict[int, set[int]]] = [{} for _ in layers]
        self._parts: dict[tuple[int, str, int], dict[str, tuple[int, torch.Tensor]]] = {}
        # Right after the loader, in its own form: what each slot holds, and which slots hold something else.
        self._written: list[Contents] = []
        self._unlike: list[list[int]] = []
        self._unwritten: list[list[tuple[int, str]]] = []
        # Parameters that the loader was asked to write, whether by expert or whole.
        self._touched: set[tuple[int, str]] = set()
        for index, layer in enumerate(layers):
            self._follow_layer(index, layer)
        if hasattr(model, "load_weights"):
            model.load_weights = functools.partial(self._load_weights, model.load_weights)

    def _follow_layer(self, index: int, layer: MoELayer) -> None:
        names = {}
        for name, parameter in layer.weights.named_parameters():
            names[id(parameter)] = name
            loader = getattr(parameter, "weight_loader", None)
            if loader is not None:
                parameter.weight_loader = instead_of(loader, self._write, index, names)
        loader = getattr(layer.weights, "weight_loader", None)
        if loader is not None:
            layer.weights.weight_loader = instead_of(loader, self._write, index, names)

    def _load_weights(
        self,
        original: Callable[..., Any],
        weights: Iterable[tuple[str, torch.Tensor]],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        self.has_read = True
        result = original(self._names.follow(weights), *args, **kwargs)
        self._written = [read_contents(layer) for layer in self._layers]
        self._unlike = [
            different(written, self._expected(index, written)) for index, written in enumerate(self._written)
        ]
        self._unwritten = [self._left_out(index, written) for index, written in enumerate(self._written)]
        return result

    def _write(
        self, original: Callable[..., Any], index: int, names: dict[int, str], *args: Any, **kwargs: Any
    ) -> Any:
        result = original(*args, **kwargs)
        given = dict(zip(ARGUMENTS, args, strict=False)) | kwargs
        name = names.get(id(given.get("param")))
        if name is not None:
            self._touched.add((index, name))
        if name is None or given.get("expert_id") is None:
            return result
        slot = int(self._layers[index].weights._map_global_expert_id_to_local_expert_id(given["expert_id"]))  # noqa: SLF001 - vLLM's loader asks it
        if slot >= 0:
            self._note(index, name, slot, str(given["shard_id"]), given["param"], given["loaded_weight"])
        return result

    def _note(
        self, index: int, name: str, slot: int, shard: str, param: torch.Tensor, loaded: torch.Tensor
    ) -> None:
        expert = self._names.expert_of(loaded)
        if expert is not None:
            self._experts[index].setdefault(slot, set()).add(expert)
        # On the device that holds the slot: there a pass over the weights costs least.
        copied = loaded.to(device=param.device, dtype=param.dtype)
        self._parts.setdefault((index, name, slot), {})[shard] = (copied.numel(), content_sum(copied))

    def problems(self, index: int, row: Sequence[int]) -> list[tuple[int, str]]:
        """Say which slots of a layer do not hold what its tables name: (slot, what it holds).

        Args:
            index: the layer's.
            row: the expert in each local slot, as the tables name it.
        """
        if not self.has_read or not row:
            return []
        layer = self._layers[index]
        found = []
        known = self._experts[index]
        if not known and not layer.is_linear:
            # Such a loader takes a rank's part of all experts, in their own order, whatever the layer's map says.
            return [(slot, "what was not seen to be loaded expert by expert") for slot in range(len(row))]
        for slot, expert in enumerate(row):
            if known and known.get(slot, set()) != {expert}:
                of = sorted(known.get(slot, ()))
                found.append(
                    (slot, f"the checkpoint's expert {', '.join(map(str, of))}" if of else "no expert")
                )
        written = self._written[index]
        found += [(slot, f"no {name} from the checkpoint") for slot, name in self._unwritten[index]]
        found += [(slot, "other bytes than its expert has in the checkpoint") for slot in self._unlike[index]]
        now = different(read_contents(layer), written)
        found += [(slot, "other bytes than were loaded into it") for slot in now]
        if not known:
            logger.warning(
                "MoE layer %d: which experts were loaded is not to be seen; only bytes were compared", index
            )
        return found

    def unread(self, index: int) -> frozenset[str]:
        """Return a layer's parameters of which the checkpoint has nothing, as of the offsets where weights are symmetric.

        Their slots hold what the memory happened to hold, another thing on every rank.
        """
        read = {name for at, name in self._touched if at == index}
        return frozenset(self._written[index]) - read if self.has_read and read else frozenset()

    def _left_out(self, index: int, written: Contents) -> list[tuple[int, str]]:
        """Return the slots that were not written, of parameters that others were written of."""
        found = []
        for name, slots in written.items():
            left = [slot for slot in range(len(slots)) if (index, name, slot) not in self._parts]
            found += [(slot, name) for slot in left if len(left) < len(slots)]
        return found

    def _expected(self, index: int, written: Contents) -> Contents:
        """Return the sums that the loaded parts give, for the parameters of which every slot was loaded."""
        found: Contents = {}
        for name, slots in written.items():
            parts = [self._parts.get((index, name, slot)) for slot in range(len(slots))]
            sizes = [tensor.numel() for tensor in self._layers[index].slots()[name]]
            if all(parts):
                found[name] = [_add(part, size) for part, size in zip(parts, sizes, strict=True) if part]
        return found


def _add(parts: dict[str, tuple[int, torch.Tensor]], size: int) -> list[int]:
    """Add up the parts of a slot; where there are more than fit, each was written over the one before."""
    if sum(count for count, _ in parts.values()) <= size:
        return [int(value) for value in torch.stack([sums for _, sums in parts.values()]).sum(dim=0)]
    return [int(value) for value in list(parts.values())[-1][1]]


def read_contents(layer: MoELayer) -> Contents:
    """Return the sums of what each slot of a layer holds, by parameter."""
    return {
        name: torch.stack([content_sum(tensor) for tensor in tensors]).tolist() if tensors else []
        for name, tensors in layer.slots().items()
    }


def different(found: Contents, expected: Contents) -> list[int]:
    """Return the slots of which a parameter is not as expected.

    A parameter of which no slot is as expected has been turned into another form, which says nothing of experts:
    unless a slot has become what another was.
    """
    slots: set[int] = set()
    for name, wanted in expected.items():
        held = found.get(name)
        if held is None or len(held) != len(wanted):
            continue
        wrong = {slot for slot, (one, other) in enumerate(zip(held, wanted, strict=True)) if one != other}
        is_moved = any(any(held[slot]) and held[slot] in wanted for slot in wrong)
        if len(wrong) < len(wanted) or is_moved:
            slots |= wrong
    return sorted(slots)


__all__ = [
    "ARGUMENTS",
    "CheckpointNames",
    "Contents",
    "LoadWatch",
    "different",
    "instead_of",
    "read_contents",
]
