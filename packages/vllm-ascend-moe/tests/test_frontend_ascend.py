# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The front end beside vllm-ascend: what vLLM's configuration is made of, and what the other processes are told."""

from __future__ import annotations

import dataclasses
import logging
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import fake_vllm
import numpy as np
import pytest

from expert_maps import ExpertMapsError, Placement, generate_placement, write_placement
from vllm_ascend_moe import frontend, releases
from vllm_ascend_moe.backends.ascend import checks as ascend_checks
from vllm_ascend_moe.backends.ascend import options as ascend_options
from vllm_ascend_moe.core import activation
from vllm_ascend_moe.core.activation import read_resolved
from vllm_ascend_moe.core.settings import Settings
from vllm_ascend_moe.hooks import wrapping

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from expert_maps import LayoutName

EXPERTS, LAYERS, RANKS = 16, 3, 4
VARIABLE = "DYNAMIC_EPLB"


class Config:
    """What vLLM makes of its arguments."""

    def __init__(self, arguments: SimpleNamespace) -> None:
        self.additional_config = arguments.additional_config
        self.device_config = SimpleNamespace(device_type="npu")
        self.parallel_config = SimpleNamespace(
            worker_extension_cls=arguments.worker_extension_cls,
            enable_expert_parallel=arguments.enable_expert_parallel,
        )


def arguments(additional_config: Any = None, **changes: object) -> SimpleNamespace:  # noqa: ANN401 - a user's
    given: dict[str, Any] = {
        "additional_config": additional_config,
        "tensor_parallel_size": RANKS,
        "data_parallel_size": 1,
        "enable_eplb": False,
        "enable_expert_parallel": False,
        "eplb_config": SimpleNamespace(num_redundant_experts=0),
        "worker_extension_cls": "",
    }
    return SimpleNamespace(**{**given, **changes})


