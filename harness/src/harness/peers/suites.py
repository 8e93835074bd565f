# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Which of their tests are run, where, and what of ours stands in place of what of theirs."""

from __future__ import annotations

from dataclasses import dataclass

from expert_maps import POLICY_NAMES
from harness.peers.sources import Source

_VLLM_SWAPS = "harness.peers.vllm_swaps"
_ASCEND_SWAPS = "harness.peers.ascend_swaps"
_GLOO = "harness.peers.gloo"


@dataclass(frozen=True)
class Swap:
    """One name, replaced while a test runs.

    Attributes:
        name: in the test's module, or ``package.module:name`` for another one.
        maker: ``package.module:function`` of this project: called with theirs and the variant, it returns ours.
    """

    name: str
    maker: str


@dataclass(frozen=True)
class Suite:
    """Some of their files with some of our functions.

    Attributes:
        name: short.
        files: in their source distribution.
        ours: what stands in place of theirs, in words.
        swaps: name by name; none where nothing but the emulated NPU is ours.
        variants: every test is run once for each; one without a name where there is nothing to vary.
        emulated: whether a pass counts although no function of ours was called: what is ours is the NPU.
    """

    name: str
    files: tuple[str, ...]
    ours: str
    swaps: tuple[Swap, ...] = ()
    variants: tuple[str, ...] = ("",)
    emulated: bool = False


@dataclass(frozen=True)
class Run:
    """Suites that share a process: those of one source distribution.

    Attributes:
        name: of the release.
        source: the source distribution that carries the tests.
        suites: in it.
        helpers: other files of theirs that the tests import.
        vllm_ascend: the release that is laid out beside its vLLM on an emulated NPU; None for the installed vLLM.
        timeout_s: after which the process is stopped.
    """

    name: str
    source: Source
    suites: tuple[Suite, ...]
    helpers: tuple[str, ...] = ()
    vllm_ascend: str | None = None
    timeout_s: int = 600

    @property
    def files(self) -> tuple[str, ...]:
        """Every test file, once."""
        return tuple(dict.fromkeys(file for suite in self.suites for file in suite.files))


VLLM = Run(
    "vLLM 0.32.0",
    Source("vllm", "0.32.0", "d2c957d5eee3d0985012151315ddc62cbe0cd368fc96a5fc3510438d9dddf2ad"),
    (
        Suite(
            "policy",
            ("tests/distributed/test_eplb_algo.py",),
            "the planner behind vLLM's policy interface, each policy in turn; `keep_slots`",
            (Swap("DefaultEplbPolicy", f"{_VLLM_SWAPS}:policy"),),
            POLICY_NAMES,
        ),
        Suite(
            "maps",
            ("tests/distributed/test_eplb_algo.py", "tests/distributed/test_eplb_utils.py"),
            "`Placement.logical_to_physical` and `replica_count`",
            (
                Swap("compute_logical_maps", f"{_VLLM_SWAPS}:logical_maps"),
                Swap("vllm.distributed.eplb.eplb_state:compute_logical_maps", f"{_VLLM_SWAPS}:logical_maps"),
            ),
        ),
        Suite(
            "expert map",
            ("tests/distributed/test_expert_placement.py",),
            "`generate_placement` and `Placement.expert_map`",
            (Swap("determine_expert_map", f"{_VLLM_SWAPS}:expert_map"),),
        ),
        Suite(
            "execution",
            ("tests/distributed/test_eplb_execute.py",),
            "placements planned by `plan`, and `move_experts` of the plugin, on two gloo ranks",
            (
                Swap("distributed_run", f"{_GLOO}:distributed_run"),
                Swap("torch.accelerator:device_count", f"{_GLOO}:device_count"),
                Swap("torch.cuda:is_available", f"{_GLOO}:is_available"),
            ),
        ),
    ),
    helpers=("tests/__init__.py", "tests/distributed/__init__.py", "tests/distributed/eplb_utils.py"),
)

_UT = "tests/ut/eplb"
_UT_HELPERS = ("tests/__init__.py", "tests/ut/__init__.py", "tests/ut/conftest.py", "tests/ut/base.py")
_NPU = "nothing but the emulated NPU"
_MAPS = (
    Swap("init_eplb_config", f"{_ASCEND_SWAPS}:init_eplb_config"),
    Swap("generate_log2phy_map", f"{_ASCEND_SWAPS}:log2phy"),
)
_POLICY = Suite(
    "policy factory",
    (f"{_UT}/core/policy/test_policy_factory.py",),
    "the planner as a policy of vllm-ascend",
    (Swap("PolicyFactory", f"{_ASCEND_SWAPS}:policy_factory"),),
)
_MOVING = Suite(
    "updator, adaptor, loader",
    (
        f"{_UT}/test_eplb_updator.py",
        f"{_UT}/adaptor/test_vllm_adaptor.py",
        f"{_UT}/core/test_eplb_device_transfer_loader.py",
    ),
    _NPU,
    emulated=True,
)

ASCEND = Run(
    "vllm-ascend 0.23.0",
    Source("vllm-ascend", "0.23.0", "a58db76eaffcf328b13b315a0db3a57d381a8947d01057ddcefe4ad02372b242"),
    (
        Suite(
            "maps",
            (f"{_UT}/core/a2/test_eplb_utils.py",),
            "`init_eplb_config` and `Placement.log2phy`",
            _MAPS,
        ),
        _POLICY,
        _MOVING,
        Suite(
            "layer",
            (
                "tests/ut/ops/a2/test_token_dispatcher.py",
                "tests/ut/ops/test_moe_comm_method.py",
                "tests/ut/ops/test_moe_mlp.py",
                "tests/ut/ops/test_moe_runtime_args.py",
                "tests/ut/ops/test_prepare_finalize.py",
            ),
            _NPU,
            emulated=True,
        ),
    ),
    helpers=(*_UT_HELPERS, f"{_UT}/core/a2/expert_map.json"),
    vllm_ascend="0.23.0",
)

NEWEST_ASCEND = Run(
    "vllm-ascend 0.30.0rc2",
    Source("vllm-ascend", "0.30.0rc2", "05cb51448c0cd174ea338b16ebbfc8e215f44b373ea2a0d65f1314523a01152f"),
    (
        Suite(
            "maps",
            (f"{_UT}/core/test_eplb_utils.py",),
            "`init_eplb_config`, the layout `append` and `Placement.log2phy`",
            (*_MAPS, Swap("generate_global_placement", f"{_ASCEND_SWAPS}:append")),
        ),
        Suite(
            "initial layout",
            ("tests/ut/patch/platform/test_initial_expert_layout.py",),
            "the layout `ring`",
            (Swap("_build_distributed_initial_expert_map", f"{_ASCEND_SWAPS}:ring"),),
        ),
        Suite(
            "replica routing",
            ("tests/ut/ops/test_eplb.py",),
            "`rank_offset_table`, `map_to_physical`",
            (
                Swap("build_expert_replica_routing_table", f"{_ASCEND_SWAPS}:routing_table"),
                Swap("map_to_physical", f"{_ASCEND_SWAPS}:map_to_physical"),
            ),
        ),
        _POLICY,
        _MOVING,
        Suite("routed experts", ("tests/ut/ops/test_routed_experts.py",), _NPU, emulated=True),
    ),
    helpers=(*_UT_HELPERS, f"{_UT}/core/expert_map.json"),
    vllm_ascend="0.30.0rc2",
)

RUNS = (VLLM, ASCEND, NEWEST_ASCEND)
