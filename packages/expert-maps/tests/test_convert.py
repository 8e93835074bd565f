# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps convert`, and that what goes from one format to another comes back as it was, or is said to be lost."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import placements
from typer.testing import CliRunner, Result

from expert_maps import FormatError, Placement, write_placement
from expert_maps.cli import mapping
from expert_maps.cli.app import app
from expert_maps.files import Source
from expert_maps.formats import inspect_map, native, omni
from expert_maps.formats.mapfile import MapFile
from expert_maps.formats.writing import ENDINGS, TARGET_NAMES, check_target, encode
from expert_maps.layered import LayeredPlacement, layers_of

if TYPE_CHECKING:
    from pathlib import Path

    from expert_maps.formats.mapfile import Form

PLACEMENT = Placement([[0, 1, 2, 0], [2, 1, 0, 1]], 2)
LAYERED = LayeredPlacement.from_rank_lists([[[0, 1], [2, 3]], [[0, 1, 2], [0, 2, 3]]])


def run(*arguments: object, given: bytes | None = None) -> Result:
    return CliRunner().invoke(app, ["convert", *map(str, arguments)], input=given)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def assert_one_line_error(result: Result, *fragments: str) -> None:
    assert result.exit_code == 2, result.output
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert result.stderr.count("error: ") == 1
    for fragment in fragments:
        assert fragment in last


def sorted_by_expert(placement: Placement) -> Placement:
    rows = [
        [
            expert
            for rank in range(placement.ep_size)
            for expert in sorted(layer.local_experts(0, rank).tolist())
        ]
        for layer in layers_of(placement)
    ]
    return Placement(rows, placement.ep_size, num_logical_experts=placement.num_logical_experts)


@pytest.mark.parametrize("first", TARGET_NAMES)
@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(placements(), st.data())
def test_round_trips_through_every_pair_of_formats(
    first: Form, placement: Placement, data: st.DataObject
) -> None:
    gaps = st.lists(st.integers(1, 3), min_size=placement.num_layers, max_size=placement.num_layers)
    layers = tuple(itertools.accumulate(data.draw(gaps)))
    start = MapFile(placement, "expert-maps", "", layers=layers, num_hidden_layers=layers[-1] + 2)
    for second in TARGET_NAMES:
        found, expected, lost = start, placement, ""
        for form in (first, second):
            encoded = encode(found, form, ENDINGS[form][0])
            lost += "".join(encoded.lost)
            needs_ranks = form in {"sglang", "tensorrt-llm", "vllm", "deepseek"}
            assert needs_ranks == any("the number of ranks" in line for line in encoded.lost)
            found = inspect_map(
                Source(form, encoded.content),
                ep_size=placement.ep_size if needs_ranks else None,
                layers=layers,
                num_hidden_layers=layers[-1] + 2,
            )
            assert found.form == form
        if "omni" in {first, second}:
            expected = sorted_by_expert(placement)
            assert ("order of slots" in lost) == (expected != placement)
        assert (found.placement, found.layers) == (expected, layers), (first, second)


@pytest.mark.parametrize(
    ("form", "ending"),
    [(form, ending) for form in ("vllm", "deepseek", "sglang") for ending in ENDINGS[form]],
)
def test_every_ending_is_read_back(form: Form, ending: str) -> None:
    if ending == ".pt":
        pytest.importorskip("torch")
    start = MapFile(PLACEMENT, "expert-maps", "", layers=(0, 1))
    content = encode(start, form, ending).content
    found = inspect_map(Source("f", content), ep_size=2, layers=(0, 1))
    assert (found.form, found.placement) == (form, PLACEMENT)


def test_layers_that_differ_go_where_they_can_be_said() -> None:
    start = MapFile(LAYERED, "omni", "", layers=(0, 1))
    for form in ("expert-maps", "vllm-ascend", "omni"):
        encoded = encode(start, form, ENDINGS[form][0])
        assert inspect_map(Source("f", encoded.content)).placement == LAYERED
    for form in ("sglang", "tensorrt-llm", "vllm", "deepseek", "golden"):
        with pytest.raises(
            FormatError, match=f"layer 1, rank 0: 3 slots.*; {form} has as many slots in every layer"
        ):
            encode(start, form, ENDINGS[form][0])  # type: ignore[arg-type,index]


def test_what_would_change_the_meaning_is_refused() -> None:
    uneven = MapFile(Placement([[0, 1, 2]], 2, slots_per_rank=[2, 1]), "expert-maps", "", layers=(0,))
    with pytest.raises(FormatError, match="ranks have 1 to 2 slots; vllm has equally many"):
        encode(uneven, "vllm", ".json")
    assert "itself reads only maps whose ranks" in encode(uneven, "vllm-ascend", ".json").lost[-1]
    shared = MapFile(PLACEMENT, "expert-maps", "", layers=(0, 1), num_shared_experts=1)
    for form in ("sglang", "tensorrt-llm", "vllm", "deepseek", "omni", "golden"):
        with pytest.raises(
            FormatError, match=f"the last 1 experts .* are shared ones .*; {form} has no place"
        ):
            encode(shared, form, ENDINGS[form][0])
    assert "that shared experts are mixed in" in encode(shared, "vllm-ascend", ".json").lost[0]
    twice = MapFile(Placement([[0, 0, 1, 2]], 2, allow_duplicates=True), "expert-maps", "")
    with pytest.raises(FormatError, match="layer 0, rank 0: expert 0 stands 2 times there"):
        encode(twice, "omni", ".npy")
    assert omni.unordered(Placement([[1, 0, 2, 3], [0, 1, 3, 2]], 2)) == 2


