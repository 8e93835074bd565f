# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Exact match of a model on word problems: greedy, by transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import track

from expert_maps.errors import FormatError
from expert_maps.files import describe

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from harness.tiny.problems import Problem

STOP = "Question:"
# The longest answer of eight calculations has fewer.
MAX_NEW_TOKENS = 128
BATCH_TOKENS = 16_384


@dataclass(frozen=True)
class Score:
    """Answers that are right.

    Attributes:
        correct: how many.
        count: of how many.
    """

    correct: int
    count: int

    @property
    def exact_match(self) -> float:
        """Share that is right, rounded to what a log shows."""
        return round(self.correct / self.count, 4)


def final_answer(text: str) -> str | None:
    """Return what stands after the first `####`, or None where nothing does; text from `Question:` on is cut."""
    _, marker, rest = text.partition(STOP)[0].partition("####")
    words = rest.split()
    return words[0] if marker and words else None


def prompt_of(problem: Problem, shots: Sequence[Problem]) -> str:
    """Return a prompt of solved examples and the problem, empty lines between."""
    solved = [f"{shot.prompt} {shot.answer}" for shot in shots]
    return "\n\n".join([*solved, problem.prompt])


def _batches(lengths: list[int]) -> list[list[int]]:
    """Return indices in batches of similar lengths."""
    groups: list[list[int]] = [[]]
    for index in sorted(range(len(lengths)), key=lambda one: -lengths[one]):
        # The longest comes first, so it says how much room each row takes.
        if groups[-1] and (len(groups[-1]) + 1) * (lengths[groups[-1][0]] + MAX_NEW_TOKENS) > BATCH_TOKENS:
            groups.append([])
        groups[-1].append(index)
    return groups


@torch.no_grad()
def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    console: Console | None = None,
) -> list[str]:
    """Continue prompts greedily, until the end token.

    Args:
        model: any causal model of transformers.
        tokenizer: its tokenizer, padding on the left.
        prompts: what to continue.
        console: shows progress, where given.

    Returns:
        The new text of each prompt.
    """
    lengths = [len(ids) for ids in tokenizer(list(prompts)).input_ids]
    texts = [""] * len(prompts)
    groups = _batches(lengths)
    for group in track(groups, "answering", console=console, disable=console is None):
        inputs = tokenizer([prompts[index] for index in group], return_tensors="pt", padding=True)
        output = model.generate(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
        )
        new = output[:, inputs.input_ids.shape[1] :]
        for index, text in zip(group, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
            texts[index] = text
    return texts


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
    shots: Sequence[Problem] = (),
    console: Console | None = None,
) -> Score:
    """Count the problems whose final answer is right to the letter."""
    texts = answers(model, tokenizer, [prompt_of(problem, shots) for problem in problems], console)
    right = [final_answer(text) == one.result for text, one in zip(texts, problems, strict=True)]
    return Score(sum(right), len(right))


def load(folder: Path, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load a checkpoint.

    Args:
        folder: with `config.json`, weights, and a tokenizer.
        dtype: `float32` or `bfloat16`: what it computes in.

    Raises:
        FormatError: there is no checkpoint, or transformers cannot load it.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").is_file():
        msg = f"{describe(folder)}: holds no config.json; expected the folder of a checkpoint"
        raise FormatError(msg)
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "experts_implementation": "grouped_mm"}
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        msg = f"{describe(folder)}: transformers cannot load it: {reason}"
        raise FormatError(msg) from error
    return model.eval(), tokenizer