def model(quantization: str | None = None) -> SimpleNamespace:
    text = {"num_hidden_layers": LAYERS, "num_experts": EXPERTS, "num_experts_per_tok": 2}
    return SimpleNamespace(
        model="tiny",
        quantization=quantization,
        get_num_experts=lambda: EXPERTS,
        hf_text_config=SimpleNamespace(**text, to_dict=lambda: text),
    )


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """Make a configuration as vLLM does beside a vllm-ascend; what it was made of is in `config.additional_config`."""
    fake_vllm.install(monkeypatch, [], platform="ascend", version="0.23.0")
    for name in (VARIABLE, "EXPERT_MAP_RECORD", "VLLM_ASCEND_MOE_ENABLED", "VLLM_USE_V2_MODEL_RUNNER"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(activation, "said_in", set())
    monkeypatch.setattr(ascend_options, "_switched_on", [])
    # What vllm-ascend's executor would be imported as; see test_ascend_options.
    monkeypatch.setattr(ascend_options, "_EXECUTOR", "os")
    monkeypatch.setattr(wrapping, "check_versions", lambda **_: None)

    def run(
        additional_config: Any = None,  # noqa: ANN401 - a user's
        *,
        release: str = "0.23.0",
        on: str = "A3",
        given: SimpleNamespace | None = None,
        of: SimpleNamespace | None = None,
        fails: bool = False,
        **changes: object,
    ) -> Config:
        monkeypatch.setattr(wrapping, "vllm_ascend_version", lambda: release)
        monkeypatch.setattr(ascend_checks, "chip", lambda: on)

        def create(engine_args: SimpleNamespace) -> Config:
            frontend.around_create_model_config(lambda _: of or model(), engine_args)
            if fails:
                raise ValueError
            return Config(engine_args)

        made: Config = frontend.around_create_engine_config(
            create, given or arguments(additional_config, **changes)
        )
        return made

    return run


@pytest.fixture
def map_file(tmp_path: Path) -> str:
    placement = generate_placement(
        "ring", num_experts=EXPERTS, ep_size=RANKS, num_layers=LAYERS, num_redundant_experts=4
    )
    write_placement(placement, tmp_path / "map.json")
    return str(tmp_path / "map.json")


# What vllm-ascend sees, and what the other processes are told


@pytest.mark.parametrize("release", [one.vllm_ascend for one in releases.RELEASES])
def test_vllm_ascend_sees_its_own_options_alone(release: str, configure: Callable[..., Config]) -> None:
    given = arguments({"expert_maps": {"window_size": 5}, "refresh": True})
    config = configure(given=given, release=release)
    assert config.additional_config == {
        "refresh": True,
        "eplb_config": {"expert_heat_collection_interval": 5},
    }
    # The arguments are as the user gave them, for who makes a second configuration of them.
    assert given.additional_config == {"expert_maps": {"window_size": 5}, "refresh": True}
    assert not given.enable_expert_parallel
    found = read_resolved(config, {})
    assert found.backend == "ascend_v1.AscendV1"
    assert found.settings == Settings(window_size=5, dynamic=False, num_redundant_experts=0)
    assert config.parallel_config.enable_expert_parallel


def test_a_map_is_handed_to_vllm_ascend_and_its_digest_to_the_workers(
    map_file: str, configure: Callable[..., Config]
) -> None:
    config = configure({"expert_maps": {"expert_map_path": map_file}})
    assert config.additional_config["eplb_config"] == {"expert_map_path": map_file}
    found = read_resolved(config, {})
    assert found.settings is not None
    assert (found.settings.num_redundant_experts, found.settings.dynamic) == (4, False)
    rows = np.tile(np.arange(EXPERTS), (LAYERS, 1))
    assert found.digest not in {None, Placement(rows, RANKS).digest}


def test_what_was_decided_by_the_arguments_does_not_change_with_the_configuration(
    map_file: str, configure: Callable[..., Config]
) -> None:
    config = configure({"expert_maps": {"expert_map_path": map_file}})
    # One release sets it while it loads the model.
    config.parallel_config.enable_eplb = True
    assert read_resolved(config, {}).backend == "ascend_v1.AscendV1"


def test_the_users_own_options_are_described_and_compared(
    map_file: str, configure: Callable[..., Config], caplog: pytest.LogCaptureFixture
) -> None:
    own = {"expert_maps": {}, "eplb_config": {"expert_map_path": map_file, "eplb_policy_type": 2}}
    with caplog.at_level(logging.INFO, logger="vllm.ascend_moe"):
        config = configure(own)
    asked = configure({"expert_maps": {"expert_map_path": map_file, "policy": "vllm"}})
    assert read_resolved(config, {}).digest == read_resolved(asked, {}).digest
    assert read_resolved(config, {}).settings == read_resolved(asked, {}).settings
    assert f"placement {map_file} (4 redundant, static)" in caplog.text
    assert config.additional_config["eplb_config"] == {"expert_map_path": map_file, "eplb_policy_type": 2}
    with pytest.raises(ExpertMapsError, match=r"expert_map_path is 'other\.json' in expert_maps"):
        configure({**own, "expert_maps": {"expert_map_path": "other.json"}})


@pytest.mark.parametrize(("release", "layout"), [("0.23.0", "ring"), ("0.26.0rc1", "append")])
def test_dynamic_copies_start_where_the_release_puts_them(
    release: str,
    layout: LayoutName,
    configure: Callable[..., Config],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="vllm.ascend_moe"):
        config = configure({"expert_maps": {"dynamic": True, "num_redundant_experts": 4}}, release=release)
    wanted = generate_placement(
        layout, num_experts=EXPERTS, ep_size=RANKS, num_layers=LAYERS, num_redundant_experts=4
    )
    found = read_resolved(config, {})
    assert found.settings is not None
    assert (found.settings.layout, found.digest) == (layout, wanted.digest)
    assert f"placement layout {layout} (4 redundant, dynamic), digest {wanted.digest[:12]}," in caplog.text
    assert config.additional_config["eplb_config"] == {"dynamic_eplb": True, "num_redundant_experts": 4}


def test_a_cycle_has_room_for_every_layer(configure: Callable[..., Config]) -> None:
    asked = {"dynamic": True, "window_size": 5, "step_interval": 20}
    config = configure({"expert_maps": asked})
    assert config.additional_config["eplb_config"]["algorithm_execution_interval"] == 20 - 5 - LAYERS
    with pytest.raises(ExpertMapsError, match="step_interval is 8; expected at least 9"):
        configure({"expert_maps": {**asked, "step_interval": 8}})
    with pytest.raises(ExpertMapsError, match="how many MoE layers a stage of the model has is not known"):
        configure({"expert_maps": asked}, pipeline_parallel_size=2)


# One engine after another


def test_an_engine_leaves_its_switch_to_no_other(configure: Callable[..., Config]) -> None:
    configure({"expert_maps": {"dynamic": True}})
    assert os.environ[VARIABLE] == "true"
    configure({"expert_maps": {}})
    assert VARIABLE not in os.environ
    configure({"expert_maps": {"dynamic": True}})
    # One without the plugin.
    configure({})
    assert VARIABLE not in os.environ
    with pytest.raises(ValueError, match=r"^$"):
        configure({"expert_maps": {"dynamic": True}}, fails=True)
    assert VARIABLE not in os.environ


def test_vllm_ascends_own_record_switches_it_on_too(configure: Callable[..., Config]) -> None:
    config = configure({"expert_maps": {}, "eplb_config": {"expert_map_record_path": "new.json"}})
    assert config.additional_config["eplb_config"]["expert_map_record_path"] == "new.json"
    assert os.environ[VARIABLE] == "true"


def test_an_engine_without_a_word_of_it_is_left_alone(configure: Callable[..., Config]) -> None:
    given = {"eplb_config": {"dynamic_eplb": True}}
    config = configure(given)
    assert config.additional_config is given
    assert VARIABLE not in os.environ
    assert not read_resolved(config, {}).is_active


# What is refused, before anything is loaded


def refuse(configure: Callable[..., Config], message: str, asked: dict[str, Any], **changes: Any) -> None:  # noqa: ANN401 - vLLM's
    with pytest.raises(ExpertMapsError, match=message):
        configure({"expert_maps": asked}, **changes)
    assert VARIABLE not in os.environ


def test_what_would_be_served_wrongly_is_refused(map_file: str, configure: Callable[..., Config]) -> None:
    asked = {"expert_map_path": map_file}
    refuse(configure, "enable_ep_weight_filter is given", asked, enable_ep_weight_filter=True)
    refuse(configure, "on 4 ranks of 310P", asked, on="310P")
    refuse(configure, "--enable-eplb is given beside vllm-ascend", {}, enable_eplb=True)
    refuse(configure, "on a model that is not quantised", asked, release="0.18.0")
    hangs = {"dynamic": True, "num_redundant_experts": 8, "policy": "vllm"}
    refuse(configure, "8 redundant experts on 4 ranks", hangs, release="0.22.1rc1")
    # The user's own options count as the plugin's.
    own = {"expert_maps": {}, "eplb_config": asked}
    with pytest.raises(ExpertMapsError, match="on 4 ranks of 310P"):
        configure(own, on="310P")
    with pytest.raises(ExpertMapsError, match="at most 4 with eplb_policy_type 1"):
        configure({"expert_maps": hangs, "eplb_config": {"eplb_policy_type": 1}})


def test_a_layout_with_copies_is_the_one_that_is_asked_for(configure: Callable[..., Config]) -> None:
    asked = {"dynamic": True, "num_redundant_experts": 4}
    for release, own, other in (("0.23.0", "ring", "append"), ("0.30.0rc2", "append", "ring")):
        for layout, wanted in ((None, own), (own, own), (other, other)):
            given = asked if layout is None else {**asked, "layout": layout}
            found = read_resolved(configure({"expert_maps": given}, release=release), {}).settings
            assert found is not None
            assert found.layout == wanted
    refuse(configure, "round_robin", {**asked, "layout": "round_robin"})


def test_on_one_rank_nothing_is_switched_on(configure: Callable[..., Config]) -> None:
    refuse(
        configure, "log_balancedness is True on one rank", {"log_balancedness": True}, tensor_parallel_size=1
    )
    config = configure({"expert_maps": {"layout": "round_robin"}}, tensor_parallel_size=1)
    assert not config.additional_config["eplb_config"].get("dynamic_eplb")
    assert VARIABLE not in os.environ


def test_a_record_of_pipeline_stages_is_refused_before_loading(configure: Callable[..., Config]) -> None:
    refuse(
        configure, "record_path is l.npz with 2 pipeline", {"record_path": "l.npz"}, pipeline_parallel_size=2
    )


@pytest.mark.parametrize("value", ["1", "2"])
def test_an_operator_that_exchanges_by_itself_leaves_no_choice(
    value: str, map_file: str, configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"expert_map_path": map_file, "replica_choice": "rank_offset"}
    message = "^enable_fused_mc2 is .* with replica_choice rank_offset; expected one of them"
    configure({"expert_maps": asked, "enable_fused_mc2": 0})
    with pytest.raises(ExpertMapsError, match=message):
        configure({"expert_maps": asked, "enable_fused_mc2": int(value)})
    # Older releases have a variable for it.
    monkeypatch.setenv("VLLM_ASCEND_ENABLE_FUSED_MC2", value)
    with pytest.raises(ExpertMapsError, match=message):
        configure({"expert_maps": asked})
    configure({"expert_maps": {"expert_map_path": map_file}})


@pytest.fixture
def second_runner(monkeypatch: pytest.MonkeyPatch) -> Callable[..., SimpleNamespace]:
    """Return what vLLM's EPLB settings are, before the plugin has changed them."""
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")

    @dataclasses.dataclass(frozen=True)
    class EplbConfig:
        num_redundant_experts: int = 0
        step_interval: int = 3000
        window_size: int = 1000
        policy: str = "default"
        use_async: bool = True
        communicator: str | None = None
        log_balancedness: bool = False
        log_balancedness_interval: int = 1

    def given(additional_config: dict[str, Any], **changes: object) -> SimpleNamespace:
        found = arguments(additional_config, eplb_config=EplbConfig(), **changes)
        found.made = []
        return found

    return given


def made_by(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect the arguments that vLLM makes its configuration of."""
    found: list[Any] = []

    class Seen(Config):
        def __init__(self, arguments: SimpleNamespace) -> None:
            super().__init__(arguments)
            found.append((arguments.enable_eplb, arguments.eplb_config))

    monkeypatch.setitem(globals(), "Config", Seen)
    return found


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({"dynamic": True}, {"policy": "default", "step_interval": 3000}),
        ({"dynamic": True, "policy": "vllm"}, {"policy": "stair"}),
        ({"dynamic": True, "step_interval": 50, "window_size": 9}, {"step_interval": 50, "window_size": 9}),
        ({"num_redundant_experts": 4}, {"policy": "default", "num_redundant_experts": 4, "window_size": 1}),
    ],
)
def test_the_second_runner_serves_by_vllms_eplb(
    asked: dict[str, Any],
    wanted: dict[str, Any],
    configure: Callable[..., Config],
    second_runner: Callable[..., SimpleNamespace],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = made_by(monkeypatch)
    config = configure(given=second_runner({"expert_maps": asked}), release="0.30.0rc2")
    found = read_resolved(config, {})
    assert found.backend == "ascend_v2.AscendV2"
    assert found.settings is not None
    assert found.settings.layout == ("ring" if "num_redundant_experts" in asked else None)
    # vllm-ascend's own EPLB stays off, and vLLM's is asynchronous whatever the plugin asks.
    assert config.additional_config == {}
    assert VARIABLE not in os.environ
    enabled, eplb_config = seen[-1]
    assert enabled
    assert eplb_config.use_async
    assert {name: getattr(eplb_config, name) for name in wanted} == wanted


def test_the_second_runner_needs_no_eplb_for_a_linear_layout(
    configure: Callable[..., Config],
    second_runner: Callable[..., SimpleNamespace],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = made_by(monkeypatch)
    configure(given=second_runner({"expert_maps": {}}), release="0.30.0rc2")
    assert not seen[-1][0]


def test_an_expert_twice_on_a_rank_is_for_the_second_runner_alone(
    tmp_path: Path, configure: Callable[..., Config], second_runner: Callable[..., SimpleNamespace]
) -> None:
    ranks = [[*range(first, first + 4), first] for first in range(0, EXPERTS, 4)]
    twice = Placement.from_rank_lists([ranks] * LAYERS, num_logical_experts=EXPERTS, allow_duplicates=True)
    write_placement(twice, tmp_path / "twice.json")
    ring = generate_placement(
        "ring",
        num_experts=EXPERTS,
        ep_size=RANKS,
        num_layers=LAYERS,
        num_redundant_experts=52,
        allow_duplicates=True,
    )
    for asked, wanted in (
        ({"expert_map_path": str(tmp_path / "twice.json")}, twice),
        ({"num_redundant_experts": 52}, ring),
    ):
        config = configure(given=second_runner({"expert_maps": asked}), release="0.30.0rc2")
        assert read_resolved(config, {}).digest == wanted.digest


@pytest.mark.parametrize("asked", [{"expert_map_path": "twice.json"}, {"num_redundant_experts": 52}])
def test_the_first_runner_has_one_slot_for_an_expert_of_a_rank(
    asked: dict[str, Any], tmp_path: Path, configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ranks = [[*range(first, first + 4), first] for first in range(0, EXPERTS, 4)]
    twice = Placement.from_rank_lists([ranks] * LAYERS, num_logical_experts=EXPERTS, allow_duplicates=True)
    write_placement(twice, tmp_path / "twice.json")
    with pytest.raises(
        ExpertMapsError, match=r"twice on this rank .*only vllm-ascend's runner V2 serves both"
    ):
        configure({"expert_maps": asked}, release="0.30.0rc2")


@pytest.mark.parametrize(
    ("config", "on", "message"),
    [
        ({"load_collection_phase": "decode"}, "A3", "load_collection_phase is decode; expected 'all'"),
        (
            {"dynamic": True, "policy": "vllm", "min_gain": 0.1},
            "A3",
            r"min_gain is 0\.1, where vllm-ascend plans",
        ),
        (
            {"dynamic": True, "policy": "vllm", "record_path": "x.npz"},
            "A3",
            r"record_path is .*x\.npz, where",
        ),
        (
            {"num_redundant_experts": 4, "replica_choice": "static"},
            "A2",
            "replica_choice is static on 4 ranks of A2",
        ),
        ({"num_redundant_experts": 4}, "310P", "4 redundant experts, on 4 ranks of 310P"),
    ],
)
def test_what_the_second_runner_would_serve_wrongly_is_refused(
    config: dict[str, Any],
    on: str,
    message: str,
    configure: Callable[..., Config],
    second_runner: Callable[..., SimpleNamespace],
) -> None:
    with pytest.raises(ExpertMapsError, match=message):
        configure(given=second_runner({"expert_maps": config}), release="0.30.0rc2", on=on)


def test_a_phase_that_would_have_no_effect_is_refused(
    configure: Callable[..., Config], second_runner: Callable[..., SimpleNamespace]
) -> None:
    for policy, refused in ((None, True), ("vllm", False)):
        asked = {"expert_maps": {"dynamic": True, "policy": policy}}
        given = second_runner({**asked, "eplb_config": {"load_collection_phase": "decode"}})
        if refused:
            with pytest.raises(ExpertMapsError, match="load_collection_phase is 'decode' in eplb_config"):
                configure(given=given, release="0.30.0rc2")
        else:
            configure(given=given, release="0.30.0rc2")


def test_the_second_runner_of_another_release_is_refused(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    message = (
        "VLLM_USE_V2_MODEL_RUNNER is 1 beside vllm-ascend 0.29.0rc1; expected its runner V1, or 0.30.0rc2"
    )
    refuse(configure, message, {}, release="0.29.0rc1")
    # Without the plugin it is nobody's business here.
    configure({}, release="0.29.0rc1")


def test_a_release_that_is_not_in_the_table_is_refused(configure: Callable[..., Config]) -> None:
    refuse(
        configure, r"found vllm-ascend 0\.99\.0 .*expected a pair that the plugin knows", {}, release="0.99.0"
    )


def test_ranks_of_unequally_many_slots_are_not_moved(configure: Callable[..., Config]) -> None:
    refuse(configure, "expected equally many", {"dynamic": True}, tensor_parallel_size=3)


def test_an_additional_config_of_another_kind_is_refused(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_ASCEND_MOE_ENABLED", "1")
    with pytest.raises(ExpertMapsError, match="the additional config is a str; expected an object"):
        configure("a hash of its own")
