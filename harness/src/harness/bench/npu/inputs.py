# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The one generator of inputs: what is checked, what the unit tests try and what is timed come from here."""

from __future__ import annotations

import functools
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from harness.bench.npu.models import MODELS, Model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from harness.bench.npu.devices import Kind
    from vllm_ascend_moe.npu_ops.ops import Op

    Tensors = Mapping[str, torch.Tensor]
    Outputs = tuple[torch.Tensor, ...]
    # What is timed returns its outputs, or its one output.
    Run = Callable[[], Outputs | list[torch.Tensor] | torch.Tensor]

Phase = Literal["decode", "prefill"]
Variant = Literal["warm", "cold", "pipelined"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)

# Tokens of a step: decode is a token of each sequence of a batch, prefill a chunk of few prompts.
TOKENS: dict[Phase, tuple[int, ...]] = {"decode": (1, 16, 128, 512), "prefill": (1024, 8192)}
# Tokens of one prompt in a chunk.
PROMPT = 512
# How uneven experts are: the deviation of the logarithm of an expert's share of a layer's tokens. Recorded loads have
# 0.4 to 1.2 (OLMoE-1B-7B by corpus, DeepSeek-V2-Lite by task of ESFT, 64 experts each), 0.85 in the middle.
SKEW = 0.85
# What makes top-k of normal logits as uneven: tried for 128 to 512 experts.
_SHARED_LOGITS = 0.35


@dataclass(frozen=True)
class Case:
    """One op at one shape; the tensors follow from it.

    Attributes:
        op: the family's name.
        model: the layer.
        phase: whether tokens are of many sequences or of few.
        tokens: T.
    """

    op: str
    model: Model
    phase: Phase
    tokens: int

    @property
    def name(self) -> str:
        """Op, model, phase and tokens."""
        return f"{self.op}/{self.model.name}/{self.phase}/{self.tokens}"

    @property
    def entries(self) -> int:
        """Tokens times experts a token, T·K."""
        return self.tokens * self.model.top_k

    @property
    def dtype(self) -> torch.dtype:
        """Of activations and weights."""
        found: torch.dtype = getattr(torch, self.model.dtype)
        return found

    def generator(self, *, of_model: bool = False) -> torch.Generator:
        """Return a generator of random numbers, seeded from the case's own name, or the model's alone."""
        name = f"{self.op}/{self.model.name}" if of_model else self.name
        return torch.Generator().manual_seed(zlib.crc32(name.encode()))


@dataclass(frozen=True)
class Implementation:
    """One way of doing an op.

    Attributes:
        name: as it stands in records.
        about: what it is, for the table.
        prepare: does once what is not timed, such as packing weights; what it returns is timed. Called on
            tensors that lie on the device; counters that are added to are fresh each time.
        is_peer: whether the others' times are set against it.
        serves: whether it is what the plugin runs on this device; one of a family.
    """

    name: str
    about: str
    prepare: Callable[[Case, Tensors], Run]
    is_peer: bool = False
    serves: bool = False

    def outputs(self, case: Case, tensors: Tensors) -> Outputs:
        """Prepare and run once; return the outputs on the CPU."""
        found = self.prepare(case, tensors)()
        return tuple(one.cpu() for one in ((found,) if isinstance(found, torch.Tensor) else found))


def own(
    op: Op[..., Any], kind: Kind, twin: str, bind: Callable[[Callable[..., Any], Case, Tensors], Run]
) -> list[Implementation]:
    """Return an op's forms on a device, which take the same arguments; the last one is what the plugin runs there.

    Args:
        op: which.
        kind: of the device.
        twin: what the twin is, for the table.
        bind: binds a form to its arguments.
    """
    forms: list[tuple[str, str, Callable[..., Any]]] = [("torch", twin, op.twin)]
    if kind == "cpu" and op.fast is not None:
        forms.append(("numba", "the kernel for a CPU", op.fast))
    if kind == "npu":
        forms.append(("npu", "torch_npu's op", getattr(torch.ops.npu, op.name)))
    return [
        Implementation(name, about, functools.partial(bind, function), serves=name == forms[-1][0])
        for name, about, function in forms
    ]


class Family(ABC):
    """An op: its inputs, its reference and who does it.

    Attributes:
        op: its name.
    """

    op: str

    @abstractmethod
    def make(self, case: Case) -> dict[str, torch.Tensor]:
        """Return the inputs, seeded, on the CPU."""

    @abstractmethod
    def reference(self, case: Case, tensors: Tensors) -> Outputs:
        """Return the right outputs, by other means than any implementation."""

    @abstractmethod
    def check(self, case: Case, tensors: Tensors, found: Outputs, wanted: Outputs) -> None:
        """Compare outputs with the reference's, all on the CPU.

        Raises:
            DiffersError: they are not the same.
        """

    @abstractmethod
    def implementations(self, kind: Kind) -> list[Implementation]:
        """Return the implementations that this machine has for a device."""

    @abstractmethod
    def bytes_moved(self, case: Case) -> int:
        """Return the bytes that cannot be avoided: each input read once, each output written once."""

    def flops(self, case: Case) -> int:  # noqa: ARG002 - most ops multiply next to nothing
        """Return the floating-point operations of matrix products; 0 where memory is what counts."""
        return 0


