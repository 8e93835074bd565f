# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Rules that users of EPLB know, and that a trace of tokens cannot show."""

from __future__ import annotations

from dataclasses import dataclass

from expert_maps.errors import ExpertMapsError
from expert_maps.validation import as_count

PHASES = ("prefill", "decode", "mixed")
DEVICES = ("a2", "other")

# Both by vllm-ascend's guide to EPLB.
_FEW_EXPERTS = 8
_SHORT_PROMPT = 1024


@dataclass(frozen=True)
class Served:
    """What is known of the server.

    Attributes:
        phase: what the trace was recorded in: ``prefill``, ``decode`` or ``mixed``.
        device: ``a2`` for Ascend Atlas A2, else ``other``.
        prompt_tokens: tokens of a usual prompt; None where that is not known.
        device_memory: bytes of a rank's device that the server may take; None where nobody said it.
        other_memory: bytes of them for all but experts and cache: other weights, activations.
    """

    phase: str = "mixed"
    device: str = "other"
    prompt_tokens: int | None = None
    device_memory: int | None = None
    other_memory: int = 0

    def __post_init__(self) -> None:
        """Refuse other words.

        Raises:
            ExpertMapsError: the value and what was expected are named.
        """
        for name, value, known in (("phase", self.phase, PHASES), ("device", self.device, DEVICES)):
            if value not in known:
                msg = f"{name} is {value!r}; expected {' or '.join(known)}"
                raise ExpertMapsError(msg)
        if self.prompt_tokens is not None:
            as_count("prompt_tokens", self.prompt_tokens, 1)
        if self.device_memory is not None:
            as_count("device_memory", self.device_memory, 1, 2**63 - 1)
        as_count("other_memory", self.other_memory, 0, 2**63 - 1)


@dataclass(frozen=True)
class Rule:
    """A rule that applies.

    Attributes:
        name: in a few words.
        text: what it says, and whose it is.
        means_no: whether it turns a yes into a no.
    """

    name: str
    text: str
    means_no: bool


def apply_rules(served: Served, num_experts: int, ep_size: int) -> list[Rule]:
    """Return the rules that apply to E experts on R ranks."""
    found = []
    own = -(-num_experts // ep_size)
    if served.phase == "decode" and own <= _FEW_EXPERTS:
        text = (
            f"{own} experts a rank in decode: a layer's time is that of loading weights, not of its tokens; "
            f"vllm-ascend's guide advises against EPLB at {_FEW_EXPERTS} experts a rank or fewer"
        )
        found.append(Rule("few experts a rank in decode", text, means_no=True))
    if served.prompt_tokens is not None and served.prompt_tokens < _SHORT_PROMPT:
        text = (
            f"prompts of {served.prompt_tokens} tokens: batches too small for the hottest rank to count; "
            f"vllm-ascend's guide advises against EPLB below {_SHORT_PROMPT}"
        )
        found.append(Rule("short prompts", text, means_no=True))
    if served.device == "a2":
        text = (
            "Atlas A2: vllm-ascend's AllGather path reads the expert map by physical ids, and a map with redundant "
            "experts fails there (seen on the emulated NPU); only 0 redundant experts are considered"
        )
        found.append(Rule("A2 and redundancy", text, means_no=False))
    return found
