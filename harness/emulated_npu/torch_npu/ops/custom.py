# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""vllm-ascend's own ops that belong to no other family."""

from __future__ import annotations

import torch

from torch_npu._registry import CUSTOM, given


@given(CUSTOM, "get_masked_input_and_mask")
def get_masked_input_and_mask(
    input: torch.Tensor,  # noqa: A002
    org_vocab_start_index: int,
    org_vocab_end_index: int,
    num_org_vocab_padding: int,
    added_vocab_start_index: int,
    added_vocab_end_index: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where a rank's part of a vocabulary holds each token, 0 for tokens of others, and which those are."""
    org = (input >= org_vocab_start_index) & (input < org_vocab_end_index)
    added = (input >= added_vocab_start_index) & (input < added_vocab_end_index)
    own = org_vocab_end_index - org_vocab_start_index + num_org_vocab_padding
    place = torch.where(org, input - org_vocab_start_index, input - added_vocab_start_index + own)
    return torch.where(org | added, place, 0).to(input.dtype), ~(org | added)
