# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`--model`: a model by its config.json or its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from expert_maps.models import ModelCounts

MODEL_HELP = "A model's config.json, its folder, - for standard input, or a known name such as deepseek-r1"
"""What `--model` takes, to begin a help text with."""


def read_model(
    model: str,
    layers: int | Sequence[int] | None = None,
    *,
    if_untold: int | Sequence[int] | Literal["all"] | None = None,
) -> ModelCounts:
    """Read what `--model` names, once for a command, and warn where no key of it says which layers are MoE.

    Args:
        model: a path, ``-`` or a name.
        layers: the MoE layers' indices, or how many, as an option says; None takes the model's.
        if_untold: the same, or all, where the model's cannot be told.

    Raises:
        FormatError: see `expert_maps.models.model_counts`.
    """
    from expert_maps.cli.output import warn
    from expert_maps.cli.reading import as_input
    from expert_maps.models import layers_text, model_counts

    counts = model_counts(as_input(model), layers=layers, if_untold=if_untold)
    if counts.is_assumed:
        warn(
            f"{counts.name}: no key says which layers are MoE; {layers_text(counts)} taken: "
            "say --layers where that is wrong"
        )
    return counts
