# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Every form in which expert loads are recorded: a small real example of each, read rightly or refused."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from load_files import ROWS, SLOT_COUNTS, model, sglang, write, write_safetensors

from expert_maps import LoadError, Placement, read_load
from expert_maps.formats.loads import inspect_load

if TYPE_CHECKING:
    from pathlib import Path

# SGLang


def test_sglang_dense_layers_are_left_out_and_said(tmp_path: Path) -> None:
    path = write(tmp_path / "dump.json", sglang([[0] * 4] * 3 + ROWS))
    found = inspect_load(path)
    assert found.load.total.tolist() == ROWS
    assert found.description.startswith("SGLang recorder, 6 layers, 3 of them dense, 4 experts")
    assert (found.form, found.layers, found.warnings) == ("sglang", (3, 4, 5), ())
    steps = write(tmp_path / "steps.json", sglang([[[0] * 4, *ROWS], [[0] * 4, *ROWS]]))
    assert read_load(steps).counts.tolist() == [ROWS, ROWS]
    # By the caller's choice, and without dense layers.
    assert read_load(path, layers="4-5").total.tolist() == ROWS[1:]
    assert inspect_load(write(path, sglang(ROWS))).description == "SGLang recorder, 3 layers, 4 experts"


def test_sglang_layers_by_the_model(tmp_path: Path) -> None:
    path = write(tmp_path / "dump.json", sglang([[0] * 4, ROWS[0], [0] * 4, ROWS[1], [0] * 4, [0] * 4]))
    found = inspect_load(path)
    assert found.load.total.tolist() == ROWS[:2]
    assert "layers 2, 4-5 have no tokens" in found.warnings[0]
    found = inspect_load(path, model=model((1, 3, 5), 6))
    assert found.load.total.tolist() == [*ROWS[:2], [0] * 4]
    assert found.layers == (1, 3, 5)
    assert any("row 2 (layer 5) has no tokens" in text for text in found.warnings)
    with pytest.raises(
        LoadError, match=r"layer 3 has tokens; expected none of a layer that is dense in tiny"
    ):
        read_load(path, model=model((1, 5), 6))
    with pytest.raises(LoadError, match="load has 2 layers; expected 3, as tiny has"):
        read_load(path, model=model((1, 3, 9), 10))
    with pytest.raises(LoadError, match="load has 4 experts; expected 8, as tiny has"):
        read_load(path, model=model((1, 3), 6, experts=8))
    with pytest.raises(LoadError, match="every count is 0"):
        read_load(write(path, sglang([[0] * 4])))


def test_sglang_pt_is_read_by_torch_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "expert_distribution_recorder_1.pt"
    torch.save(sglang(torch.tensor([[[0] * 4, *ROWS]])), path)
    found = inspect_load(path)
    assert found.load.total.tolist() == ROWS
    assert found.description.startswith("SGLang recorder, 4 layers, 1 of them dense")
    np.save(tmp_path / "load.npy", np.array([[0] * 4, *ROWS]))
    assert read_load(tmp_path / "load.npy", format="sglang").total.tolist() == ROWS
    torch.save({"records": [], "last_physical_to_logical_map": torch.zeros(1, 4)}, tmp_path / "detail.pt")
    with pytest.raises(LoadError, match="mode stat"):
        read_load(tmp_path / "detail.pt")
    torch.save(torch.zeros(1).expand(2**40), tmp_path / "large.pt")
    with pytest.raises(LoadError, match=r"shape \[1099511627776\]"):
        read_load(tmp_path / "large.pt")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(LoadError, match=r"torch is not installed here; .* convert it where torch is"):
        read_load(path)


