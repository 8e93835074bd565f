# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import functools
import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import fake_ascend
import numpy as np
import pytest
import torch
from fake_ascend import E, Model, Untyped, build, eplb, load, make_world

from expert_maps import Placement, generate_placement, plan, write_placement
from vllm_ascend_moe.backends import ascend_v1
from vllm_ascend_moe.core.agreement import DisagreementError
from vllm_ascend_moe.core.settings import Settings
from vllm_ascend_moe.eplb import EplbConfigError
from vllm_ascend_moe.hooks import wrapping

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vllm_ascend_moe.backends.ascend_v1 import AscendV1

LAYERS, RANKS, REDUNDANT = 3, 2, 4


@pytest.fixture
def planned(tmp_path: Path) -> tuple[str, Placement]:
    """A map of three layers, each with another placement: 8 experts and 4 copies on 2 ranks."""
    weights = np.random.default_rng(0).lognormal(size=(LAYERS, E))
    placement = plan(weights, num_physical_experts=E + REDUNDANT, ep_size=RANKS).placement
    write_placement(placement, tmp_path / "map.json")
    return str(tmp_path / "map.json"), placement


def serve(
    monkeypatch: pytest.MonkeyPatch,
    settings: Settings,
    options: Untyped,
    *,
    layers: int = LAYERS,
    spoil: Callable[[int, Model, AscendV1], None] | None = None,
    before: Callable[[AscendV1], None] | None = None,
    **how: Untyped,
) -> list[Any]:
    """Return each rank's report after loading, or what it raised."""
    world, workers = make_world(monkeypatch, RANKS, settings, release=how.pop("release", "0.23.0"))

    def one(rank: int) -> Untyped:
        if before is not None:
            before(workers[rank])
        model = build(workers[rank], options, rank, RANKS, layers, **how)
        if spoil is not None:
            spoil(rank, model, workers[rank])
        load(workers[rank], model)
        return workers[rank].report(checksums=True)

    return world.run(one)


def both_say(found: list[Any], *parts: str) -> None:
    """Both ranks stop, in the same words."""
    assert [type(error) for error in found] == [DisagreementError] * RANKS, found
    assert str(found[0]) == str(found[1])
    for part in parts:
        assert part in str(found[0])


