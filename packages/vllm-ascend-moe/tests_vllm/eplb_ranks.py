# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Two ranks with vLLM's own EPLB state and the plugin's backend around it, and no engine: a model is a few numbers."""

from __future__ import annotations

import logging
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from expert_maps import Placement, write_placement
from vllm_ascend_moe.backends.ranks import Ranks
from vllm_ascend_moe.backends.reloading import Reloads
from vllm_ascend_moe.backends.vllm_eplb import VllmEplb
from vllm_ascend_moe.core.activation import Activation
from vllm_ascend_moe.core.session import Session, State
from vllm_ascend_moe.core.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RANKS, LAYERS, EXPERTS, REDUNDANT = 2, 3, 6, 2
SLOTS = (EXPERTS + REDUNDANT) // RANKS
# A placement that differs in each layer, and from vLLM's own.
ROWS = np.array([[5, 4, 3, 2, 1, 0, 5, 4], [0, 1, 2, 3, 3, 4, 5, 0], [2, 0, 4, 1, 5, 3, 2, 0]])


class Model:
    """As vLLM's MixtureOfExperts, with one matrix and one scale an expert."""

    is_mixture_of_experts = True
    num_moe_layers = LAYERS
    num_expert_groups = 1
    num_shared_experts = 0
    num_routed_experts = num_logical_experts = EXPERTS
    num_redundant_experts = REDUNDANT
    num_physical_experts = EXPERTS + REDUNDANT
    num_local_physical_experts = SLOTS

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.weights = [torch.empty(SLOTS, 4) for _ in range(LAYERS)]
        self.scales = [torch.empty(SLOTS, 1) for _ in range(LAYERS)]
        self.expert_weights = [list(pair) for pair in zip(self.weights, self.scales, strict=True)]
        self.moe_layers = [SimpleNamespace(routed_experts=None) for _ in range(LAYERS)]
        self.load(1.0)

    def load(self, version: float) -> None:
        """Fill the slots as vLLM's loaders do: each expert in the slot of its number, then copies from the first on."""
        for layer in range(LAYERS):
            for slot in range(SLOTS):
                expert = (self.rank * SLOTS + slot) % EXPERTS
                self.weights[layer][slot] = content(version, layer, expert)
                self.scales[layer][slot] = -content(version, layer, expert)

    def set_eplb_state(self, load: torch.Tensor, slots: torch.Tensor, count: torch.Tensor) -> None:
        """Take the tables."""

    def update_physical_experts_metadata(self, *_: int) -> None:
        """Be as vLLM's protocol wants it."""


def content(version: float, layer: int, expert: int) -> float:
    """Return what an expert's weights are."""
    return version * 1000 + layer * 100 + expert


