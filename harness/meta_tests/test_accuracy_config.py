# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The configurations that are kept are valid, and each way to break one is told apart."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_server import reports

from expert_maps import ExpertMapsError, generate_placement
from harness.accuracy.arms import EXPERT_MAPS
from harness.accuracy.checks import parse_base_urls
from harness.accuracy.config import BASELINE, ConfigError
from harness.accuracy.data import find_data
from harness.accuracy.loading import load_config, parse_config
from harness.accuracy.proof import agree, require_arm

ROOT = Path(__file__).resolve().parents[2]
KEPT = sorted((ROOT / "accuracy" / "models").glob("*.yaml"))
SMALL: dict[str, Any] = {
    "name": "small",
    "model": "nowhere",
    "dtype": "float32",
    "task": {"name": "gsm8k", "dataset": "problems", "num_fewshot": 0, "max_tokens": 8},
    "expected": {"accuracy": None, "reason": "a test"},
    "arms": {
        "baseline": {"role": "baseline", "record_load": True},
        "eplb": {"role": "eplb", "plan": {"load_of": "baseline", "num_redundant_experts": 2, "ep_size": 2}},
    },
}


def changed(*path: str, value: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    document = copy.deepcopy(SMALL)
    place = document
    for name in path[:-1]:
        place = place.setdefault(name, {})
    place[path[-1]] = value
    return document


def test_what_is_broken_below_is_whole() -> None:
    assert list(parse_config(SMALL, "small").arms) == ["baseline", "eplb"]


def test_the_models_that_are_asked_for_are_there() -> None:
    assert {path.stem for path in KEPT} >= {
        "tiny-moe",
        "tiny-deepseek",
        "deepseek-r1-w8a8",
        "qwen3-235b-a22b",
        "qwen3-30b-a3b",
    }


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_a_kept_configuration_is_valid(path: Path) -> None:
    config = load_config(str(path), trusted=True)
    assert config.name == path.stem
    roles = [arm.role for arm in config.arms.values()]
    assert roles[0] == "baseline"
    assert "eplb" in roles
    for arm in config.arms.values():
        if arm.role == "eplb":
            replicas = arm.plan.num_redundant_experts if arm.plan else arm.num_redundant_experts
            assert replicas
            options = arm.additional_config.get(EXPERT_MAPS, {})
            assert options.get("num_redundant_experts", replicas) == replicas
            assert bool(options.get("dynamic")) == arm.dynamic


def test_deepseek_r1_is_served_with_16_redundant_experts_on_16_ranks() -> None:
    config = load_config(str(ROOT / "accuracy" / "models" / "deepseek-r1-w8a8.yaml"), trusted=True)
    assert "--tensor-parallel-size=16" in config.server.arguments
    assert "--enable-expert-parallel" in config.server.arguments
    assert {arm.num_redundant_experts for arm in config.arms.values() if arm.role == "eplb"} == {16}


@pytest.mark.parametrize("name", ["deepseek-r1-w8a8", "qwen3-235b-a22b", "qwen3-30b-a3b"])
def test_arms_for_npus_can_be_served_and_proven(name: str, tmp_path: Path) -> None:
    ascend_options = pytest.importorskip("vllm_ascend_moe.backends.ascend.options")
    releases = pytest.importorskip("vllm_ascend_moe.releases")
    settings = pytest.importorskip("vllm_ascend_moe.core.settings")
    config = load_config(str(ROOT / "accuracy" / "models" / f"{name}.yaml"), trusted=True)
    ranks = next(word for word in config.server.arguments if word.startswith("--tensor-parallel-size="))
    for arm in config.arms.values():
        # vllm-ascend moves experts without the plugin, which could not tell.
        assert not arm.dynamic
        path = None if arm.plan is None else tmp_path / "map.json"
        options = arm.additional(record=None, expert_map=path)[EXPERT_MAPS]
        asked, release = settings.Settings(**options), releases.find("0.23.0")
        ascend_options.check_options(asked, release)
        found = ascend_options.ascend_options(asked, {}, release, None)
        if arm.plan is None:
            assert found == {}
            continue
        assert found == {"expert_map_path": str(path)}
        plan = arm.plan
        assert plan.layout is not None
        assert f"--tensor-parallel-size={plan.ep_size}" == ranks
        planned = generate_placement(
            plan.layout,
            num_experts=plan.num_experts or 0,
            ep_size=plan.ep_size,
            num_layers=plan.num_layers or 0,
            num_redundant_experts=plan.num_redundant_experts,
        )
        require_arm(arm, agree(reports(planned)), planned)


def test_the_embedded_arms_are_static_and_dynamic_on_two_ranks() -> None:
    for name in ("tiny-moe", "tiny-deepseek"):
        config = load_config(str(ROOT / "accuracy" / "models" / f"{name}.yaml"), trusted=True)
        assert list(config.arms) == ["baseline", "eplb-static", "eplb-dynamic"]
        assert config.dtype == "float32"
        assert "--tensor-parallel-size=2" in config.server.arguments
        plan = config.arms["eplb-static"].plan
        assert plan is not None
        assert plan.load_of == BASELINE
        assert config.arms["eplb-dynamic"].dynamic


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("dtype",), "float8", "dtype"),
        (("concurrency",), 0, "concurrency"),
        (("concurrency",), "32", "concurrency"),
        (("tasks",), {}, "tasks"),
        (("name",), "../elsewhere", "name"),
        (("task", "name"), "mmlu", "task.name"),
        (("task", "num_fewshot"), -1, "task.num_fewshot"),
        (("expected",), {"accuracy": 95.0}, "without a source"),
        (("expected",), {"accuracy": None}, "without a reason"),
        (("expected",), {"accuracy": 950, "source": "x"}, "accuracy"),
        (("arms", "baseline", "role"), "eplb", "'baseline'"),
        (("arms", "eplb", "role"), "baseline", "none of them"),
        (("arms", "eplb"), {"role": "baseline"}, "one baseline"),
        (("arms",), {}, "first arm"),
        (("arms", "baseline", "record_load"), False, "record_load"),
        (("arms", "eplb", "plan", "load_of"), "elsewhere", "'elsewhere'"),
        (("arms", "eplb", "plan", "load"), "load.npz", "one of load_of"),
        (("arms", "eplb", "plan", "layout"), "ring", "one of load_of"),
        (("arms", "eplb", "plan", "num_layers"), 4, "num_layers 4; expected both with a layout"),
        (
            ("arms", "eplb", "plan"),
            {"layout": "ring", "num_experts": 8, "num_redundant_experts": 2, "ep_size": 2},
            "num_layers None; expected both",
        ),
        (
            ("arms", "eplb", "plan"),
            {"layout": "ring", "num_experts": 16, "num_layers": 2, "num_redundant_experts": 3, "ep_size": 2},
            "the layout ring does not fit",
        ),
        (("arms", "work"), {"role": "eplb"}, "an arm is called 'work'"),
        (
            ("arms", "eplb", "additional_config"),
            {"expert_maps": {"num_redundant_expert": 4}},
            "num_redundant",
        ),
        (("model",), "", "model"),
        (("request_seconds",), float("inf"), "request_seconds"),
        (("arms", "eplb", "plan", "ep_size"), 1, "ep_size"),
        (("arms", "eplb", "additional_config"), {"expert_maps": {"record_path": "x.npz"}}, "record_path"),
        (("arms", "eplb", "additional_config"), {"expert_maps": []}, "expected an object"),
        (("server", "arguments"), ["--port=1"], "--port=1"),
        (("server", "arguments"), ["--host", "0.0.0.0"], "--host"),  # noqa: S104 - refused
        # argparse takes these for --host and --served-model-name.
        (("server", "arguments"), ["--hos=0.0.0.0"], "--hos"),
        (("server", "arguments"), ["--served_model_name=x"], "--served_model_name"),
        (("server", "arguments"), ["--additional-config.expert_maps.dynamic=true"], "--additional-config"),
        (("server", "arguments"), ["--config=x.yaml"], "--config"),
        (("server", "arguments"), ["--x=\0"], "NUL"),
        (("server", "environment"), {"OMP_NUM_THREADS": 1}, "OMP_NUM_THREADS"),
        (("server", "environment"), {"A=B": "1"}, "A=B"),
    ],
)
def test_what_is_wrong_is_named(path: tuple[str, ...], value: Any, said: str) -> None:  # noqa: ANN401 - JSON
    with pytest.raises(ConfigError, match=f"small.*{said}"):
        parse_config(changed(*path, value=value), "small")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: [", "not valid YAML"),
        ("- a", "expected a mapping"),
        ("name: a\nname: b", "the key 'name' stands twice"),
        ("", "holds 0 documents"),
        ("name: 2020-01-01", "model: Field required"),
        ("!!python/object/apply:os.system ['true']", "the tag 'tag:yaml.org"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        load_config(str(path))


def test_an_unknown_name_lists_the_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=r"'tiny'; expected .*tiny-moe"):
        load_config("tiny")


def test_arms_run_in_the_order_of_the_file() -> None:
    config = parse_config(SMALL, "small")
    assert config.choose(None) == ["baseline", "eplb"]
    assert config.choose(["eplb", "baseline"]) == ["baseline", "eplb"]
    with pytest.raises(ConfigError, match="'other'; expected one of baseline, eplb"):
        config.choose(["other"])


def test_paths_of_a_run_join_the_options_of_the_arm() -> None:
    document = changed("arms", "eplb", "additional_config", value={"x": 1, "expert_maps": {"policy": "vllm"}})
    arm = parse_config(document, "small").arms["eplb"]
    assert arm.additional(record=None, expert_map=None) == {"x": 1, "expert_maps": {"policy": "vllm"}}
    assert arm.additional(record=Path("a.npz"), expert_map=Path("b.json")) == {
        "x": 1,
        "expert_maps": {"policy": "vllm", "record_path": "a.npz", "expert_map_path": "b.json"},
    }


def test_base_urls_are_of_arms() -> None:
    config = parse_config(SMALL, "small")
    texts = ["baseline=http://127.0.0.1:8000/v1/", "eplb=https://host:1"]
    assert parse_base_urls(texts, config) == {"baseline": "http://127.0.0.1:8000", "eplb": "https://host:1"}
    for wrong in (
        "baseline",
        "baseline=",
        "other=http://x:1",
        "baseline=ftp://x",
        "baseline=http://",
        "baseline=x",
        "baseline=http://[::1",
        "baseline=http://x:abc",
        "baseline=http://x:99999",
        "baseline=http://x y:1",
    ):
        with pytest.raises(ExpertMapsError):
            parse_base_urls([wrong], config)
    with pytest.raises(ConfigError, match="two base URLs"):
        parse_base_urls([texts[0], "baseline=http://x:1"], config)


def test_data_is_found_beside_the_checkpoint_or_where_it_is_said(tmp_path: Path) -> None:
    config = parse_config(
        changed("task", "data", value={"test": "{model}/a.jsonl", "train": "{model}/b.jsonl"}), "small"
    )
    with pytest.raises(ConfigError, match="no file"):
        find_data(config, str(tmp_path), None)
    for name in ("a", "b", "test", "train"):
        (tmp_path / f"{name}.jsonl").touch()
    assert find_data(config, str(tmp_path), None) == {
        "train": tmp_path / "b.jsonl",
        "test": tmp_path / "a.jsonl",
    }
    assert find_data(config, "x", tmp_path) == {
        "train": tmp_path / "train.jsonl",
        "test": tmp_path / "test.jsonl",
    }
    assert find_data(parse_config(SMALL, "small"), "x", None) is None


def test_a_configuration_survives_yaml(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL, sort_keys=False), encoding="utf-8")
    assert load_config(str(path)) == parse_config(SMALL, "small")


def test_an_option_of_an_arm_that_cannot_be_printed_is_told_in_plain_characters() -> None:
    with pytest.raises(ConfigError) as told:
        parse_config(
            changed("arms", "eplb", "additional_config", "expert_maps", "lay\ufeffout", value=4), "small"
        )
    assert "lay\\ufeffout" in str(told.value)
    assert str(told.value).isprintable()