@pytest.mark.parametrize("apart", [False, True])
def test_what_is_served_is_the_map_and_is_reported(
    planned: tuple[str, Placement], monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    path, placement = planned
    found = serve(monkeypatch, Settings(expert_map_path=path), eplb(expert_map_path=path), apart=apart)
    for report in found:
        assert report["digest"] == placement.digest
        assert report["physical_to_logical"] == placement.physical_to_logical.tolist()
        assert report["num_redundant_experts"] == REDUNDANT
        assert report["wrong_slots"] == []
        assert report["rearrangements"] == 0
    # A copy has the bytes of its expert, wherever it is.
    sums = np.array([report["slot_checksums"] for report in found]).transpose(1, 0, 2).reshape(LAYERS, -1)
    for layer, row in enumerate(placement.physical_to_logical):
        assert len({*sums[layer].tolist()}) == E
        for expert in range(E):
            assert len({*sums[layer, row == expert].tolist()}) == 1


def test_what_the_checkpoint_has_nothing_of_is_not_compared(
    planned: tuple[str, Placement], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, placement = planned

    def leave_unread(rank: int, model: Model, _: AscendV1) -> None:
        # As vllm-ascend makes offsets for weights that are symmetric: whatever the memory held.
        for index in range(LAYERS):
            held = model[index].held
            offset = torch.arange(len(held.w2_weight) * 3.0).reshape(-1, 3) + 100 * rank
            held.w13_weight_offset = torch.nn.Parameter(offset, requires_grad=False)

    found = serve(monkeypatch, Settings(expert_map_path=path), eplb(expert_map_path=path), spoil=leave_unread)
    sums = np.array([report["slot_checksums"] for report in found]).transpose(1, 0, 2).reshape(LAYERS, -1)
    for layer, row in enumerate(placement.physical_to_logical):
        assert [len({*sums[layer, row == expert].tolist()}) for expert in range(E)] == [1] * E


@pytest.mark.parametrize(
    "layout",
    ["ring", "append"],
)
@pytest.mark.parametrize("release", ["0.23.0", "0.26.0rc1", "0.30.0rc2"])
def test_the_layout_without_a_file_is_the_one_that_is_asked_for(
    release: str, layout: Untyped, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = eplb(dynamic_eplb=True, num_redundant_experts=REDUNDANT)
    settings = Settings(dynamic=True, policy="vllm", num_redundant_experts=REDUNDANT, layout=layout)
    found = serve(monkeypatch, settings, options, release=release, apart=release != "0.23.0")
    wanted = generate_placement(
        layout, num_experts=E, ep_size=RANKS, num_redundant_experts=REDUNDANT, num_layers=LAYERS
    )
    assert [report["digest"] for report in found] == [wanted.digest] * RANKS


def test_linear_expert_parallelism_is_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = generate_placement("linear", num_experts=E, ep_size=RANKS, num_layers=LAYERS)
    assert [found["digest"] for found in serve(monkeypatch, Settings(), eplb())] == [linear.digest] * RANKS


def test_what_a_linear_rank_holds_is_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def swap(rank: int, model: Model, _: AscendV1) -> None:
        if rank == 1:
            exchange(model, 2, 0, 1)

    both_say(serve(monkeypatch, Settings(), eplb(), spoil=late(swap)), "slot 0 of MoE layer 2 on rank 1")


def exchange(model: Model, layer: int, one: int, other: int) -> None:
    """Put two slots' weights in each other's place."""
    held = model[layer].held
    for name in ("w13_weight", "w2_weight", "w13_weight_scale"):
        data = getattr(held, name).data
        data[[one, other]] = data[[other, one]]


def late(spoil: Callable[[int, Model, AscendV1], None]) -> Callable[[int, Model, AscendV1], None]:
    """Spoil a model after it was read, as a loader's last step might."""

    def before(rank: int, model: Model, worker: AscendV1) -> None:
        last = model[-1]
        process = last.process

        def then() -> None:
            process()
            spoil(rank, model, worker)

        last.process = then

    return before


# A loader with an order of its own


@pytest.mark.parametrize("redundant", [0, 2, REDUNDANT])
def test_a_loader_that_fills_vllms_order_is_given_the_map(
    redundant: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Some experts twice on the rank where vLLM has them once, and the other way round.
    weights = np.random.default_rng(1).lognormal(sigma=2, size=(LAYERS, E))
    placement = plan(weights, num_physical_experts=E + redundant, ep_size=RANKS).placement
    path = tmp_path / "map.json"
    write_placement(placement, path)
    settings, options = Settings(expert_map_path=str(path)), eplb(expert_map_path=str(path))
    for report in serve(monkeypatch, settings, options, apart=True, release="0.30.0rc2"):
        assert report["digest"] == placement.digest
        assert report["wrong_slots"] == []
    # What the plugin thinks of the release is what decides it: believed to go by the map, it is caught.
    found = serve(monkeypatch, settings, options, apart=True, appends=True)
    both_say(found, "holds the checkpoint's expert")


def test_a_later_pipeline_stage_is_filled_by_its_own_rows(
    planned: tuple[str, Placement], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, placement = planned

    def second_stage(worker: AscendV1) -> None:
        monkeypatch.setattr(
            worker.session,
            "ranks",
            SimpleNamespace(**{**vars(worker.session.ranks), "stage": lambda count: (1, count, LAYERS)}),
        )

    found = serve(
        monkeypatch,
        Settings(expert_map_path=path),
        eplb(expert_map_path=path),
        layers=2,
        before=second_stage,
        apart=True,
        release="0.30.0rc2",
    )
    for report in found:
        assert report["physical_to_logical"] == placement.physical_to_logical[1:].tolist()
        assert report["wrong_slots"] == []


@pytest.mark.parametrize("release", ["0.23.0", "0.30.0rc2"])
def test_a_loader_that_takes_all_experts_at_once_serves_no_map(
    release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As vLLM's of gpt-oss does: a rank's part of a tensor with all of them, whatever the layer's map says."""

    def spoil(rank: int, model: Model, worker: AscendV1) -> None:
        def load_weights(weights: Untyped) -> set[str]:
            stacked: dict[Any, dict[str, torch.Tensor]] = {}
            for name, weight in weights:
                _, _, layer, _, _, expert, projection, kind = name.split(".")
                stacked.setdefault((int(layer), int(expert)), {})[f"{projection}.{kind}"] = weight
            for (layer, expert), parts in stacked.items():
                slot, held = expert - rank * E // RANKS, model[layer].held
                if 0 <= slot < E // RANKS:
                    held.w13_weight.data[slot] = torch.cat(
                        [parts["gate_proj.weight"], parts["up_proj.weight"]]
                    )
                    held.w2_weight.data[slot] = parts["down_proj.weight"]
            return set()

        assert worker._main is not None
        # What watches the loading is around whatever the model has.
        model.load_weights = functools.partial(  # type: ignore[method-assign]
            worker._main.watch._load_weights, load_weights
        )

    rows = np.tile(np.arange(E)[::-1], (LAYERS, 1))
    path = tmp_path / "map.json"
    write_placement(Placement(rows, RANKS), path)
    how: Untyped = {"apart": release != "0.23.0", "release": release}
    found = serve(
        monkeypatch, Settings(expert_map_path=str(path)), eplb(expert_map_path=str(path)), spoil=spoil, **how
    )
    both_say(
        found,
        "slot 0 of MoE layer 0 on rank 0 holds what was not seen to be loaded expert by expert; expected expert 7",
    )
    # In the linear layout that is what the layer says, too.
    linear = serve(monkeypatch, Settings(), eplb(), spoil=spoil, **how)
    assert [report["wrong_slots"] for report in linear] == [[], []]


def test_marks_that_models_look_for_stay_on_the_loaders(
    planned: tuple[str, Placement], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = planned
    _, workers = make_world(monkeypatch, RANKS, Settings(expert_map_path=path), release="0.30.0rc2")
    monkeypatch.setattr(fake_ascend.Experts.weight_loader, "supports_moe_loading", True, raising=False)
    model = build(workers[0], eplb(expert_map_path=path), 0, RANKS, LAYERS, apart=True)
    assert model[0].held.w2_weight.weight_loader.supports_moe_loading is True


def test_experts_in_one_tensor_are_refused_where_the_loader_has_an_order_of_its_own(
    planned: tuple[str, Placement], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = planned
    _, workers = make_world(monkeypatch, RANKS, Settings(expert_map_path=path), release="0.30.0rc2")
    model = build(workers[0], eplb(expert_map_path=path), 0, RANKS, LAYERS, apart=True)
    weight = model[0].held.w2_weight
    message = r"^experts.w2 of the checkpoint has shape \[8, 3, 2\], all experts in one; expected a tensor for each expert"
    with pytest.raises(EplbConfigError, match=message):
        weight.weight_loader(weight, torch.zeros(E, 3, 2), "experts.w2", shard_id="w2", expert_id=0)


# Mutants


def test_log2phy_rolled_by_one_is_refused(
    planned: tuple[str, Placement], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = planned

    def roll(rank: int, model: Model, _: AscendV1) -> None:
        log2phy = model[1].log2phy
        if rank == 0:
            log2phy.copy_(log2phy.roll(1))

    found = serve(monkeypatch, Settings(expert_map_path=path), eplb(expert_map_path=path), spoil=roll)
    both_say(found, "log2phy of rank 0 sends expert", "of MoE layer 1 to slot")


def test_a_neighbours_weights_in_a_slot_are_refused(
    planned: tuple[str, Placement], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, placement = planned
    expert = placement.physical_to_logical[2, 6 + 3]

    def swap(rank: int, model: Model, _: AscendV1) -> None:
        if rank == 1:
            exchange(model, 2, 3, 4)

    found = serve(monkeypatch, Settings(expert_map_path=path), eplb(expert_map_path=path), spoil=late(swap))
    both_say(
        found,
        f"slot 3 of MoE layer 2 on rank 1 holds other bytes than were loaded into it; expected expert {expert}",
    )


def test_a_copy_of_a_neighbours_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(rank: int, model: Model, _: AscendV1) -> None:
        if rank == 0:
            data = model[0].held.w2_weight.data
            data[1] = data[0]

    found = serve(monkeypatch, Settings(), eplb(), spoil=late(copy))
    both_say(found, "slot 1 of MoE layer 0 on rank 0 holds other bytes")


def test_a_loader_that_fills_another_slot_is_refused(
    planned: tuple[str, Placement], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, placement = planned
    row = placement.physical_to_logical[0, :6]

    def shift(rank: int, model: Model, _: AscendV1) -> None:
        if rank == 0:
            layer = model[0]
            right = layer._map_global_expert_id_to_local_expert_id

            def wrong(expert: int) -> int:
                slot = right(expert)
                return slot if slot < 0 else (slot + 1) % 6

            layer._map_global_expert_id_to_local_expert_id = wrong

    found = serve(monkeypatch, Settings(expert_map_path=path), eplb(expert_map_path=path), spoil=shift)
    both_say(
        found,
        f"slot 0 of MoE layer 0 on rank 0 holds the checkpoint's expert {row[5]}; expected expert {row[0]}",
    )


def test_a_loader_that_writes_elsewhere_than_it_says_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def misplace(rank: int, model: Model, _: AscendV1) -> None:
        if rank == 1:
            held = model[1].held
            watched = held.w2_weight.weight_loader

            def elsewhere(
                param: Untyped, weight: torch.Tensor, *_: object, expert_id: int, **__: object
            ) -> None:
                slot = model[1]._map_global_expert_id_to_local_expert_id(expert_id)
                if slot >= 0:
                    param.data[(slot + 1) % 4] = weight

            held.w2_weight.weight_loader = type(watched)(watched.func, elsewhere, *watched.args[1:])

    found = serve(monkeypatch, Settings(), eplb(), spoil=misplace)
    assert all(isinstance(error, DisagreementError) for error in found), found


def test_rows_shifted_by_a_layer_are_refused(
    planned: tuple[str, Placement], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = planned

    def shift(rank: int, model: Model, worker: AscendV1) -> None:  # noqa: ARG001 - on every rank
        made = worker._main
        assert made is not None
        for index, layer in enumerate(made.layers):
            question, _ = made._asked[index]
            layer.write(question.maps((index + 1) % LAYERS))

    found = serve(monkeypatch, Settings(expert_map_path=path), eplb(expert_map_path=path), spoil=shift)
    both_say(
        found, "of MoE layer 0 on rank", "by the layer's expert_map; expected expert", "as the placement says"
    )


def test_a_slot_that_the_loader_leaves_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(rank: int, model: Model, _: AscendV1) -> None:  # noqa: ARG001 - on every rank
        reads = model.load_weights

        def without(weights: Untyped) -> set[str]:
            return reads(item for item in weights if ".1.mlp.experts.5.down" not in item[0])

        monkeypatch.setattr(model, "load_weights", without)

    found = serve(monkeypatch, Settings(), eplb(), spoil=forget)
    both_say(
        found, "slot 1 of MoE layer 1 on rank 1 holds no w2_weight from the checkpoint; expected expert 5"
    )


def test_a_rank_that_cannot_read_its_slots_stops_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(rank: int, model: Model, _: AscendV1) -> None:
        if rank == 1:
            model[0]._expert_map.fill_(3)

    both_say(
        serve(monkeypatch, Settings(), eplb(), spoil=late(lose)), "rank 1: EplbConfigError: expert_map names"
    )


def test_a_wrong_table_in_a_running_server_is_reported(
    planned: tuple[str, Placement], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = planned
    world, workers = make_world(monkeypatch, RANKS, Settings(expert_map_path=path))

    def one(rank: int) -> Untyped:
        model = build(workers[rank], eplb(expert_map_path=path), rank, RANKS, LAYERS)
        load(workers[rank], model)
        right = workers[rank].report(checksums=True)["wrong_slots"]
        log2phy = model[0].log2phy
        log2phy.copy_(log2phy.roll(1))
        exchange(model, 2, 0, 1)
        expert_map = model[1]._expert_map
        expert_map.copy_(torch.where(expert_map < 0, expert_map, (expert_map + 1) % 6))
        return right, workers[rank].report(checksums=True)["wrong_slots"]

    for rank, (right, wrong) in enumerate(world.run(one)):
        assert right == []
        assert any(f"log2phy of rank {rank} sends expert" in line for line in wrong)
        assert any(f"slot 0 of MoE layer 2 on rank {rank} holds expert" in line for line in wrong)
        assert any(f"slot 0 of MoE layer 1 on rank {rank} is expert" in line for line in wrong)


# Counts of layers


@pytest.mark.parametrize("layers", [LAYERS - 1, LAYERS + 1])
def test_a_map_for_another_number_of_layers_is_refused_before_loading(
    layers: int, planned: tuple[str, Placement], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = planned
    settings = Settings(expert_map_path=path)
    found = serve(monkeypatch, settings, eplb(expert_map_path=path), layers=layers, spoil=never_reached)
    for error in found:
        assert isinstance(error, EplbConfigError)
        assert f"has {LAYERS} layers; expected {layers}" in str(error)


def never_reached(*_: object) -> None:
    pytest.fail("the model was loaded")


def test_a_draft_model_gets_the_layout_and_not_a_row(
    planned: tuple[str, Placement], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, placement = planned
    _, workers = make_world(monkeypatch, RANKS, Settings(expert_map_path=path))
    ring = generate_placement("ring", num_experts=E, ep_size=RANKS, num_redundant_experts=REDUNDANT)
    options = eplb(expert_map_path=path)
    # A draft model may be made before the main one or after it, and has layers of its own.
    draft = build(workers[0], options, 1, RANKS, 2, draft=True)
    main = build(workers[0], options, 1, RANKS, LAYERS)
    for layer in map(draft.__getitem__, range(2)):
        assert layer._expert_map.tolist() == ring.expert_map(0, 1).tolist()
    for index, layer in enumerate(map(main.__getitem__, range(LAYERS))):
        assert layer._expert_map.tolist() == placement.expert_map(index, 1).tolist()


def test_a_draft_model_with_experts_is_refused_where_vllm_ascend_takes_its_layers_for_the_main_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adaptor = ModuleType("vllm_ascend.eplb.adaptor.vllm_adaptor")
    registered: list[object] = []
    vars(adaptor)["VllmEplbAdaptor"] = SimpleNamespace(_registered_moe_layers=registered)
    monkeypatch.setitem(sys.modules, adaptor.__name__, adaptor)
    options = eplb(dynamic_eplb=True)
    for asked in (Settings(dynamic=True, policy="vllm"), Settings(record_path="load.npz")):
        _, workers = make_world(monkeypatch, RANKS, asked)
        with pytest.raises(
            EplbConfigError,
            match=r"^Model is a draft model with 2 MoE layers, where vllm-ascend's EPLB is on",
        ):
            build(workers[0], options, 1, RANKS, 2, draft=True)
        # A dense one has none.
        build(workers[1], options, 1, RANKS, 0, draft=True)
    # Where it asks the model for its layers there is nothing to mistake.
    vars(adaptor)["VllmEplbAdaptor"] = SimpleNamespace()
    _, workers = make_world(monkeypatch, RANKS, Settings(dynamic=True, policy="vllm"))
    build(workers[0], options, 1, RANKS, 2, draft=True)


def test_a_second_engine_starts_at_the_first_row(
    planned: tuple[str, Placement], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, placement = planned
    for _ in range(2):
        found = serve(monkeypatch, Settings(expert_map_path=path), eplb(expert_map_path=path))
        assert [report["digest"] for report in found] == [placement.digest] * RANKS
    assert fake_ascend.Experts.moe_counter >= LAYERS  # vllm-ascend's own went on


def test_a_pipeline_stage_gets_its_own_rows(
    planned: tuple[str, Placement], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, placement = planned
    _, workers = make_world(monkeypatch, RANKS, Settings(expert_map_path=path))
    ranks = SimpleNamespace(ep_rank=1, stage=lambda count: (1, count, LAYERS))
    monkeypatch.setattr(workers[0].session, "ranks", ranks)
    model = build(workers[0], eplb(expert_map_path=path), 1, RANKS, 2)
    for index, layer in enumerate(map(model.__getitem__, range(len(model.layers)))):
        assert layer._expert_map.tolist() == placement.expert_map(1 + index, 1).tolist()
        assert layer.log2phy.tolist() == placement.log2phy(1 + index, 1).tolist()
        assert layer.global_expert_map.tolist() == placement.global_expert_map(1 + index).tolist()


def test_a_layer_that_is_made_outside_of_a_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _, workers = make_world(monkeypatch, 1, Settings())
    with pytest.raises(EplbConfigError, match="outside of vLLM's initialize_model"):
        fake_ascend.Experts(workers[0], eplb(), 0, RANKS)


# Moving


class Mover:
    """vllm-ascend's D2DExpertWeightLoader and its adaptor, for one layer at a time."""

    def __init__(self, model: Model, rank: int, first: int) -> None:
        self.layer_id = -1
        names = ("w13_weight", "w2_weight", "w13_weight_scale_list")
        params, maps = {}, {}
        for index, layer in enumerate(map(model.__getitem__, range(len(model.layers)))):
            held = layer.held
            by_name = [getattr(held, name) for name in names]
            slots = len(by_name[0])
            params[first + index] = [[tensors[slot] for tensors in by_name] for slot in range(slots)]
            maps[first + index] = layer.global_expert_map[rank].clone()
        self.eplb_adaptor = SimpleNamespace(expert_param_per_layer=params, expert_map_per_layer_cpu=maps)

    def swap(self, layer: int, one: int, other: int, new: torch.Tensor) -> None:
        """Commit another map, and exchange two slots."""
        self.eplb_adaptor.expert_map_per_layer_cpu[layer].copy_(new)
        slots = self.eplb_adaptor.expert_param_per_layer[layer]
        for here, there in zip(slots[one], slots[other], strict=True):
            kept = here.clone()
            here.copy_(there)
            there.copy_(kept)
        self.layer_id = -1


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("fault", [None, "weights", "log2phy"])
def test_moved_slots_are_compared_with_the_new_map(
    fault: str | None, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(dynamic=True, policy="vllm", num_redundant_experts=REDUNDANT, layout="ring")
    world, workers = make_world(monkeypatch, RANKS, settings)
    options = eplb(dynamic_eplb=True, num_redundant_experts=REDUNDANT)

    def one(rank: int) -> Untyped:
        model = build(workers[rank], options, rank, RANKS, LAYERS)
        load(workers[rank], model)
        mover = Mover(model, rank, first)
        for index in range(LAYERS):
            move(workers[rank], model, mover, rank, index, first, fault if index == 1 else None)
        return workers[rank].report(checksums=True)

    found = world.run(one)
    if fault == "weights":
        both_say(found, "after vllm-ascend's rearrangement: slot 0 of MoE layer 1 on rank 1 holds expert")
    elif fault == "log2phy":
        both_say(found, "after vllm-ascend's rearrangement: log2phy of rank 1 sends expert")
    else:
        assert [report["rearrangements"] for report in found] == [1, 1]
        assert [report["wrong_slots"] for report in found] == [[], []]
        assert found[0]["digest"] == found[1]["digest"]
        ring = generate_placement(
            "ring", num_experts=E, ep_size=RANKS, num_redundant_experts=REDUNDANT, num_layers=LAYERS
        )
        wanted = ring.physical_to_logical.copy()
        wanted[:, [0, 1]] = wanted[:, [1, 0]]
        wanted[:, [6, 7]] = wanted[:, [7, 6]]
        assert found[0]["physical_to_logical"] == wanted.tolist()


def move(
    worker: AscendV1, model: Model, mover: Mover, rank: int, index: int, first: int, fault: str | None
) -> None:
    """Exchange the first two slots of each rank, tables and weights; or leave something of it out on rank 1."""
    fault = fault if rank == 1 else None
    layer = model[index]
    old = mover.eplb_adaptor.expert_map_per_layer_cpu[first + index]
    one, other = (old == 0).nonzero()[0, 0], (old == 1).nonzero()[0, 0]
    new = old.clone()
    new[one], new[other] = 1, 0
    log2phy = layer.log2phy.clone()
    turn = {0: 1, 1: 0, 6: 7, 7: 6}
    if fault != "log2phy":
        log2phy = torch.tensor([turn.get(int(slot), int(slot)) for slot in log2phy], dtype=torch.int32)
    layer.log2phy.copy_(log2phy)
    mover.layer_id = first + index

    def commit(_: object, __: object) -> None:
        mover.swap(first + index, 0, 0 if fault == "weights" else 1, new)

    worker._around_move(commit, mover, [])


def test_what_is_not_due_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _, workers = make_world(monkeypatch, 1, Settings())
    assert workers[0]._around_move(lambda *_: "result", SimpleNamespace(layer_id=-1), []) == "result"
    assert workers[0].session.rearrangements == 0


# Our planner


class Updator:
    """vllm-ascend's, as far as a planner needs it."""

    expert_heat_collection_interval, algorithm_execution_interval = 5, 3
    expert_map_record_path = None

    def __init__(self, width: int) -> None:
        draw = torch.Generator().manual_seed(0)
        self.eplb_process = SimpleNamespace(planner_q="theirs", block_update_q="theirs")
        self.adaptor = SimpleNamespace(expert_param_per_layer={0: [[torch.zeros(4)]]})
        self.comm_group = SimpleNamespace(cpu_group=None)
        load = torch.randint(0, 1000, (LAYERS, RANKS, width), generator=draw)
        self.shared_dict = {"moe_load": load}
        self.steps = 0

    def forward_end(self) -> str:
        self.steps += 1
        return "ended"

    def get_update_info_flag(self) -> bool:
        return self.steps == self.expert_heat_collection_interval + self.algorithm_execution_interval - 1


def test_our_planner_stands_in_the_place_of_vllm_ascends_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = ModuleType("vllm.distributed.eplb.policy")
    vars(policy)["AbstractEplbPolicy"] = object
    monkeypatch.setitem(sys.modules, policy.__name__, policy)
    settings = Settings(dynamic=True, num_redundant_experts=REDUNDANT, layout="ring", min_gain=0)
    _, workers = make_world(monkeypatch, RANKS, settings)
    worker = workers[1]
    build(worker, eplb(dynamic_eplb=True, num_redundant_experts=REDUNDANT), 1, RANKS, LAYERS)
    with pytest.raises(wrapping.UpstreamError, match="warm_up_eplb was never called"):
        worker._around_move(lambda *_: None, SimpleNamespace(layer_id=-1), [])
    updator = Updator((E + REDUNDANT) // RANKS)
    assert worker._around_warm_up(lambda _: "warm", updator) == "warm"
    queue: Any = updator.eplb_process.planner_q
    assert updator.eplb_process.block_update_q is queue
    shared: list[int] = []
    share = queue.share

    def note() -> None:
        shared.append(updator.steps)
        share()

    monkeypatch.setattr(queue, "share", note)
    queue.put(1)
    for _ in range(9):
        assert worker._around_forward_end(Updator.forward_end, updator) == "ended"
    # Once, at the end of the step before the one that asks.
    assert shared == [7]
    tasks = queue.get()
    assert [task[-1] for task in tasks] == list(range(LAYERS))
    assert queue.moves
    for layer, (_, received, expert_map, _, _) in enumerate(tasks):
        assert np.array_equal(expert_map, queue.placement.global_expert_map(layer)[1])
        assert {expert for _, expert in received} <= {
            int(expert) for expert in np.nonzero(expert_map >= 0)[0]
        }
    assert worker._around_move(lambda *_: "moved", SimpleNamespace(layer_id=-1), []) == "moved"


def test_a_policy_that_has_no_plan_is_refused_before_weights_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Settings(dynamic=True, num_redundant_experts=REDUNDANT, layout="ring", policy="deepseek")
    _, workers = make_world(monkeypatch, RANKS, settings)

    def refuse(*given: object) -> None:
        assert given[0] == "deepseek"
        raise EplbConfigError

    monkeypatch.setattr(ascend_v1, "check_policy", refuse)
    with pytest.raises(EplbConfigError):
        build(workers[0], eplb(dynamic_eplb=True, num_redundant_experts=REDUNDANT), 0, RANKS, LAYERS)


# Copies


def test_copies_whose_bytes_differ_are_refused_even_where_no_checkpoint_was_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Settings(dynamic=True, policy="vllm", num_redundant_experts=REDUNDANT, layout="ring")
    world, workers = make_world(monkeypatch, RANKS, settings)

    def one(rank: int) -> Untyped:
        model = build(
            workers[rank], eplb(dynamic_eplb=True, num_redundant_experts=REDUNDANT), rank, RANKS, LAYERS
        )
        # As tensors that come from another server: nobody calls the model's load_weights.
        if rank == 1:
            model[2].held.w13_weight_scale.data[0, 1, 0] = 0.5
        workers[rank].finish_loading()

    ring = generate_placement("ring", num_experts=E, ep_size=RANKS, num_redundant_experts=REDUNDANT)
    expert = ring.physical_to_logical[0, 6]
    other = int((ring.physical_to_logical[0] == expert).argmax())
    assert other < 6  # its copy is on the other rank
    both_say(
        world.run(one),
        f"slot 0 of MoE layer 2 on rank 1 differs in w13_weight_scale from slot {other} of rank 0; expected the same "
        f"bytes: both are expert {expert}'s",
    )


def test_dummy_weights_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    world, workers = make_world(
        monkeypatch, RANKS, Settings(dynamic=True, policy="vllm", num_redundant_experts=REDUNDANT)
    )

    def one(rank: int) -> Untyped:
        worker = workers[rank]
        worker.session.config.load_config.load_format = "dummy"
        options = eplb(dynamic_eplb=True, num_redundant_experts=REDUNDANT)
        model = build(worker, options, rank, RANKS, LAYERS)
        model[2].held.w2_weight.data.normal_()
        worker.finish_loading()
        return worker.report(checksums=True)["wrong_slots"]

    assert world.run(one) == [[], []]