class Worker:
    """As vLLM's, as far as weights are loaded anew."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.during: list[list[list[int]]] = []

    def reload_weights(self, version: float) -> None:
        if version < 0:
            msg = "no such checkpoint"
            raise OSError(msg)
        self.model.load(version)

    def start_weight_update(self) -> None: ...

    def update_weights(self, version: float) -> None:
        self.reload_weights(version)

    def finish_weight_update(self) -> None: ...


class Engine:
    """One rank of an engine: what tests look at and call."""

    def __init__(self, rank: int, folder: str, **options: Any) -> None:  # noqa: ANN401 - of the plugin
        from vllm.distributed.eplb.eplb_state import EplbState

        self.rank = rank
        self.model = Model(rank)
        self.lines: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: self.lines.append(record.getMessage())  # type: ignore[method-assign]
        logger = logging.getLogger("vllm.ascend_moe")
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        self.config = configuration()
        settings = read_settings({"expert_map_path": f"{folder}/map.json", **options})
        self.session = Session(self.config, Activation(settings, "a test"), Ranks(self.config))
        self.backend = self.session.backend = VllmEplb(self.session)
        self.backend.install()
        self.worker = Worker(self.model)
        Reloads(self.worker, self.backend)
        with self.session.loading():
            self.backend.make_model(lambda: self.model, self.config.model_config)
            self.state = EplbState(self.config.parallel_config, torch.device("cpu"))
            self.state.add_model(self.model, self.config.model_config)
        self.session.advance(State.SERVING)

    @property
    def model_state(self) -> Any:  # noqa: ANN401 - vLLM's
        """The only model's part of the state."""
        (found,) = self.state.model_states.values()
        return found

    @property
    def rows(self) -> list[list[int]]:
        """The placement that tokens are routed by."""
        return self.model_state.physical_to_logical_map.tolist()

    def wrong_slots(self, version: float = 1.0) -> int:
        """Count this rank's slots that do not hold the expert that the placement says, and tables that lead elsewhere."""
        wrong = 0
        for layer, row in enumerate(self.rows):
            for slot in range(SLOTS):
                wanted = content(version, layer, row[self.rank * SLOTS + slot])
                wrong += bool((self.model.weights[layer][slot] != wanted).any())
                wrong += float(self.model.scales[layer][slot]) != -wanted
            for expert in range(EXPERTS):
                count = int(self.model_state.logical_replica_count[layer, expert])
                listed = self.model_state.logical_to_physical_map[layer, expert, :count].tolist()
                wrong += count == 0 or any(row[slot] != expert for slot in listed)
        return wrong

    def serve(self, load: np.ndarray[Any, np.dtype[np.int64]], steps: int = 1) -> None:
        """Step, after tokens by logical expert, [L, E], were counted on this rank's slots."""
        from vllm_ascend_moe.backends.cpu_support import host_events

        for _ in range(steps):
            own = slice(self.rank * SLOTS, (self.rank + 1) * SLOTS)
            for layer, row in enumerate(self.rows):
                copies = np.bincount(row, minlength=EXPERTS)
                for slot, expert in list(enumerate(row))[own]:
                    self.model_state.expert_load_pass[layer, slot] = int(
                        load[layer, expert] // copies[expert]
                    )
            with host_events():
                self.state.step()


def configuration() -> SimpleNamespace:
    """Return what is read of vLLM's configuration."""
    from vllm.config.parallel import EPLBConfig

    eplb = EPLBConfig(window_size=2, step_interval=2, use_async=False, communicator="torch_nccl")
    parallel = SimpleNamespace(
        enable_eplb=True, eplb_config=eplb, tensor_parallel_size=1, data_parallel_size=RANKS, num_ubatches=0,
        enable_elastic_ep=False, prefill_context_parallel_size=1,
    )  # fmt: skip
    model = SimpleNamespace(
        get_num_experts=lambda: EXPERTS,
        model="tiny",
        compute_hash=lambda: "tiny",
        hf_config=SimpleNamespace(),
    )
    return SimpleNamespace(
        parallel_config=parallel,
        model_config=model,
        device_config=SimpleNamespace(device_type="cpu"),
        load_config=SimpleNamespace(load_format="auto"),
        additional_config={},
    )


def join(rank: int, folder: str) -> None:
    """Become one of two ranks, with vLLM's groups."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import parallel_state

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    # Ranks that name their shared memory differently use none. Else it would be used where vLLM's ops happen to be loaded,
    # by a name that only its workers set, and left behind.
    os.environ["VLLM_DIST_IDENT"] = str(rank)
    torch.set_num_threads(1)
    config = VllmConfig()
    config.parallel_config.enable_eplb = True
    with set_current_vllm_config(config):
        parallel_state.init_distributed_environment(
            RANKS, rank, distributed_init_method=f"file://{folder}/store", local_rank=rank, backend="gloo"
        )
        parallel_state.initialize_model_parallel(RANKS, backend="gloo")


def run(rank: int, folder: str, scenario: Callable[[int, str], object], answers: Any) -> None:  # noqa: ANN401 - a queue
    """Be one rank of a scenario, and answer what it returns or raises."""
    os.setsid()
    try:
        join(rank, folder)
        answers.put((rank, scenario(rank, folder), None))
    except BaseException as error:  # noqa: BLE001 - the test tells
        import traceback

        answers.put((rank, None, f"{error!r}\n{traceback.format_exc()}"))
    answers.close()
    answers.join_thread()
    # vLLM's groups are not made to be ended by one rank after the other.
    os._exit(0)


def write_map(folder: Path) -> None:
    """Write the map that every engine here starts from."""
    write_placement(Placement(ROWS, RANKS), folder / "map.json")
