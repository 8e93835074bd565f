# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Batches of problems as tokens: single ones, and several joined as few-shot prompts are."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch

from harness.tiny.problems import training
from harness.tiny.stories import Dice
from harness.tiny.tokenizer import END_ID, PAD_ID

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenizers import Tokenizer

    from harness.tiny.problems import Problem

BATCH_TOKENS = 4096
# Problems in a row; single ones more often, since the accuracy that counts is without examples.
ROW_SIZES = (1, 1, 1, 1, 1, 1, 2, 3, 6)
# Problems that are drawn and sorted by length together, so that rows of a batch are about equally long.
POOL = 4096
IGNORE = -100
ORDER_SEED = 5


@dataclass(frozen=True)
class Batch:
    """Rows of tokens.

    Attributes:
        tokens: [rows, length] int64, padded on the right.
        labels: [rows, length] int64: the next token where an answer is written, `IGNORE` elsewhere.
        count: tokens that are not padding.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    count: int


Row = tuple[list[int], list[int]]  # tokens, and the labels of each


def row_of(group: list[Problem], tokenizer: Tokenizer) -> Row:
    """Join problems with empty lines between; the last answer ends in the end token.

    No loss is taken on what follows an answer that is not the last: always to end is unambiguous.
    """
    tokens: list[int] = []
    targets: list[int] = []  # each position's own token where it belongs to an answer
    for index, problem in enumerate(group):
        prompt = tokenizer.encode(f"{problem.prompt}").ids
        answer = tokenizer.encode(f" {problem.answer}").ids
        last = index == len(group) - 1
        close = [END_ID] if last else tokenizer.encode("\n\n").ids
        tokens += prompt + answer + close
        targets += [IGNORE] * len(prompt) + answer + (close if last else [IGNORE] * len(close))
    # A position predicts what comes after it.
    return tokens, [*targets[1:], IGNORE]


def stack(rows: list[Row]) -> Batch:
    """Pad rows to the longest."""
    length = max(len(tokens) for tokens, _ in rows)
    tokens = torch.full((len(rows), length), PAD_ID)
    labels = torch.full((len(rows), length), IGNORE)
    for index, (row_tokens, row_labels) in enumerate(rows):
        tokens[index, : len(row_tokens)] = torch.tensor(row_tokens)
        labels[index, : len(row_labels)] = torch.tensor(row_labels)
    return Batch(tokens, labels, sum(len(row) for row, _ in rows))


def _pool_batches(problems: list[Problem], tokenizer: Tokenizer, dice: Dice) -> list[Batch]:
    rows: list[Row] = []
    while problems:
        size = dice.pick(ROW_SIZES)
        rows.append(row_of(problems[-size:], tokenizer))
        del problems[-size:]
    rows.sort(key=lambda row: len(row[0]))
    batches, current = [], [rows[0]]
    for row in rows[1:]:
        if len(row[0]) * (len(current) + 1) > BATCH_TOKENS:
            batches.append(stack(current))
            current = []
        current.append(row)
    return [*batches, stack(current)]


def batches(tokenizer: Tokenizer) -> Iterator[Batch]:
    """Generate batches to train on, without end; always the same ones."""
    problems, dice = training(), Dice(ORDER_SEED)
    while True:
        pool = _pool_batches(list(islice(problems, POOL)), tokenizer, dice)
        while pool:
            # Lengths in a mixed order.
            index = dice.between(0, len(pool) - 1)
            pool[index], pool[-1] = pool[-1], pool[index]
            yield pool.pop()