# the command


def test_from_one_system_to_the_next_and_back(tmp_path: Path) -> None:
    write_placement(PLACEMENT, "map.json", provenance={"command": "plan"})
    result = run("map.json", "eplb.yaml", "--to", "tensorrt-llm", "--layers", "1,3")
    assert (result.exit_code, result.stdout) == (0, "written: eplb.yaml, tensorrt-llm\n")
    assert result.stderr.splitlines() == [
        "map.json: expert-maps file, 2 MoE layers of 4 slots, 3 experts, 2 ranks",
        "warning: tensorrt-llm does not carry how the map was made",
        (
            "warning: tensorrt-llm does not carry the number of ranks, 2: start TensorRT-LLM with an "
            "expert-parallel size of 2; to read it here, give --ep-size 2"
        ),
    ]
    assert (tmp_path / "eplb.yaml").read_text() == (
        "num_slots: 4\ninitial_global_assignments:\n  1: [0, 1, 2, 0]\n  3: [2, 1, 0, 1]\nlayer_updates_per_iter: 0\n"
    )
    result = run("eplb.yaml", "location.json", "--to", "sglang", "--ep-size", 2)
    assert "--ep-size 2 --ep-num-redundant-experts 1" in result.stderr
    assert "written for a model of 4 layers" in result.stderr
    assert "2 of 4 rows are of dense layers" in result.stderr
    assert json.loads((tmp_path / "location.json").read_text()) == {
        "physical_to_logical_map": [[0, 1, 2, 0], [0, 1, 2, 0], [0, 1, 2, 0], [2, 1, 0, 1]]
    }
    assert (
        run("location.json", "own.json", "--to", "expert-maps", "--ep-size", 2, "--layers", "1,3").exit_code
        == 0
    )
    found = inspect_map("own.json")
    assert (found.placement, found.layers, found.num_hidden_layers) == (PLACEMENT, (1, 3), 4)
    assert found.provenance["converted_from"] == "sglang"
    result = run("own.json", "map.json", "--to", "vllm-ascend")
    assert result.stdout == "written: map.json (replaced), vllm-ascend\n"
    assert "how the map was made, the layers' absolute numbers" in result.stderr


def test_a_model_says_layers_and_experts(tmp_path: Path) -> None:
    config = {
        "model_type": "deepseek_v3",
        "num_hidden_layers": 5,
        "n_routed_experts": 3,
        "first_k_dense_replace": 3,
        "moe_layer_freq": 1,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_placement(PLACEMENT, "map.json")
    result = run("map.json", "location.json", "--to", "sglang", "--model", "config.json")
    assert result.exit_code == 0, result.stderr
    assert "written for a model" not in result.stderr
    assert len(json.loads((tmp_path / "location.json").read_text())["physical_to_logical_map"]) == 5
    back = run("location.json", "own.json", "--to", "expert-maps", "--model", "config.json", "--ep-size", 2)
    assert back.exit_code == 0, back.stderr
    assert "dense layers left out: 0-2" in back.stderr
    assert inspect_map("own.json").model == "config.json"
    for options, fragment in (
        (("--experts", 4), "--experts is 4; expected 3, as --model config.json has"),
        (("--layers", "0-1"), "--layers is 0-1; --model config.json has other MoE layers"),
    ):
        assert_one_line_error(
            run("map.json", "x.json", "--to", "sglang", "--model", "config.json", *options), fragment
        )


def test_standard_input_and_output() -> None:
    text = native.dumps(PLACEMENT).encode()
    result = run("-", "-", "--to", "vllm-ascend", given=text)
    assert result.exit_code == 0
    assert inspect_map(Source("out", result.stdout_bytes)).placement == PLACEMENT
    assert "standard input: expert-maps file" in result.stderr
    assert "written: standard output, vllm-ascend" in result.stderr
    pattern = run("-", "-", "--to", "omni", given=text).stdout_bytes
    assert inspect_map(Source("out", pattern)).form == "omni"
    assert_one_line_error(
        run("-", "-", "--to", "omni", given=b""), "standard input: not valid JSON: the file is empty"
    )


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (("map.json", "map.json", "--to", "vllm-ascend"), "OUT map.json is the file that is read as IN"),
        (("map.json", "link.json", "--to", "vllm-ascend"), "OUT link.json is the file that is read as IN"),
        (("map.json", "out.txt", "--to", "sglang"), "ends in .json or .pt for sglang"),
        (
            ("map.json", "out.json", "--to", "nccl"),
            "--to is 'nccl'; expected one of expert-maps, vllm-ascend",
        ),
        (("map.json", "out.yaml", "--to", "tensorrt-llm"), "give --model or --layers"),
        (("map.json", "out.json", "--to", "sglang"), "give --model or --layers"),
        (("map.json", "out.json", "--to", "golden", "--layers", "3-9"), "has 2 rows"),
        (("map.json", "out.json", "--to", "golden", "--from", "x"), "--from is 'x'"),
        (("map.json", "out.json", "--to", "golden", "--ep-size", "8"), "has 2 ranks; expected 8"),
        (("map.json", "no/out.json", "--to", "golden"), "there is no folder"),
        (("absent.json", "out.json", "--to", "golden"), "absent.json"),
        (("location.json", "out.json", "--to", "golden"), "the file does not say how many ranks"),
        (
            ("location.json", "out.json", "--to", "golden", "--ep-size", 2),
            "dense ones too, and golden has MoE",
        ),
        (
            ("location.json", "out.json", "--to", "expert-maps", "--ep-size", 2),
            "and expert-maps has MoE layers only",
        ),
        (
            ("bad.json", "out.json", "--to", "golden"),
            "invalid placement: layer 0, rank 0, slot 0: expert 1 is out of range",
        ),
    ],
)
def test_what_cannot_be_told_or_written_is_one_line(
    tmp_path: Path, arguments: tuple[object, ...], fragment: str
) -> None:
    write_placement(PLACEMENT, "map.json")
    (tmp_path / "link.json").symlink_to("map.json")
    (tmp_path / "location.json").write_text('{"physical_to_logical_map": [[0, 1, 2, 0]]}')
    device = {"device_id": 0, "device_expert": [1]}
    layer = {"layer_id": 0, "device_count": 1, "device_list": [device]}
    (tmp_path / "bad.json").write_text(json.dumps({"moe_layer_count": 1, "layer_list": [layer]}))
    before = sorted(path.name for path in tmp_path.iterdir())
    assert_one_line_error(run(*arguments), fragment)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert inspect_map("map.json").placement == PLACEMENT


