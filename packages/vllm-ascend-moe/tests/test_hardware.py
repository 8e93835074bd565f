# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from expert_maps import generate_placement, read_placement, write_placement
from vllm_ascend_moe import backends, hardware
from vllm_ascend_moe.backends.ascend import checks
from vllm_ascend_moe.cli import app
from vllm_ascend_moe.core.settings import SettingsError
from vllm_ascend_moe.hardware import ReportError, Request, model_digest
from vllm_ascend_moe.hardware_comparison import compare

if TYPE_CHECKING:
    from pathlib import Path

LAYERS, SLOTS = 2, 3


def report(**changes: object) -> dict[str, Any]:
    """What `collect` returns, of two ranks."""
    sums = [[f"{layer}{slot:015x}" for slot in range(SLOTS)] for layer in range(LAYERS)]
    ranks = [
        {
            "ep_rank": rank,
            "physical_to_logical": [[0, 1, 2, 0, 1, 2]] * LAYERS,
            "wrong_slots": [],
            "slot_checksums": sums,
        }
        for rank in range(2)
    ]
    found = {
        "format": hardware.FORMAT,
        "emulated": False,
        "chip": "A3",
        "versions": {"vllm": "0.23.0", "vllm-ascend": "0.23.0", "torch": "2.10.0"},
        "model": {"name": "tiny", "digest": "abc"},
        "request": {"ranks": 2, "dtype": "float32", "max_tokens": 3, "prompts": 2, "map": "def"},
        "ranks": ranks,
        "tokens": [[1, 2, 3], [4, 5, 6]],
        "logprobs": [[-0.1, -0.2, -0.3], [-0.4, -0.5, -0.6]],
    }
    # Nothing in it is the same object twice.
    return dict(json.loads(json.dumps({**found, **changes})))


def test_the_same_is_the_same_whatever_the_model_is_called_and_wherever_it_ran() -> None:
    found = compare(report(), report(emulated=True, chip="A2", model={"name": "other", "digest": "abc"}))
    assert found.differences == []
    assert found.lines == [
        "A3, not emulated: vllm 0.23.0, vllm-ascend 0.23.0",
        "A2, emulated, not hardware: vllm 0.23.0, vllm-ascend 0.23.0",
        "placement: the same on 2 ranks",
        "slots: 12 of 12 hold the same bytes",
        (
            "texts: 2 of 2 are the same; the largest difference of a log-probability until they part is 0.0e+00 (at most 0.001 "
            "is expected in float32)"
        ),
    ]


def changed(path: list[Any], value: object) -> dict[str, Any]:
    found: Any = report()
    inner = found
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return dict(found)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            changed(["ranks", 1, "slot_checksums", 1, 2], "f"),
            "1 of 12 slots hold other bytes: layer 1, rank 1, slot 2",
        ),
        (changed(["ranks", 0, "physical_to_logical", 0, 0], 1), "ranks serve other placements"),
        (changed(["ranks", 1, "wrong_slots"], ["slot 0 holds expert 3"]), "rank 1: slot 0 holds expert 3"),
        (changed(["tokens", 1, 2], 7), "1 of 2 texts differ: prompts 1"),
        (changed(["logprobs", 0, 1], -0.3), "a log-probability differs by 1.0e-01; expected 0.001 at most"),
        (
            changed(["logprobs", 0, 1], float("nan")),
            "a log-probability differs by nan; expected 0.001 at most",
        ),
    ],
)
def test_what_differs_is_named(other: dict[str, Any], said: str) -> None:
    assert compare(report(), other).differences == [said]


def test_where_texts_part_the_choice_itself_is_compared() -> None:
    request = {**report()["request"], "dtype": "bfloat16"}
    one, other = report(request=request), report(request=request)
    # Another first token, and another probability: no rounding.
    other["tokens"][0][0], other["logprobs"][0][0] = 9, -1.5
    assert compare(one, other).differences == ["a log-probability differs by 1.4e+00; expected 0.25 at most"]


