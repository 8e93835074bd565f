# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.tiny.models import Kind


@dataclass(frozen=True)
class Plan:
    """What is trained.

    Attributes:
        kind: which model.
        tokens: how many, padding not counted.
        seed: of the weights.
        threads: of torch.
    """

    kind: Kind
    tokens: int
    seed: int = 0
    threads: int = 1
