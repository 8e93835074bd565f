# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps load`, and how every command reads a load: what is said where, and what is refused."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from expert_maps import Placement, read_load, read_placement, write_placement
from expert_maps.cli.app import app
from expert_maps.cli.loading import FORMS
from expert_maps.formats.loads import FORM_NAMES

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [[30, 3, 3, 4], [10, 10, 10, 10]]
DUMP = {"rank": 0, "logical_count": [[0] * 4, *ROWS]}


def run(*arguments: object, stdin: str | bytes = "") -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def assert_one_line_error(result: Result, *fragments: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    for fragment in fragments:
        assert fragment in result.stderr


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dump.json").write_text(json.dumps(DUMP))


def test_the_forms_of_the_help_are_those_of_the_readers() -> None:
    assert tuple(FORMS) == FORM_NAMES


def test_what_was_recognised_is_said_on_standard_error() -> None:
    result = run("load", "dump.json")
    assert result.exit_code == 0
    assert result.stderr == (
        "dump.json: SGLang recorder, 3 layers, 1 of them dense, 4 experts; MoE layers 1-2; dense are 0\n"
    )
    assert result.stdout.splitlines() == [
        "shape: 1 step × 2 layers × 4 experts",
        "tokens of a layer: 40 to 40, 80 in all",
        "hottest expert over mean: 1.000 to 3.000, mean 2.000",
        "hottest of all: row 0 (layer 1), expert 0, 30 tokens",
        "experts without a token: 0 of 8",
    ]


def test_json_holds_all_of_it() -> None:
    document = json.loads(run("load", "dump.json", "--json", "--layers", "0-1").stdout)
    assert document == {
        "files": ["dump.json"],
        "form": "sglang",
        "description": "SGLang recorder, 2 of 3 layers, 4 experts",
        "num_steps": 1,
        "num_layers": 2,
        "num_experts": 4,
        "layers": [0, 1],
        "layer_totals": [0.0, 40.0],
        "hottest_expert": [0, 0],
        "peak_to_mean": [1.0, 3.0],
        "warnings": ["layer 0 has no tokens; leave dense layers out with --layers or --model"],
        "output": None,
        "replaced": False,
    }


def test_warnings_are_lines_of_their_own() -> None:
    result = run("load", "dump.json", "--layers", "0-2")
    assert result.exit_code == 0
    assert result.stderr.splitlines()[1].startswith("warning: dump.json: layer 0 has no tokens")


def test_standard_input_and_several_files(tmp_path: Path) -> None:
    result = run("load", "-", stdin=json.dumps(DUMP))
    assert result.stderr.startswith("standard input: SGLang recorder, 3 layers, 1 of them dense")
    (tmp_path / "more.json").write_text(json.dumps(DUMP))
    result = run("load", "dump.json", "more.json", "--files", "ranks")
    assert result.stderr.startswith("dump.json and 1 more: SGLang recorder")
    assert "80 to 80, 160 in all" in result.stdout
    assert_one_line_error(run("load", "-", "-"), "LOAD is '-' twice")
    assert_one_line_error(
        run("load", "dump.json", "--files", "cards"), "--files is 'cards'", "expected one of ranks, steps"
    )


@pytest.mark.parametrize("name", ["out.npz", "out.npy", "out.json", "out.csv"])
def test_a_load_is_converted(tmp_path: Path, name: str) -> None:
    result = run("load", "dump.json", "--output", name)
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith(f"\nwritten: {name}\n")
    assert read_load(tmp_path / name).total.tolist() == ROWS
    assert run("load", "dump.json", "-o", name).stdout.endswith(f"\nwritten: {name} (replaced)\n")
    assert json.loads(run("load", "dump.json", "-o", name, "--json").stdout)["output"] == name


def test_inputs_are_never_written_over(tmp_path: Path) -> None:
    before = (tmp_path / "dump.json").read_text()
    (tmp_path / "link.json").symlink_to("dump.json")
    for name in ("dump.json", "./dump.json", "link.json"):
        assert_one_line_error(run("load", "dump.json", "-o", name), "is the file that is read as")
    assert_one_line_error(run("load", "dump.json", "-o", "out.txt"), "ends in .npz or .npy or .json or .csv")
    assert_one_line_error(run("load", "dump.json", "-o", "none/out.npz"), "there is no folder")
    assert (tmp_path / "dump.json").read_text() == before
    assert {path.name for path in tmp_path.iterdir()} == {"dump.json", "link.json"}


@pytest.mark.parametrize("name", ["map.npz", "map.yaml"])
def test_a_map_of_slots_need_not_say_its_ranks(tmp_path: Path, name: str) -> None:
    placement = Placement([[0, 1, 2, 3, 0, 1]], 2)
    write_placement(placement, tmp_path / "map.json")
    form = "vllm" if name.endswith("npz") else "tensorrt-llm"
    assert run("convert", "map.json", name, "--to", form, "--layers", "0").exit_code == 0
    np.save("moe_load_0.npy", np.array([10, 1, 3, 4, 20, 2]).reshape(1, 2, 3))
    for given, path in (("", name), ((tmp_path / name).read_bytes(), "-")):
        result = run("load", "moe_load_0.npy", "--map", path, "-o", "load.json", stdin=given)
        assert result.exit_code == 0, result.output
        assert json.loads((tmp_path / "load.json").read_text())["load"] == [[30, 3, 3, 4]]


def test_a_map_without_the_order_of_slots_names_no_count(tmp_path: Path) -> None:
    write_placement(Placement([[2, 1, 0, 3, 0, 1]], 2), tmp_path / "map.json")
    assert run("convert", "map.json", "map.npy", "--to", "omni").exit_code == 0
    np.save("moe_load_0.npy", np.array([10, 1, 3, 4, 20, 2]).reshape(1, 2, 3))
    assert_one_line_error(
        run("load", "moe_load_0.npy", "--map", "map.npy"), "map.npy", "does not keep the order of slots"
    )


def test_counts_by_slot_are_read_by_their_map(tmp_path: Path) -> None:
    write_placement(Placement([[0, 1, 2, 3, 0, 1]], 2), tmp_path / "map.json")
    np.save(tmp_path / "moe_load_0.npy", np.array([10, 1, 3, 4, 20, 2]).reshape(1, 2, 3))
    assert_one_line_error(run("load", "moe_load_0.npy"), "by physical slot", "--map MAP")
    assert run("load", "moe_load_0.npy", "--map", "map.json", "-o", "load.json").exit_code == 0
    assert json.loads((tmp_path / "load.json").read_text()) == {"load": [[30, 3, 3, 4]]}
    assert_one_line_error(
        run("load", "moe_load_0.npy", "--map", "map.json", "-o", "map.json"), "is the file that is read as"
    )


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (("--model", "deepseek-v3"), ("expected 58, as deepseek-v3 has",)),
        (("--experts", 8), ("load has 4 experts; expected 8, as said",)),
        (("--moe-layers", 3), ("load has 2 layers; expected 3, as said",)),
        (("--format", "sgl"), ("format is 'sgl'", "sglang")),
        (("--format", "csv"), ("not CSV but json",)),
        (("--key", "count"), ("there is no array 'count'",)),
        (("--steps", "1-2"), ("the file has 1",)),
        (("--layers", "9"), ("layer 9 is not in the file; it has 0-2",)),
        (("--map", "none.json"), ("none.json", "no such file")),
    ],
)
def test_what_does_not_fit_is_one_line(arguments: tuple[object, ...], fragments: tuple[str, ...]) -> None:
    for command in (("load",), ("plan", "--physical", 4, "--ep-size", 2)):
        assert_one_line_error(run(command[0], "dump.json", *command[1:], *arguments), *fragments)


