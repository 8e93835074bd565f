# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A stand-in for vllm-ascend's layers and loaders: their names and their order of doing things, on small tensors.

Ranks are threads of one process, which exchange values as processes would.
"""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from vllm_ascend_moe.backends.ascend import proof
from vllm_ascend_moe.backends.ascend_v1 import AscendV1
from vllm_ascend_moe.core.meter import Meter
from vllm_ascend_moe.core.sources import PlacementSource, find_source
from vllm_ascend_moe.hooks import wrapping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

    from vllm_ascend_moe.core.settings import Settings

E, HIDDEN, INNER = 8, 3, 2
# What vllm-ascend has no types for.
Untyped = Any


class Experts(torch.nn.Module):
    """A layer as vllm-ascend has it up to 0.23: maps and weights in one object; or as from 0.24 on.

    Then weights are apart, and the loader has an order of its own for slots.
    """

    moe_counter = -1

    def __init__(
        self,
        worker: AscendV1,
        eplb: Untyped,
        rank: int,
        ranks: int,
        *,
        apart: bool = False,
        appends: bool | None = None,
    ) -> None:
        super().__init__()
        Experts.moe_counter += 1
        self.moe_instance_id = Experts.moe_counter
        sizes = SimpleNamespace(num_experts=E, ep_size=ranks, ep_rank=rank)
        self.global_expert_map, self._expert_map, self.log2phy, redundant = worker.answer_layer(
            eplb, self.moe_instance_id, sizes
        )
        # Where the loader puts physical experts, in vLLM's order; None where it goes by the map.
        if appends is None:
            appends = worker._release.fills == "append"
        self._first = rank * (E + redundant) // ranks if appends else None
        held: Untyped = self if not apart else torch.nn.Module()
        if apart:  # as from 0.26 on
            self.routed_experts = held
            held._map_global_expert_id_to_local_expert_id = self._map_global_expert_id_to_local_expert_id
        slots = (E + redundant) // ranks
        for name, shape in (
            ("w13_weight", (slots, 2 * INNER, HIDDEN)),
            ("w2_weight", (slots, HIDDEN, INNER)),
            ("w13_weight_scale", (slots, 2 * INNER, 1)),
        ):
            parameter = torch.nn.Parameter(torch.zeros(shape), requires_grad=False)
            parameter.weight_loader = self.weight_loader  # type: ignore[attr-defined]
            held.register_parameter(name, parameter)
        self._held = [held]  # not as a submodule

    @property
    def held(self) -> Untyped:
        """What carries the weights."""
        return self._held[0]

    def _map_global_expert_id_to_local_expert_id(self, expert_id: int) -> int:
        if self._first is not None:
            slot = expert_id - self._first
            return slot if 0 <= slot < len(self.held.w2_weight) else -1
        assert self._expert_map is not None
        return int(self._expert_map[expert_id])

    def weight_loader(
        self,
        param: torch.nn.Parameter,
        loaded_weight: torch.Tensor,
        weight_name: str,  # noqa: ARG002 - vLLM's
        shard_id: str,
        expert_id: int,
        return_success: bool = False,  # noqa: FBT002 - vLLM's
    ) -> bool | None:
        slot = self._map_global_expert_id_to_local_expert_id(expert_id)
        if slot == -1:
            return False if return_success else None
        half = param.shape[1] // 2
        where = {"w1": slice(0, half), "w3": slice(half, None), "w2": slice(None)}[shard_id]
        param.data[slot, where] = loaded_weight
        return True if return_success else None

    def numbers(self, expert: int) -> list[int]:
        """Return by which numbers an expert's weight is offered to the layer: vLLM's physical ones, of all its copies."""
        if self._first is None:
            return [expert]
        assert self.global_expert_map is not None
        return list(range(expert, len(self.global_expert_map) * len(self.held.w2_weight), E))

    def process(self) -> None:
        """Turn weights into the form that the device multiplies by."""
        held = self.held
        for name in ("w13_weight", "w2_weight"):
            parameter = getattr(held, name)
            parameter.data = parameter.data.transpose(1, 2).contiguous()
        # Each slot's part by itself, so that it can be exchanged.
        held.w13_weight_scale_list = [scale.clone() for scale in held.w13_weight_scale.data]


class Model(torch.nn.Module):
    """Some layers, and vLLM's way to load them."""

    def __init__(self, layers: list[Experts]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def __getitem__(self, index: int) -> Untyped:
        return self.layers[index]

    def load_weights(self, weights: Iterator[tuple[str, torch.Tensor]]) -> set[str]:
        loaded = set()
        for name, weight in weights:
            _, _, layer, _, _, expert, projection, kind = name.split(".")
            shard = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}[projection]
            suffix = "weight" if kind == "weight" else "weight_scale"
            held = self[int(layer)].held
            parameter = getattr(held, f"{'w2' if shard == 'w2' else 'w13'}_{suffix}")
            # By position and by name, as models do; the first copy that is here ends it, as vLLM's models have it.
            for number in self[int(layer)].numbers(int(expert)):
                given = {"shard_id": shard, "expert_id": number, "return_success": True}
                if parameter.weight_loader(parameter, weight, name, **given):
                    break
            loaded.add(name)
        return loaded


