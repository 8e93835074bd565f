# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`rehearse`: what it refuses before anything starts, and how its outcome is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from expert_maps import generate_placement, write_placement
from harness.ascend import __main__ as command
from harness.ascend import engine, page, rehearse
from harness.ascend.case import Case
from harness.ascend.judging import Judged
from harness.ascend.models import TINY_MOE
from harness.ascend.prompts import PromptsError, prompts_for, read_prompts
from harness.ascend.served import Served
from harness.ascend.session import Row
from vllm_ascend_moe import releases

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.ascend.tables import Experts

ROOT = Path(__file__).parents[2]
EXPERTS = 16
BYTES: Experts = {0: {expert: f"bytes {expert}" for expert in range(EXPERTS)}}
RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def map_file(tmp_path: Path) -> Path:
    path = tmp_path / "map.json"
    placement = generate_placement(
        "ring", num_experts=EXPERTS, ep_size=2, num_redundant_experts=4, num_layers=4
    )
    write_placement(placement, path)
    return path


def _inspection(rows: list[list[int]], *, wrong: bool = False) -> list[dict[str, Any]]:
    workers = []
    for rank, row in enumerate(rows):
        local = [row.index(expert) if expert in row else -1 for expert in range(EXPERTS)]
        slots = [f"bytes {expert}" for expert in row]
        if wrong and rank == 1:
            slots[0] = "bytes 3"
        workers.append(
            {"ep_rank": rank, "layers": [{"layer": 0, "expert_map": local, "log2phy": None, "slots": slots}]}
        )
    return workers


LINEAR = [list(range(8)), list(range(8, 16))]
PLANNED = [[*range(8), 8, 9], [*range(8, 16), 0, 1]]


class Engines:
    """Stands in for two engines: one without the map, one with it."""

    def __init__(self, with_map: Served, without: Served | None = None) -> None:
        tokens = [{"tokens": [[1, 2], [3, 4]], "logprobs": None, "seconds": 1.0}]
        self.without = without or Served(tokens, [_inspection(LINEAR)] * 2)
        self.with_map = with_map
        self.configs: list[Any] = []

    def serve(self, request: Mapping[str, Any], folder: Path, variables: Mapping[str, str]) -> Served:
        config = request["engine"].get("additional_config")
        self.configs.append((folder.name, config, variables))
        return self.without if config is None else self.with_map


def _start(monkeypatch: pytest.MonkeyPatch, engines: Engines) -> None:
    monkeypatch.setattr(rehearse, "stage", lambda _release, _root: None)
    monkeypatch.setattr(engine, "serve", engines.serve)
    monkeypatch.setattr(
        engine, "environment", lambda _staged, _chip, _folder, *, plugin: {"plugin": str(plugin)}
    )


def _served(tokens: list[list[int]], *, wrong: bool = False) -> Served:
    rounds = [{"tokens": tokens, "logprobs": None, "seconds": 1.0}]
    answers = [_inspection(PLANNED), _inspection(PLANNED, wrong=wrong)]
    return Served(rounds, answers, names=("npu.npu_moe_distribute_dispatch_v2",))


def _rehearse(*arguments: str) -> Any:  # noqa: ANN401 - click's
    return RUNNER.invoke(command.app, ["rehearse", *arguments])


def test_a_right_map_exits_with_0(monkeypatch: pytest.MonkeyPatch, map_file: Path, tmp_path: Path) -> None:
    engines = Engines(_served([[1, 2], [3, 4]]))
    _start(monkeypatch, engines)
    result = _rehearse("--map", str(map_file), "--output", str(tmp_path / "outcome.json"))
    assert result.exit_code == 0, result.output
    assert "emulated, not hardware" in result.output
    assert "texts: 2 of 2 equal" in result.output
    assert "path: MC2" in result.output
    told = json.loads((tmp_path / "outcome.json").read_text(encoding="utf-8"))
    assert told["verdict"] == "right"
    assert told["emulated"] is True
    assert engines.configs[1][1] == {"expert_maps": {"expert_map_path": str(map_file)}}
    assert [each[2]["plugin"] for each in engines.configs] == ["False", "True"]


