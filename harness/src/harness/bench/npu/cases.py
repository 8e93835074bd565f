# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The one generator of parameters: what is checked, what the unit tests try and what is timed come from here."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch

from harness.bench.npu.models import MODELS, Model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from harness.bench.npu.devices import Kind

    Tensors = Mapping[str, torch.Tensor]
    Outputs = tuple[torch.Tensor, ...]
    Run = Callable[[], Outputs]

Phase = Literal["decode", "prefill"]
Variant = Literal["warm", "cold", "pipelined"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)

# Tokens of a step: decode is a token of each sequence of a batch, prefill a chunk of few prompts.
TOKENS: dict[Phase, tuple[int, ...]] = {"decode": (1, 16, 128, 512), "prefill": (1024, 8192)}
SHORT_TOKENS: dict[Phase, tuple[int, ...]] = {"decode": (16,), "prefill": (1024,)}
SHORT_MODELS = ("deepseek-v3", "qwen3-next")
# Products at other shapes would take a CPU five sixths of the short form's time.
_SHORT_PRODUCTS = dict.fromkeys(("grouped_matmul", "moe"), ("qwen3-next", 16))
# Tokens of one prompt in a chunk.
PROMPT = 512


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
    """

    name: str
    about: str
    prepare: Callable[[Case, Tensors], Run]
    is_peer: bool = False


class Family(ABC):
    """An op: its inputs, its reference and who does it.

    Attributes:
        op: its name.
        about: a line for the table.
    """

    op: str
    about: str

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
    """Return how a case is timed: long calls on a CPU warm only, for the other two would say the same."""
    is_long = kind == "cpu" and not _within(family, case, _LONG_CPU_BYTES, _LONG_CPU_FLOPS)
    return VARIANTS[:1] if is_long else VARIANTS


@dataclass(frozen=True)
class Selection:
    """Which of all cases are timed; None is all.

    Attributes:
        ops: names of families.
        models: names of models.
        tokens: token counts.
        variants: how each is timed.
        short: whether this is the short form, which has shapes and counts of its own.
    """

    ops: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    tokens: tuple[int, ...] | None = None
    variants: tuple[Variant, ...] | None = None
    short: bool = False

    def takes(self, *, op: str, model: str, tokens: int, variant: str | None = None) -> bool:
        """Return whether a benchmark is part of the selection, going by what its name says."""
        return (
            (self.ops is None or op in self.ops)
            and (self.models is None or model in self.models)
            and (self.tokens is None or tokens in self.tokens)
            and (self.variants is None or variant is None or variant in self.variants)
            and (not self.short or _is_short(op, model, tokens))
        )

    @property
    def is_everything(self) -> bool:
        """Whether nothing is left out."""
        return self == Selection()


def _is_short(op: str, model: str, tokens: int) -> bool:
    if op in _SHORT_PRODUCTS:
        return (model, tokens) == _SHORT_PRODUCTS[op]
    return model in SHORT_MODELS and tokens in sum(SHORT_TOKENS.values(), ())


def cases_of(family: Family, selection: Selection, models: Iterable[Model] = ()) -> list[Case]:
    """Return a family's cases: every model, in the order of the table, by tokens."""
    return [
        Case(family.op, model, phase, tokens)
        for model in (tuple(models) or MODELS.values())
        for phase, counts in TOKENS.items()
        for tokens in counts
        if selection.takes(op=family.op, model=model.name, tokens=tokens)
    ]


def fitting(family: Family, selection: Selection, kind: Kind) -> list[Case]:
    """Return those of a family's cases that a device is asked for."""
    return [case for case in cases_of(family, selection) if fits(family, case, kind)]


def router_logits(case: Case, num_experts: int) -> torch.Tensor:
    """Return logits that make some experts hotter than others: float32 [T, E].

    Tokens of a decode step are of as many sequences and share only that; tokens of a prefill chunk share a
    prompt's leaning too, so that whole blocks of them go to the same experts.
    """
    shared = torch.randn(num_experts, generator=case.generator(of_model=True)) * 0.5
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
