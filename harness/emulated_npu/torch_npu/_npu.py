# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`torch.npu`, which is `torch_npu.npu` too."""

from __future__ import annotations

import contextlib
import types
from typing import TYPE_CHECKING, NoReturn

import torch

from torch_npu import _environment, _names, _streams

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# What vLLM's profiling sees of the memory, in bytes: what a start needs, no more.
_MEMORY = 8 << 30
# Profiling wants to see that running the model used some.
_USED_AT_EACH_LOOK = 1 << 20


class Properties:
    """Properties of a device, which nothing but log lines and tile sizes depend on."""

    name = "Ascend910B3"
    total_memory = _MEMORY
    cube_core_num = multi_processor_count = 20
    vector_core_num = 40
    major = minor = 0
    uuid = "emulated"
    L2_cache_size = 1 << 20


class NPUGraph:
    """A graph, of which there is none."""

    def __init__(self, *_: object, **__: object) -> None:
        """Refuse.

        Raises:
            NotImplementedError: always.
        """
        msg = "torch.npu.NPUGraph is not emulated; expected enforce_eager"
        raise NotImplementedError(msg)


class NPUPluggableAllocator:
    """An allocator of one's own, of which there is none."""

    def __init__(self, *_: object) -> None:
        """Refuse.

        Raises:
            NotImplementedError: always.
        """
        msg = "torch.npu.memory.NPUPluggableAllocator is not emulated; expected no sleep mode"
        raise NotImplementedError(msg)


class MemPool:
    """A pool of memory; it is only named."""


@contextlib.contextmanager
def _use_mem_pool(*_: object, **__: object) -> Iterator[None]:
    yield


def _make_memory() -> types.ModuleType:
    memory = types.ModuleType("torch.npu.memory")
    memory.__dict__.update(
        NPUPluggableAllocator=NPUPluggableAllocator,
        MemPool=MemPool,
        use_mem_pool=_use_mem_pool,
        memory_snapshot=lambda *_: [],
    )
    return memory


class NpuModule(types.ModuleType):
    """What torch and vllm-ascend ask a device for. A name that is not here is refused by its name."""

    Stream = _streams.Stream
    Event = ExternalEvent = _streams.Event
    NPUGraph = NPUGraph

    def __init__(self) -> None:
        """Start on device 0."""
        super().__init__("torch.npu")
        self.__path__: list[str] = []
        self.memory = _make_memory()
        self.config = types.SimpleNamespace(allow_internal_format=False)
        self.mstx = types.SimpleNamespace(range_start=lambda *_, **__: 0, range_end=lambda *_: None)
        self._index = 0
        self._stream = _streams.Stream()
        self._used = 0

    def __getattribute__(self, name: str) -> object:
        if not name.startswith("_"):
            _names.used(f"torch.npu.{name}")
        return super().__getattribute__(name)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        msg = f"torch.npu.{name} is not emulated"
        raise AttributeError(msg)

    # 1. The device.

    def is_initialized(self) -> bool:
        """Return that it is."""
        return True

    def is_available(self) -> bool:
        """Return that there is one."""
        return True

    def init(self) -> None:
        """Do nothing."""

    def _lazy_init(self) -> None:
        """Do nothing."""

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        """Return how many devices the environment names."""
        return _environment.device_count()

    def current_device(self) -> int:
        """Return this process's device."""
        return self._index

    def set_device(self, device: int | str | torch.device) -> None:
        """Choose this process's device.

        Raises:
            RuntimeError: there is none of that number.
        """
        index = device if isinstance(device, int) else torch.device(device).index or 0
        if not 0 <= index < _environment.device_count():
            msg = f"torch.npu.set_device: device is {index}; expected one below {_environment.device_count()}"
            raise RuntimeError(msg)
        self._index = index

    @contextlib.contextmanager
    def device(self, device: int | str | torch.device) -> Iterator[None]:
        """Choose another device for the time of a `with` block."""
        before = self._index
        self.set_device(device)
        try:
            yield
        finally:
            self._index = before

    def get_device_name(self, device: object = None) -> str:  # noqa: ARG002 - torch's signature
        """Return a chip's name."""
        return Properties.name

    def get_device_properties(self, device: object = None) -> Properties:  # noqa: ARG002
        """Return the same for every device."""
        return Properties()

    def get_device_capability(self, device: object = None) -> None:
        """Return none, as an NPU does."""

    def get_soc_version(self) -> int:
        """Return the number of the chip that the environment names."""
        return _environment.SOC_VERSIONS[_environment.soc()]

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Return the dtypes of automatic mixed precision."""
        return [torch.float16, torch.bfloat16]

    def utilization(self, device: object = None) -> int:  # noqa: ARG002
        """Return that it is idle."""
        return 0

    # 2. Streams.

    def synchronize(self, device: object = None) -> None:
        """Wait for nothing: what is called has been done."""

    @contextlib.contextmanager
    def stream(self, stream: object) -> Iterator[None]:  # noqa: ARG002
        """Change nothing for the time of a `with` block."""
        yield

    def current_stream(self, device: object = None) -> _streams.Stream:  # noqa: ARG002
        """Return the one stream."""
        return self._stream

    def default_stream(self, device: object = None) -> _streams.Stream:  # noqa: ARG002
        """Return the one stream."""
        return self._stream

    def set_stream(self, stream: object) -> None:
        """Do nothing."""

    def is_current_stream_capturing(self) -> bool:
        """Return that no graph is being made."""
        return False

    def set_compile_mode(self, **_: object) -> None:
        """Do nothing: nothing is compiled."""

    def graph_pool_handle(self) -> None:
        """Return none: there are no graphs."""

    # 3. Memory.

    def empty_cache(self) -> None:
        """Do nothing."""

    def mem_get_info(self, device: object = None) -> tuple[int, int]:  # noqa: ARG002
        """Return free and all bytes of an imagined memory, a little less free at each look."""
        self._used += _USED_AT_EACH_LOOK
        return _MEMORY - self._used, _MEMORY

    def memory_stats(self, device: object = None) -> Mapping[str, int]:  # noqa: ARG002
        """Return that nothing is allocated."""
        return {"allocated_bytes.all.peak": 0, "allocated_bytes.all.current": 0, "num_alloc_retries": 0}

    def memory_reserved(self, device: object = None) -> int:  # noqa: ARG002
        """Return that nothing is reserved."""
        return 0

    def memory_allocated(self, device: object = None) -> int:  # noqa: ARG002
        """Return that nothing is allocated."""
        return 0

    def max_memory_allocated(self, device: object = None) -> int:  # noqa: ARG002
        """Return that nothing was allocated."""
        return 0

    def reset_peak_memory_stats(self, device: object = None) -> None:
        """Do nothing."""

    # 4. Random numbers: those of the CPU.

    def manual_seed(self, seed: int) -> None:
        """Seed the CPU's generator."""
        torch.default_generator.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        """Do nothing: torch.manual_seed, which calls this, seeds the CPU's generator itself."""

    def get_rng_state(self, device: object = None) -> torch.Tensor:  # noqa: ARG002
        """Return the CPU's state."""
        return torch.get_rng_state()

    def set_rng_state(self, new_state: torch.Tensor, device: object = None) -> None:  # noqa: ARG002
        """Set the CPU's state."""
        torch.set_rng_state(new_state)