def test_wrong_texts_and_slots_exit_with_1(monkeypatch: pytest.MonkeyPatch, map_file: Path) -> None:
    _start(monkeypatch, Engines(_served([[1, 2], [3, 5]], wrong=True)))
    result = _rehearse("--map", str(map_file))
    assert result.exit_code == 1
    assert "wrong: 1 of 2 texts differ from those without the map: prompts 1" in result.output
    assert (
        "wrong: after serving: layer 0, rank 1, slot 0: expert_map names expert 8, but it holds expert 3"
        in (result.output)
    )


def test_a_refusal_exits_with_2_and_says_why(monkeypatch: pytest.MonkeyPatch, map_file: Path) -> None:
    _start(monkeypatch, Engines(Served(refused="EplbConfigError: AllGather reads physical ids")))
    result = _rehearse("--map", str(map_file), "--chip", "A2")
    assert result.exit_code == 2
    assert "refused: EplbConfigError: AllGather reads physical ids" in result.output


def test_a_crash_is_wrong_not_refused(monkeypatch: pytest.MonkeyPatch, map_file: Path) -> None:
    engines = Engines(Served(failed="IndexError: index 17 is out of bounds"))
    _start(monkeypatch, engines)
    result = _rehearse("--map", str(map_file), "--chip", "A2", "--without-plugin")
    assert result.exit_code == 1
    assert "it does not serve: IndexError: index 17" in result.output
    assert engines.configs[1][1] == {"eplb_config": {"expert_map_path": str(map_file)}}
    assert engines.configs[1][2] == {"plugin": "False"}


def test_a_model_that_does_not_serve_at_all_is_bad_input(
    monkeypatch: pytest.MonkeyPatch, map_file: Path
) -> None:
    _start(monkeypatch, Engines(_served([[1]]), without=Served(failed="no memory")))
    result = _rehearse("--map", str(map_file))
    assert result.exit_code == 2
    assert "without a map either: no memory" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--chip", "A9"], "--chip is 'A9'; expected A2 or A3"),
        (["--release", "0.1"], "--release is '0.1'; expected newest or one of 0.18.0"),
        (["--ranks", "1"], "--ranks is 1; expected 2 to 16"),
        (["--ranks", "4"], "is a map for 2 ranks, and --ranks is 4"),
        (["--model", "no/such"], "config.json cannot be read (No such file or directory)"),
        (["--prompts", "no/such"], "no/such cannot be read: No such file or directory"),
    ],
)
def test_bad_input_starts_nothing(
    monkeypatch: pytest.MonkeyPatch, map_file: Path, arguments: list[str], said: str
) -> None:
    engines = Engines(_served([[1, 2], [3, 4]]))
    _start(monkeypatch, engines)
    result = _rehearse("--map", str(map_file), *arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert engines.configs == []


def test_a_map_of_other_experts_is_bad_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _start(monkeypatch, Engines(_served([[1]])))
    path = tmp_path / "map.json"
    write_placement(generate_placement("linear", num_experts=8, ep_size=2), path)
    result = _rehearse("--map", str(path))
    assert result.exit_code == 2
    assert "is a map for 8 experts; expected 16" in " ".join(result.output.split())


def test_a_model_of_ones_own_needs_a_map(monkeypatch: pytest.MonkeyPatch) -> None:
    _start(monkeypatch, Engines(_served([[1]])))
    result = _rehearse("--model", "accuracy/tiny-deepseek")
    assert result.exit_code == 2
    assert "--model is given without --map" in " ".join(result.output.split())


def test_an_output_that_cannot_be_written_starts_nothing(
    monkeypatch: pytest.MonkeyPatch, map_file: Path, tmp_path: Path
) -> None:
    engines = Engines(_served([[1, 2], [3, 4]]))
    _start(monkeypatch, engines)
    result = _rehearse("--map", str(map_file), "--output", str(tmp_path / "no" / "outcome.json"))
    assert result.exit_code == 2
    assert engines.configs == []


def test_without_the_plugin_newer_releases_are_told_the_redundancy(map_file: Path) -> None:
    trial = rehearse.Trial(releases.NEWEST, "A3", 2, TINY_MOE, map_file, ["a"], plugin=False)
    config = {"eplb_config": {"expert_map_path": str(map_file), "num_redundant_experts": 4}}
    assert rehearse._config(trial, map_file) == config


def test_prompts_are_the_models_own_questions() -> None:
    prompts = prompts_for(ROOT / TINY_MOE)
    assert len(prompts) == 16
    assert all(prompts)
    assert prompts_for(ROOT) != prompts


def test_prompts_are_read(tmp_path: Path) -> None:
    text = tmp_path / "prompts.txt"
    text.write_text("one\n\ntwo\n", encoding="utf-8")
    assert read_prompts(text) == ["one", "two"]
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"prompt": "one"}\n{"question": "two"}\n"three"\n', encoding="utf-8")
    assert read_prompts(lines) == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", "{", "line 1: no JSON"),
        ("a.jsonl", '{"text": "a"}', "line 1: prompt is None; expected a text"),
        ("a.jsonl", "[1]", "line 1: prompt is .1.; expected a text"),
        ("a.jsonl", "[" * 100_000, "line 1: no JSON"),
        ("a.txt", "", "has 0 prompts; expected 1 to 4096"),
        ("a.txt", "a\n" * 5000, "has 5000 prompts"),
    ],
)
def test_bad_prompts_are_named(tmp_path: Path, name: str, content: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(PromptsError, match=said):
        read_prompts(path)


def test_prompts_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PromptsError, match="cannot be read"):
        read_prompts(path)