def test_sglang_rows_that_nobody_explains_go_back_to_sglang_only(tmp_path: Path) -> None:
    text = '{"physical_to_logical_map": [[0, 1, 2, 3], [3, 2, 1, 0]]}'
    (tmp_path / "a.json").write_text(text)
    result = run("a.json", "b.json", "--to", "sglang", "--ep-size", 2)
    assert result.exit_code == 0
    assert "warning: a.json" in result.stderr
    assert json.loads((tmp_path / "b.json").read_text()) == json.loads(text)


def test_json_tells_what_was_done(tmp_path: Path) -> None:
    write_placement(PLACEMENT, "map.json", layers=(1, 3))
    told = json.loads(run("map.json", "out.npz", "--to", "vllm", "--json").stdout)
    assert told["from"] == "expert-maps"
    assert (told["to"], told["layers"], told["replaced"]) == ("vllm", [1, 3], False)
    assert told["digest"] == PLACEMENT.digest
    assert len(told["warnings"]) == 2
    assert set(np.load(tmp_path / "out.npz")) == {
        "physical_to_logical_map",
        "logical_to_physical_map",
        "logical_replica_count",
    }


def test_a_file_changed_by_hand_is_written_anew_when_asked(tmp_path: Path) -> None:
    write_placement(PLACEMENT, "map.json")
    text = (tmp_path / "map.json").read_text().replace("[2, 1]", "[1, 2]")
    (tmp_path / "map.json").write_text(text)
    assert_one_line_error(run("map.json", "new.json", "--to", "expert-maps"), "--ignore-digest")
    assert run("map.json", "new.json", "--to", "expert-maps", "--ignore-digest").exit_code == 0
    assert inspect_map("new.json").placement == Placement([[0, 1, 2, 0], [1, 2, 0, 1]], 2)


def test_the_schema_is_printed() -> None:
    assert json.loads(run("--schema").stdout) == native.schema()


def test_targets_are_checked_by_name_and_ending() -> None:
    assert check_target("sglang", "a/b.pt") == ("sglang", ".pt")
    assert check_target("omni", "-") == ("omni", ".npy")
    with pytest.raises(FormatError, match="expected one of"):
        check_target("vllm-plugin-das", "a.json")


# reading for the other commands


def test_commands_read_maps_by_their_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"physical_to_logical_map": [[2, 2, 2, 2], [0, 1, 2, 0]]}
    (tmp_path / "map.json").write_text(json.dumps(rows))
    said = mapping.MapOptions(ep_size=2, layers="1", experts=3)
    found = mapping.read_any_map("map.json", said)
    assert mapping.alike(found, "map.json") == Placement([[0, 1, 2, 0]], 2)
    assert capsys.readouterr().err == ""
    np.save("omni.npy", omni.pattern(LAYERED))
    assert mapping.read_any_map("omni.npy").placement == LAYERED
    with pytest.raises(
        ValueError, match=r"omni.npy \(in .*\): invalid placement: layer 1, rank 0: 3 slots.*evaluate"
    ):
        mapping.alike(mapping.read_any_map("omni.npy"), "omni.npy")