@pytest.mark.parametrize(
    "broken",
    [report(request={}), report(ranks=None), report(tokens=[[1]]), report(logprobs=[]), report(ranks=[{}])],
)
def test_what_is_not_whole_is_one_line(broken: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    hardware.write(broken, path)
    hardware.write(report(request=broken["request"]), tmp_path / "other.json")
    result = CliRunner().invoke(app, ["doctor", "compare", str(path), str(tmp_path / "other.json")])
    assert result.exit_code == 2, result.output
    assert result.output.startswith("error: ")


def test_after_texts_have_parted_their_probabilities_say_nothing() -> None:
    request = {**report()["request"], "dtype": "bfloat16"}
    one, other = report(request=request), report(request=request)
    other["tokens"][0][1], other["logprobs"][0][1:] = 9, [-0.21, -6.0]
    found = compare(one, other)
    # In 16 bits another sum may choose another token.
    assert found.differences == []
    assert found.lines[-1].startswith("texts: 1 of 2 are the same")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (report(model={"name": "tiny", "digest": "xyz"}), "of another model each: digest abc against xyz"),
        (changed(["request", "map"], None), "of another request each: map def against None"),
    ],
)
def test_what_was_asked_otherwise_cannot_be_compared(other: dict[str, Any], said: str) -> None:
    with pytest.raises(ReportError, match=said):
        compare(report(), other)


# The command line


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"123")
    return folder


def test_a_model_is_told_by_its_configuration_and_its_files(model: Path) -> None:
    first = model_digest(model)
    (model / "readme.md").write_text("other", encoding="utf-8")
    assert model_digest(model) == first
    (model / "model.safetensors").write_bytes(b"1234")
    assert model_digest(model) != first


