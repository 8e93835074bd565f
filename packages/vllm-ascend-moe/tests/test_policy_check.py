# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A policy that cannot plan for a model on these nodes is refused before weights are read; on how many threads it plans."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import fake_vllm
import numpy as np
import pytest

from expert_maps import POLICY_NAMES, Placement, generate_placement, plan
from vllm_ascend_moe.backends import policy as policies
from vllm_ascend_moe.backends.policy import check_policy, router_groups
from vllm_ascend_moe.backends.ranks import Ranks
from vllm_ascend_moe.backends.vllm_eplb import VllmEplb
from vllm_ascend_moe.core.activation import Activation
from vllm_ascend_moe.core.session import Session
from vllm_ascend_moe.core.settings import Settings
from vllm_ascend_moe.core.sources import PlacementSource
from vllm_ascend_moe.eplb import EplbConfigError
from vllm_ascend_moe.hooks import table


def layout(name: str = "ring", redundant: int = 4) -> Placement:
    return generate_placement(name, num_experts=16, ep_size=4, num_redundant_experts=redundant)


@pytest.mark.parametrize("policy", [None, *POLICY_NAMES])
def test_groups_that_divide_by_nodes_are_planned_by_every_policy(policy: str | None) -> None:
    for groups, nodes in ((1, 1), (4, 2), (2, 2), (0, 1), (3, 1)):
        check_policy(policy, layout(), groups, nodes)


@pytest.mark.parametrize("groups", [1, 0, 3])
def test_hierarchical_by_name_needs_groups_that_divide_by_nodes(groups: int) -> None:
    with pytest.raises(EplbConfigError) as raised:
        check_policy("deepseek_hierarchical", layout(), groups, 2)
    assert str(raised.value) == (
        f"policy 'deepseek_hierarchical' cannot plan for {groups} expert groups on 2 nodes: num_groups is 1; "
        "expected a multiple of num_nodes 2 (policy 'deepseek_global' takes any)"
    )
    for other in (None, "deepseek", "deepseek_global"):
        check_policy(other, layout(), groups, 2)


def test_a_budget_that_cannot_put_groups_on_nodes_is_refused() -> None:
    # The copies of the ring are on other nodes than their groups: without a budget that is put right once.
    check_policy("balanced", layout(), 4, 2)
    with pytest.raises(
        EplbConfigError, match=r"current has an expert group on several nodes .* or no max_moves"
    ):
        check_policy("balanced", layout(), 4, 2, max_moves=4)
    check_policy("balanced", layout("linear", 0), 4, 2, max_moves=4)


def test_groups_that_a_model_names_but_does_not_have_are_one() -> None:
    assert [router_groups(groups, 16) for groups in (-1, 0, 1, 3, 4, 16)] == [1, 1, 1, 1, 4, 16]


def serve(monkeypatch: pytest.MonkeyPatch, settings: Settings, groups: int, nodes: int) -> None:
    """Let a worker check a model of so many groups on so many nodes."""
    fake_vllm.install(monkeypatch)
    model = SimpleNamespace(num_moe_layers=3, moe_layers=[None] * 3, num_expert_groups=groups)
    fake_vllm.replace(monkeypatch, table.FIND_MOE_MODEL, lambda _: model)
    fake_vllm.replace(monkeypatch, table.NODE_COUNT, lambda: nodes)
    group: Any = SimpleNamespace(world_size=1, rank_in_group=0)
    fake_vllm.replace(monkeypatch, table.EP_GROUP, lambda: group)
    fake_vllm.replace(monkeypatch, table.PP_GROUP, lambda: group)
    parallel = SimpleNamespace(tensor_parallel_size=4, data_parallel_size=1, enable_eplb=True)
    config = SimpleNamespace(
        parallel_config=parallel,
        device_config=SimpleNamespace(device_type="cpu"),
        model_config=SimpleNamespace(get_num_experts=lambda: 16),
    )
    session = Session(config, Activation(settings, "asked for"), Ranks(config))
    session.source = PlacementSource("layout ring", layout(), is_file=False)
    VllmEplb(session).check_model(object())


def test_a_worker_refuses_before_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Settings(dynamic=True, policy="deepseek_hierarchical", num_redundant_experts=4)
    serve(monkeypatch, asked, groups=4, nodes=2)
    # vLLM takes ranks that do not divide by nodes for one node.
    serve(monkeypatch, asked, groups=1, nodes=3)
    with pytest.raises(
        EplbConfigError, match="policy 'deepseek_hierarchical' cannot plan for 1 expert groups"
    ):
        serve(monkeypatch, asked, groups=1, nodes=2)
    budget = Settings(dynamic=True, max_moves=2, num_redundant_experts=4)
    with pytest.raises(EplbConfigError, match="policy 'balanced' cannot plan for 4 expert groups on 2 nodes"):
        serve(monkeypatch, budget, groups=4, nodes=2)


def test_what_does_not_plan_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    for settings in (
        Settings(dynamic=False, policy="deepseek_hierarchical", num_redundant_experts=4),
        Settings(dynamic=True, policy="vllm", num_redundant_experts=4),
    ):
        serve(monkeypatch, settings, groups=1, nodes=2)


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 2), (3, 3), (64, 4)])
def test_a_rearrangement_is_planned_on_the_cores_of_its_process(
    monkeypatch: pytest.MonkeyPatch, cores: int, threads: int
) -> None:
    seen = []

    def spy(*args: Any, **options: Any) -> Any:  # noqa: ANN401 - of any plan
        seen.append(options["num_threads"])
        return plan(*args, **options)

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(policies, "plan", spy)
    load, old = np.arange(1.0, 25.0).reshape(3, 8), np.tile(np.array([*range(8), 0, 1, 2, 3]), (3, 1))
    for name in ("balanced", "deepseek"):
        policies._planned_rows(name, None, load, (12, 1, 1, 4), old)
    assert seen == [threads, 1]