def test_nothing_of_a_pt_file_is_run(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (pytest.fail, ("a file was unpickled",))

    torch.save({"logical_count": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(LoadError, match="not a PyTorch file of plain tensors"):
        read_load(tmp_path / "trap.pt")


def test_sglang_csv_files_of_ranks_are_added(tmp_path: Path) -> None:
    header = "layer_id,expert_id,count\n"
    first = write(tmp_path / "expert_distribution_rank0.csv", header + "4,0,5\n4,1,6\n3,0,1\n3,2,2\n")
    second = write(tmp_path / "expert_distribution_rank1.csv", header + "3,0,10\n3,1,3\n4,2,7\n")
    found = inspect_load([first, second])
    assert found.load.total.tolist() == [[11, 3, 2], [5, 6, 7]]
    assert (found.form, found.layers) == ("sglang-csv", (3, 4))
    assert "2 files of ranks, added" in found.description
    # Alone it lacks experts: how many there are must be said.
    with pytest.raises(LoadError, match=r"layer 3 has no count for expert 1 .*--experts"):
        read_load(first)
    assert read_load(first, num_experts=4).total.tolist() == [[1, 0, 2, 0], [5, 6, 0, 0]]
    bare = write(tmp_path / "bare.csv", "3,0,1\n3,1,2\n4,0,5\n4,1,6\n")
    assert inspect_load(bare).form == "sglang-csv"
    assert read_load(bare).total.tolist() == [[1, 2], [5, 6]]
    for text, message in (
        ("0,0,1\n0,0,2\n", "stands twice"),
        ("0,0,-1\n", "expected a number from 0"),
        ("0,99999999,1\n", "expert id is 99999999"),
        ("9999999,0,1\n", "layer id is 9999999"),
        ("0,x,1\n", "not numbers: line 2 has 'x'; expected layer_id"),
        ("0,0,1\n1,0\n", "line 3 has 2 cells; expected layer_id"),
        ("0,0,x\n", "not numbers: line 2 has 'x'; expected layer_id"),
    ):
        with pytest.raises(LoadError, match=message):
            read_load(write(tmp_path / "bad.csv", header + text))


# By physical slot


def test_slots_of_an_expert_are_added(tmp_path: Path) -> None:
    placement = Placement([[0, 1, 2, 3, 0, 1]], 2, num_logical_experts=4)
    path = tmp_path / "dump.npz"
    np.savez(path, expert_load_pass=np.array([SLOT_COUNTS]))
    assert read_load(path, placement=placement).total.tolist() == [[30, 3, 3, 4]]
    found = inspect_load(path, placement=placement)
    assert found.description == "vLLM EPLB, by physical slot, 1 layer, 4 experts; 6 slots summed by the map"
    with pytest.raises(LoadError, match=r"by physical slot, 1 layer of 6 slots; expected --map MAP"):
        read_load(path)
    np.savez(path, expert_load_window=np.array([[SLOT_COUNTS], [SLOT_COUNTS]]))
    assert read_load(path, placement=placement).counts.tolist() == [[[30, 3, 3, 4]]] * 2
    write(tmp_path / "dump.json", {"expert_load_pass": [SLOT_COUNTS], "expert_load_window": [[SLOT_COUNTS]]})
    with pytest.raises(LoadError, match="choose with --key"):
        read_load(tmp_path / "dump.json", placement=placement)
    assert read_load(tmp_path / "dump.json", "expert_load_pass", placement=placement).num_steps == 1
    # A plain array belongs to slots if there is a map; counts by expert do not.
    np.save(tmp_path / "plain.npy", np.array([SLOT_COUNTS]))
    assert read_load(tmp_path / "plain.npy", placement=placement).total.tolist() == [[30, 3, 3, 4]]
    with pytest.raises(LoadError, match="by logical expert already"):
        read_load(write(tmp_path / "sg.json", sglang(ROWS)), placement=placement)
    with pytest.raises(LoadError, match="1 layer of 5 slots; expected 1 layer of 6 slots"):
        read_load(write(tmp_path / "five.json", [SLOT_COUNTS[:5]]), placement=placement)
    with pytest.raises(LoadError, match="layer 0, slot 1 is -1"):
        read_load(
            write(tmp_path / "x.json", {"expert_load_pass": [[10, -1, 3, 4, 20, 2]]}), placement=placement
        )


def test_vllm_ascend_moe_load_needs_the_map(tmp_path: Path) -> None:
    placement = Placement([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 2, 3]], 2)
    slots = np.array([SLOT_COUNTS, [1, 2, 3, 4, 5, 25]]).reshape(2, 2, 3)
    for step in (0, 2, 10):
        np.save(tmp_path / f"moe_load_{step}.npy", slots * (step + 1))
    expected = [[30, 3, 3, 4], [4, 3, 7, 26]]
    found = inspect_load(tmp_path / "moe_load_0.npy", placement=placement)
    assert found.load.total.tolist() == expected
    assert found.form == "vllm-ascend"
    with pytest.raises(LoadError, match=r"2 layers of 6 slots \(2 ranks of 3\); expected --map MAP"):
        read_load(tmp_path / "moe_load_0.npy")
    # Several are steps, by number and not by name.
    several = read_load([tmp_path / f"moe_load_{step}.npy" for step in (10, 0, 2)], placement=placement)
    assert several.counts[:, 0, 0].tolist() == [30, 90, 330]
    with pytest.raises(LoadError, match="2 ranks of 3 slots; expected 3, as the map has"):
        read_load(tmp_path / "moe_load_0.npy", placement=Placement(placement.physical_to_logical, 3))
    # Under another name its totals give it away: equal over the first axis, not over the second.
    (tmp_path / "moe_load_0.npy").rename(tmp_path / "load.npy")
    with pytest.raises(
        LoadError, match=r"counts by slot \[layers, ranks, slots\].*--format vllm-ascend.*--steps all"
    ):
        read_load(tmp_path / "load.npy")
    assert (
        read_load(tmp_path / "load.npy", format="vllm-ascend", placement=placement).total.tolist() == expected
    )
    assert read_load(tmp_path / "load.npy", steps="all").num_steps == 2
    with pytest.raises(LoadError, match=r"expected \[layers, ranks, slots\]"):
        read_load(write(tmp_path / "two.json", [[1, 2]]), format="vllm-ascend")


def test_arrays_are_recognised_by_their_names_too(tmp_path: Path) -> None:
    for name in ("expert_load_pass.npy", "expert_load_window_3.npy"):
        np.save(tmp_path / name, np.array([[SLOT_COUNTS]]))
        with pytest.raises(LoadError, match="expected --map MAP"):
            read_load(tmp_path / name)
    np.save(tmp_path / "logical_count.npy", np.array([[0] * 4, *ROWS]))
    assert read_load(tmp_path / "logical_count.npy").num_layers == 3
    np.save(tmp_path / "routed_experts_7.npy", np.array([[[0, 1]]]))
    assert read_load(tmp_path / "routed_experts_7.npy", num_experts=2).total.tolist() == [[1, 1]]
    # Dense layers of steps with as many tokens each look like no ranks.
    np.save(tmp_path / "steps.npy", np.array([[[0] * 4, *ROWS], [[0] * 4, *ROWS[::-1]]]))
    assert read_load(tmp_path / "steps.npy").num_steps == 2


def test_omni_placements_are_no_loads(tmp_path: Path) -> None:
    placed = np.zeros((2, 3, 4), dtype=int)
    placed[0, :, :2] = placed[1, :, 2:] = placed[1, :, 0] = 1
    np.save(tmp_path / "omni.npy", placed)
    with pytest.raises(LoadError, match=r"a placement of omni-infer \[ranks, layers, experts\], not a load"):
        read_load(tmp_path / "omni.npy")
    with pytest.raises(LoadError, match="is a map, not a load"):
        read_load(write(tmp_path / "map.json", {"moe_layer_count": 1, "layer_list": []}))


# MindIE, dictionaries, TensorRT-LLM, routed experts


def test_mindie_files_of_ranks_are_joined_in_order(tmp_path: Path) -> None:
    paths = []
    for rank in range(11):
        lines = [f"{100 * step + 10 * layer + rank},{rank}" for step in range(2) for layer in range(3)]
        paths.append(write(tmp_path / f"decode_{rank}.csv", "\n".join(lines)))
    with pytest.raises(LoadError, match=r"MindIE CSV.*expected --moe-layers \(or --model\)"):
        read_load(paths)
    found = inspect_load(sorted(paths), num_layers=3)
    assert found.load.counts.shape == (2, 3, 22)
    assert found.load.counts[1, 2].tolist() == [number for rank in range(11) for number in (120 + rank, rank)]
    assert "11 files of ranks, joined" in found.description
    assert read_load(sorted(paths), model=model((1, 2, 3), 4, 22)).num_layers == 3
    with pytest.raises(LoadError, match="6 lines; expected a multiple of 4 layers"):
        read_load(paths, num_layers=4)
    with pytest.raises(LoadError, match="load has 22 experts; expected 16, as said"):
        read_load(paths, num_layers=3, num_experts=16)
    with pytest.raises(LoadError, match=r"ranks 0, 2; expected each of 0 … 1"):
        read_load([paths[0], paths[2]], num_layers=3)
    write(paths[1], "1,2\n3,4\n5,6\n")
    with pytest.raises(LoadError, match="have 1, 2 steps"):
        read_load(paths[:2], num_layers=3)
    with pytest.raises(LoadError, match="prefill"):
        read_load([paths[0], write(tmp_path / "prefill_1.csv", "1\n2\n3\n")], num_layers=3)
    other = write(tmp_path / "npu.csv", "1,2\n3,4\n5,6\n7,8\n")
    assert read_load(other, format="mindie", num_layers=2).num_steps == 2
    with pytest.raises(LoadError, match="layer 1, local expert 0 is -7"):
        read_load(write(other, "1,2\n-7,4\n"), format="mindie", num_layers=2)


def test_layers_of_experts_are_sorted_by_number(tmp_path: Path) -> None:
    layers = {"10": {"1": 2, "0": 1}, "9": {"0": 3, "1": 0}}
    found = inspect_load(write(tmp_path / "tokens.json", layers))
    assert found.load.total.tolist() == [[3, 0], [1, 2]]
    assert (found.form, found.layers) == ("mindspeed", (9, 10))
    assert "MoE layers 9-10" in found.description
    assert read_load(tmp_path / "tokens.json", layers="10").total.tolist() == [[1, 2]]
    del layers["9"]["1"]
    with pytest.raises(LoadError, match=r"layer 9 has no count for expert 1; .*--experts"):
        read_load(write(tmp_path / "tokens.json", layers))
    assert read_load(tmp_path / "tokens.json", num_experts=3).total.tolist() == [[3, 0, 0], [1, 2, 0]]
    with pytest.raises(LoadError, match="expert id is 1; expected one of 0 … 0"):
        read_load(tmp_path / "tokens.json", num_experts=1)
    for bad, message in (
        ({"0": {"0": "x"}}, "layer 0, expert 0 is 'x'"),
        ({"0": {"0": True}}, "layer 0, expert 0 is True"),
        ({"0": {"4000000000": 1}}, "expected"),
        ({"999999": {"0": 1}}, "layer id is 999999"),
        ({"0": {"0": -1}}, "is -1; expected a number"),
    ):
        with pytest.raises(LoadError, match=message):
            read_load(write(tmp_path / "bad.json", bad))


def test_esft_summaries_are_read_by_tokens(tmp_path: Path) -> None:
    rows = {"1": {"0": 0.25, "1": 0.75}, "2": {"0": 0.75, "1": 0.25}}
    path = write(tmp_path / "summary.json", {"token_scores": rows, "gate_scores": {"1": {"0": 1, "1": 1}}})
    found = inspect_load(path)
    assert found.load.total.tolist() == [[0.25, 0.75], [0.75, 0.25]]
    assert (found.form, found.layers) == ("esft", (1, 2))
    assert "cannot be compared" in found.warnings[0]
    assert read_load(path, "gate_scores").total.tolist() == [[1, 1]]


def test_tensorrt_llm_statistics_are_sorted_and_added_over_ranks(tmp_path: Path) -> None:
    arrays = {f"{step}_{layer}": np.array([step, layer, 0]) for step in (8, 1) for layer in (16, 9)}
    paths = [write_safetensors(tmp_path / f"rank{rank}.safetensors", arrays) for rank in range(2)]
    found = inspect_load(paths)
    assert found.load.counts.tolist() == [[[2, 18, 0], [2, 32, 0]], [[16, 18, 0], [16, 32, 0]]]
    assert (found.form, found.layers) == ("tensorrt-llm", (9, 16))
    assert "iterations 1, 8" in found.description
    with pytest.raises(LoadError, match="there is no array 8_9"):
        read_load(
            write_safetensors(paths[0], {name: array for name, array in arrays.items() if name != "8_9"})
        )
    with pytest.raises(LoadError, match="raw"):
        read_load(write_safetensors(tmp_path / "rank0_raw.safetensors", arrays))
    with pytest.raises(LoadError, match=r"expected one \[E\] for all"):
        read_load(write_safetensors(paths[0], {"0_0": np.array([1, 2]), "0_1": np.array([1])}))
    with pytest.raises(LoadError, match="meta_info"):
        read_load(write(tmp_path / "meta_info.json", {"num_experts": 4, "num_experts_per_token": 2}))
    assert read_load(write_safetensors(paths[0], {"load": np.array(ROWS)})).total.tolist() == ROWS


def test_routed_experts_are_counted_in_windows(tmp_path: Path) -> None:
    ids = np.array([[[0, 0], [0, 1], [3, 2]], [[0, 0], [1, 2], [3, 0]], [[0, 0], [1, 3], [2, 1]]])
    np.savez(tmp_path / "trace.npz", routed_experts=ids)
    with pytest.raises(LoadError, match="expected --experts or --model"):
        read_load(tmp_path / "trace.npz")
    found = inspect_load(tmp_path / "trace.npz", num_experts=4)
    assert found.load.counts.tolist() == [[[1, 3, 1, 1], [1, 1, 2, 2]]]
    assert found.description.startswith("trace of routed experts, 3 layers, 1 of them dense, 4 experts")
    windows = read_load(tmp_path / "trace.npz", num_experts=4, window=2)
    assert windows.counts.tolist() == [[[1, 2, 1, 0], [1, 0, 1, 2]], [[0, 1, 0, 1], [0, 1, 1, 0]]]
    # Requests differ in length; windows go on over them.
    path = write(tmp_path / "trace.json", {"routed_experts": [ids[:1].tolist(), ids[1:].tolist()]})
    assert read_load(path, num_experts=4, window=2).counts.tolist() == windows.counts.tolist()
    assert read_load(path, model=model((1, 2), 3)).total.tolist() == found.load.total.tolist()
    np.save(tmp_path / "trace.npy", ids)
    assert read_load(tmp_path / "trace.npy", format="routed-experts", num_experts=4).num_layers == 2
    for value, message in (
        ([[[0, 4]]], "token 0, layer 0, place 1 is 4; expected one of 0 … 3"),
        ([[[0, -1]]], "is -1; expected one of"),
        ([[[2, 2]]], "expert 2 twice in layer 0"),
        ([[1, 2]], r"expected \[tokens, layers, top_k\]"),
    ):
        with pytest.raises(LoadError, match=message):
            read_load(write(path, {"routed_experts": value}), num_experts=4)
    generator = np.random.default_rng(5)
    many = np.stack([[generator.permutation(8)[:2] for _ in range(3)] for _ in range(20)])
    np.save(tmp_path / "many.npy", many)
    with pytest.raises(LoadError, match=r"looks like expert ids .*--format routed-experts"):
        read_load(tmp_path / "many.npy")
    with pytest.raises(LoadError, match="window is 2; expected it with a trace"):
        read_load(write(path, ROWS), window=2)