def test_two_files_are_compared(tmp_path: Path) -> None:
    one, other = tmp_path / "npu.json", tmp_path / "emulated.json"
    hardware.write(report(), one)
    hardware.write(report(emulated=True), other)
    result = CliRunner().invoke(app, ["doctor", "compare", str(one), str(other)])
    assert (result.exit_code, result.output.splitlines()[-1]) == (0, "the same")
    hardware.write(changed(["tokens", 0, 0], 8), other)
    result = CliRunner().invoke(app, ["doctor", "compare", str(one), str(other)])
    assert (result.exit_code, result.output.splitlines()[-1]) == (1, "differs")
    assert "differs: 1 of 2 texts differ: prompts 0" in result.output


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read as a report"),
        ("{", "cannot be read as a report"),
        ("[]", "has the format 'list'"),
        ('{"format": "other"}', "has the format 'other'; expected 'vllm-ascend-moe report 1'"),
        (json.dumps({"format": hardware.FORMAT}), "lacks model, request, ranks, tokens, logprobs"),
    ],
)
def test_what_is_no_report_is_refused(content: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    result = CliRunner().invoke(app, ["doctor", "compare", str(path), str(path)])
    assert result.exit_code == 2
    assert said in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--model": "."}, "--model is .; expected a checkpoint's folder"),
        ({"--ranks": "0"}, "--ranks is 0; expected at least 1"),
        ({"--max-tokens": "-1"}, "--max-tokens is -1; expected at least 1"),
        ({"--dtype": "int8"}, "--dtype is 'int8'; expected one of float32, bfloat16, float16"),
        ({"--map": "absent.json"}, "absent.json"),
        ({"--output": "absent/report.json"}, "expected a file in a folder that exists"),
    ],
)
def test_what_cannot_be_served_is_refused_before_vllm_is_imported(
    changes: dict[str, str], said: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "vllm", None)
    given = {"--model": str(model), "--output": "report.json", **changes}
    result = CliRunner().invoke(
        app, ["doctor", "collect", *(word for pair in given.items() for word in pair)]
    )
    assert result.exit_code == 2
    assert said in result.output
    assert not (tmp_path / "report.json").exists()


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        (None, "vLLM cannot be imported"),
        (
            ValueError("no architecture\nmore"),
            r"vLLM does not serve .* here (ValueError: no architecture); its log above",
        ),
        (SettingsError("layout is odd"), "layout is odd"),
    ],
)
def test_what_stops_vllm_is_one_line(
    fails: Exception | None, said: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_it(**_: object) -> None:
        assert fails is not None
        raise fails

    vllm = ModuleType("vllm")
    if fails is not None:
        vars(vllm).update(LLM=raise_it, SamplingParams=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    output = tmp_path / "npu.json"
    result = CliRunner().invoke(app, ["doctor", "collect", "--model", str(model), "--output", str(output)])
    assert result.exit_code == 2
    before, _, after = said.partition(".*")
    assert before in result.output
    assert after in result.output
    assert not output.exists()


class Engine:
    """VLLM's, as far as it is asked."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - vLLM's
        self.options = options
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(get_vocab_size=lambda: 100))

    def generate(self, prompts: list[dict[str, list[int]]], sampling: Any, use_tqdm: bool) -> list[Any]:  # noqa: ANN401 - vLLM's
        assert not use_tqdm
        assert all(8 <= token < 100 for prompt in prompts for token in prompt["prompt_token_ids"])
        outputs = []
        for prompt in prompts:
            first = prompt["prompt_token_ids"][0]
            ids = [first] * sampling.max_tokens
            logprobs = [{first: SimpleNamespace(logprob=-0.5)}] * sampling.max_tokens
            outputs.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, logprobs=logprobs)]))
        return outputs

    def collective_rpc(self, method: str, args: tuple[bool]) -> list[dict[str, Any]]:
        assert (method, args) == ("expert_maps_report", (True,))
        settings = {"expert_map_path": "/srv/someone/map.json", "dynamic": False}
        ranks = range(self.options["tensor_parallel_size"])
        return [{**report()["ranks"][rank], "settings": settings} for rank in ranks]


def test_one_file_says_what_was_served(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vllm = ModuleType("vllm")
    vars(vllm).update(LLM=Engine, SamplingParams=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    front = SimpleNamespace(kind="cpu", facts=lambda: SimpleNamespace(release=None))
    monkeypatch.setattr(backends, "front", lambda: front)
    path = tmp_path / "map.json"
    write_placement(generate_placement("ring", num_experts=8, ep_size=2, num_redundant_experts=2), path)
    output = tmp_path / "npu.json"
    words = [
        "doctor",
        "collect",
        "--model",
        str(model),
        "--map",
        str(path),
        "--output",
        str(output),
        "--max-tokens",
        "3",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    found = hardware.read(output)
    assert found["request"] == {
        "ranks": 2,
        "dtype": "float32",
        "max_tokens": 3,
        "prompts": 16,
        "map": read_placement(path).digest,
    }
    assert found["model"] == {"name": "model", "digest": model_digest(model)}
    assert found["emulated"] is False
    assert [len(ids) for ids in found["tokens"]] == [3] * 16
    # No path of anybody's machine is told.
    assert str(tmp_path) not in output.read_text(encoding="utf-8")
    assert "/srv/someone" not in output.read_text(encoding="utf-8")
    assert compare(found, hardware.read(output)).differences == []
    # The same prompts wherever it is run.
    assert hardware.collect(Request(model, path, max_tokens=3))["tokens"] == found["tokens"]


@pytest.mark.parametrize("emulated", [False, True])
def test_what_was_emulated_is_never_called_hardware(
    emulated: bool, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm = ModuleType("vllm")
    vars(vllm).update(LLM=Engine, SamplingParams=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    # The real one knows nothing of the word.
    npu = ModuleType("torch_npu")
    if emulated:
        vars(npu)["IS_EMULATED"] = True
    monkeypatch.setitem(sys.modules, "torch_npu", npu)
    monkeypatch.setattr(checks, "chip", lambda: "A3")
    front = SimpleNamespace(kind="ascend", facts=lambda: SimpleNamespace(release={"vllm-ascend": "0.23.0"}))
    monkeypatch.setattr(backends, "front", lambda: front)
    found = hardware.collect(Request(model))
    assert (found["emulated"], found["chip"]) == (emulated, "A3")
    assert (
        compare(found, found)
        .lines[0]
        .startswith("A3, emulated, not hardware" if emulated else "A3, not emulated")
    )


def test_ten_commands_are_named() -> None:
    result = CliRunner().invoke(app, ["doctor", "--npu"])
    assert result.exit_code == 0
    numbered = [line for line in result.output.splitlines() if line[:2].strip().isdigit()]
    assert len(numbered) == 10
    assert "None" not in result.output