# What a CPU is not asked: an output that takes a second to write, or products of many seconds.
_MOST_CPU_BYTES = 700_000_000
_MOST_CPU_FLOPS = 100_000_000_000
# Past these a call takes so long that neither a cold cache nor the launch of a call shows in it.
_LONG_CPU_BYTES = 128_000_000
_LONG_CPU_FLOPS = 4_000_000_000


def _within(family: Family, case: Case, most_bytes: int, most_flops: int) -> bool:
    """Return whether a case costs no more: products by what they compute, all else by what it moves."""
    flops = family.flops(case)
    return flops <= most_flops if flops else family.bytes_moved(case) <= most_bytes


def fits(family: Family, case: Case, kind: Kind) -> bool:
    """Return whether a case is timed on a device: on accelerators all are."""
    return kind != "cpu" or _within(family, case, _MOST_CPU_BYTES, _MOST_CPU_FLOPS)


def variants_of(family: Family, case: Case, kind: Kind) -> Sequence[Variant]:
    """Return how a case is timed: on a CPU nothing is pipelined, and long calls warm only, for cold would say the same."""
    if kind != "cpu":
        return VARIANTS
    return VARIANTS[:2] if _within(family, case, _LONG_CPU_BYTES, _LONG_CPU_FLOPS) else VARIANTS[:1]


def cases_of(family: Family) -> list[Case]:
    """Return a family's cases: every model, in the order of the table, by tokens."""
    return [
        Case(family.op, model, phase, tokens)
        for model in MODELS.values()
        for phase, counts in TOKENS.items()
        for tokens in counts
    ]


def is_short(case: Case) -> bool:
    """Return whether a case is part of the short form, for CI."""
    if case.op in _PRODUCTS:
        # Products at other shapes would take a CPU five sixths of the short form's time.
        return (case.model.name, case.tokens) == ("qwen3-next", 16)
    return case.model.name in {"deepseek-v3", "qwen3-next"} and case.tokens in {16, 1024}


_PRODUCTS = ("grouped_matmul", "moe")


def router_logits(case: Case, num_experts: int) -> torch.Tensor:
    """Return logits that make some experts hotter than others: float32 [T, E].

    Tokens of a decode step are of as many sequences and share only that; tokens of a prefill chunk share a
    prompt's leaning too, so that whole blocks of them go to the same experts.
    """
    shared = torch.randn(num_experts, generator=case.generator(of_model=True)) * _SHARED_LOGITS
    logits = torch.randn(case.tokens, num_experts, generator=case.generator()) + shared
    if case.phase == "prefill":
        generator = torch.Generator().manual_seed(case.generator().initial_seed() + 1)
        prompts = torch.randn(-(-case.tokens // PROMPT), num_experts, generator=generator)
        logits += prompts.repeat_interleave(PROMPT, dim=0)[: case.tokens]
    return logits


def top_ids(case: Case, num_experts: int) -> torch.Tensor:
    """Return each token's experts, best first: int32 [T, K], of ``num_experts``."""
    top_k = min(case.model.top_k, num_experts)
    return router_logits(case, num_experts).topk(top_k, dim=-1).indices.to(torch.int32)


def rank_ids(case: Case) -> torch.Tensor:
    """Return the local expert of each row that a rank is sent: int32 [T·K, 1].

    All ranks send rows, each of a token and one of its experts; where ranks are balanced, T·K of them are this one's.
    Its experts are as uneven as recorded loads, and of few rows some experts have none.
    """
    experts = case.model.local_experts
    generator = torch.Generator().manual_seed(zlib.crc32(f"{case.model.name}/{experts}".encode()))
    shares = (SKEW * torch.randn(experts, generator=generator)).exp()
    ids = torch.multinomial(shares, case.entries, replacement=True, generator=case.generator())
    return ids.to(torch.int32).unsqueeze(1)


def activations(case: Case, rows: int, columns: int) -> torch.Tensor:
    """Return normally distributed rows of the model's dtype; past a few megabytes they repeat, moved on."""
    base_rows = min(rows, max(1, (1 << 21) // columns))
    base = torch.randn(base_rows, columns, generator=case.generator()).to(case.dtype)
    if base_rows == rows:
        return base
    whole = torch.empty(rows, columns, dtype=case.dtype)
    for block, start in enumerate(range(0, rows, base_rows)):
        part = whole[start : start + base_rows]
        part.copy_(base[: len(part)].roll(block, dims=1))
    return whole