def test_plan_reads_the_same_and_says_it(tmp_path: Path) -> None:
    result = run("plan", "dump.json", "--physical", 6, "--ep-size", 2, "--output", "map.json")
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("dump.json: SGLang recorder, 3 layers, 1 of them dense, 4 experts")
    assert read_placement(tmp_path / "map.json").num_layers == 2
    # An error that comes later stands alone.
    assert_one_line_error(run("plan", "dump.json", "--physical", 3, "--ep-size", 2), "--physical is 3")


def test_warnings_name_layers_by_row_and_as_the_file_does(tmp_path: Path) -> None:
    rows = [[0] * 4, *ROWS, [0] * 4, ROWS[0]]
    (tmp_path / "hole.json").write_text(json.dumps({"logical_count": rows}))
    config = {
        "model_type": "deepseek_v2",
        "num_hidden_layers": 5,
        "n_routed_experts": 4,
        "first_k_dense_replace": 1,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    for said in (("--model", "config.json"), ("--layers", "1-4")):
        told = run("load", "hole.json", *said).stderr
        assert "warning: hole.json: row 2 (layer 3) has no tokens" in told


def test_empty_and_doubly_packed_files_are_named_as_such(tmp_path: Path) -> None:
    content = gzip.compress(gzip.compress(b"[[1, 2], [3, 4]]", mtime=0), mtime=0)
    (tmp_path / "twice.json.gz").write_bytes(content)
    assert_one_line_error(run("load", "twice.json.gz"), "compressed twice by gzip; expected once at most")
    for name, empty in (
        ("a.csv", b""),
        ("a.json", b" \n"),
        ("a.npy", b""),
        ("a", b""),
        ("a.csv.gz", gzip.compress(b"", mtime=0)),
    ):
        (tmp_path / name).write_bytes(empty)
        assert_one_line_error(run("load", name), "the file is empty; expected a load")
    assert_one_line_error(run("load", "-", stdin=b""), "standard input: the file is empty")


def test_what_is_out_of_bounds_is_named_in_the_units_of_the_option(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.array([[5], [5]]))
    for option in ("--experts", "--moe-layers", "--window"):
        assert_one_line_error(
            run("load", "one.npy", option, 0), f"{option} is '0'; expected a number of at least 1"
        )
    for said, words in (
        ("5", "steps are 5; the file has 1 step, 0"),
        ("0-3", "steps are 0-3; the file has 1 step"),
    ):
        assert_one_line_error(run("load", "one.npy", "--steps", said), words)
    assert "there is 1 expert in a layer: nothing to balance" in run("load", "one.npy").stderr
    assert "one slot more" not in run("plan", "one.npy", "--ep-size", 1).stdout
    (tmp_path / "twice.csv").write_text("layer_id,expert_id,count\n2,0,5\n2,1,5\n2,1,5\n")
    assert_one_line_error(
        run("load", "twice.csv"), "layer 2, expert 1 stands twice; expected one file for each rank"
    )
    (tmp_path / "few.csv").write_text("layer_id,expert_id,count\n2,0,5\n3,1,5\n2,1,4\n")
    assert_one_line_error(run("load", "few.csv"), "layer 3 has no count for expert 0; expected all")