def checkpoint(layers: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every weight of every expert, all of them different."""
    draw = torch.Generator().manual_seed(0)
    for layer in range(layers):
        for expert in range(E):
            prefix = f"model.layers.{layer}.mlp.experts.{expert}"
            yield f"{prefix}.gate_proj.weight", torch.randn(INNER, HIDDEN, generator=draw)
            yield f"{prefix}.up_proj.weight", torch.randn(INNER, HIDDEN, generator=draw)
            yield f"{prefix}.down_proj.weight", torch.randn(HIDDEN, INNER, generator=draw)
            yield f"{prefix}.gate_proj.scale", torch.rand(INNER, 1, generator=draw) + 1
            yield f"{prefix}.up_proj.scale", torch.rand(INNER, 1, generator=draw) + 1


class World:
    """Ranks that are threads: what each of them tells reaches all."""

    def __init__(self, ranks: int) -> None:
        self.size = ranks
        self._barrier = threading.Barrier(ranks, timeout=60)
        self._told: list[Any] = [None] * ranks
        self._rank = threading.local()

    def gather(self, value: object, _group: object) -> list[object]:
        self._told[self._rank.number] = value
        self._barrier.wait()
        told = list(self._told)
        self._barrier.wait()
        return told

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """Run it on every rank; what each of them returns, or raises."""
        found: list[Any] = [None] * self.size

        def one(rank: int) -> None:
            self._rank.number = rank
            try:
                found[rank] = work(rank)
            except Exception as error:  # noqa: BLE001 - the test looks at it
                found[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return found


def make_world(
    monkeypatch: pytest.MonkeyPatch, ranks: int, settings: Settings, *, release: str = "0.23.0"
) -> tuple[World, list[AscendV1]]:
    """Make workers beside one release."""
    monkeypatch.setattr(wrapping, "vllm_ascend_version", lambda: release)
    to = torch.Tensor.to

    def stay(tensor: torch.Tensor, *args: Untyped, **kwargs: Untyped) -> torch.Tensor:
        return tensor.clone() if args == ("npu",) else to(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", stay)
    world = World(ranks)
    monkeypatch.setattr(proof, "gather", world.gather)
    source = find_source(settings, E, ranks)
    return world, [AscendV1(session(settings, source, rank)) for rank in range(ranks)]


def session(settings: Settings, source: PlacementSource, rank: int) -> Untyped:
    return SimpleNamespace(
        settings=settings,
        source=source,
        config=SimpleNamespace(
            load_config=SimpleNamespace(load_format="auto"),
            model_config=SimpleNamespace(hf_text_config=SimpleNamespace()),
        ),
        has_agreed=True,
        rearrangements=0,
        recorder=None,
        meter=Meter(),
        start_recording=lambda *_: None,
        advance=lambda _: None,
        ranks=SimpleNamespace(
            ep_rank=rank, cpu_group=None, num_nodes=1, stage=lambda count: (0, count, count)
        ),
    )


def eplb(**options: object) -> SimpleNamespace:
    """Return vllm-ascend's settings, everything absent as it has it."""
    absent = {"expert_map_path": None, "dynamic_eplb": False, "num_redundant_experts": 0}
    return SimpleNamespace(**{**absent, **options})


def build(worker: AscendV1, options: Untyped, rank: int, ranks: int, layers: int, **how: Untyped) -> Model:
    draft = how.pop("draft", False)
    made: Model = worker.build(
        lambda: Model([Experts(worker, options, rank, ranks, **how) for _ in range(layers)]), draft=draft
    )
    return made


def load(worker: AscendV1, model: Model) -> None:
    """Load as vLLM's loader does: read, turn into another form, and only then compare."""

    def all_of_it() -> None:
        model.load_weights(checkpoint(len(model.layers)))
        for index in range(len(model.layers)):
            model[index].process()

    all_of_it()
    worker.finish_loading()