CASE = Case("static map", TINY_MOE, "A3")


def test_the_page_is_written_between_its_marks(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    lacks = "The table is of a run before some cases: those of tomorrow.\n\n"
    path.write_text(f"before\n\n{lacks}{page.BEGIN}\nold\n{page.END}\nafter\n", encoding="utf-8")
    right = Judged(equal=(16, 16), slots=160, paths=("MC2",), seconds=21.3)
    refused = Row("0.26.0rc1", replace(CASE, expected="refused"), Judged(refused="EplbConfigError: no"))
    other = Row("0.26.0rc1", replace(CASE, name="inactive", chip="A2"), Judged(equal=(16, 16), seconds=9))
    page.write([Row("0.23.0", CASE, right), refused, other], path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "before"
    assert lines[-1] == "after"
    assert lines[3:7] == [
        "| served | chip | model | 0.23.0 | 0.26.0rc1 |",
        "| --- | --- | --- | --- | --- |",
        "| static map | A3 | tiny-moe | 16 of 16; 160; 21 s (MC2) | refused; 0 s |",
        "| inactive | A2 | tiny-moe | – | 16 of 16; –; 9 s (–) |",
    ]
    assert "old" not in lines
    assert not any("tomorrow" in line for line in lines)
    path.write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="has no <!-- emulated: begin"):
        page.write([], path)


def test_a_failed_case_is_shown_as_failed() -> None:
    failed = Row("0.23.0", CASE, Judged(problems=["1 of 2 texts differ"]))
    assert page.cells(failed)[5:7] == ("FAILED", "1 of 2 texts differ")
    refused = Row("0.23.0", replace(CASE, expected="refused"), Judged(refused="EplbConfigError: no"))
    assert page.cells(refused)[5] == "refused"


def test_the_page_is_there_with_its_marks() -> None:
    text = (Path(__file__).parents[2] / page.PAGE).read_text(encoding="utf-8")
    assert text.index(page.BEGIN) < text.index(page.END)
