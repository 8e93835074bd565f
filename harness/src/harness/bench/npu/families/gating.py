# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Gating: which experts a token goes to, and with which weights."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from harness.bench.npu import peers
from harness.bench.npu.checking import DiffersError, require_close, require_count, require_like
from harness.bench.npu.inputs import Case, Family, Implementation, router_logits
from vllm_ascend_moe.npu_ops import ops
from vllm_ascend_moe.npu_ops.routing import select_experts

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.bench.npu.devices import Kind
    from harness.bench.npu.inputs import Outputs, Run, Tensors

# Scores that are nearer than this, as a share of the last one chosen, may be ordered either way by float32.
_TIE = 1e-5
# As many tokens of a case may have such scores where the choice ends; more of them would hide mistakes.
_MOST_TIES = 0.01


class Gating(Family):
    """Top-k of the scores within a token's best groups: logits float32 [T, E] → weights and ids [T, K]."""

    op = "gating"

    def make(self, case: Case) -> dict[str, torch.Tensor]:
        """Return logits, and a bias where the model has one."""
        experts = case.model.num_experts
        tensors = {"logits": router_logits(case, experts)}
        if case.model.biased:
            tensors["bias"] = torch.randn(experts, generator=case.generator(of_model=True)) * 0.1
        return tensors

    def reference(self, case: Case, tensors: Tensors) -> Outputs:
        """Choose in float64 by sorting; the third output says where two scores are too near to tell apart."""
        model, logits = case.model, tensors["logits"].double()
        scores = logits.softmax(-1) if model.scoring_func == "softmax" else logits.sigmoid()
        choice = scores + tensors["bias"].double() if model.biased else scores
        margin = torch.full((len(scores),), torch.inf, dtype=torch.float64)
        if model.topk_group < model.num_groups:
            grouped = choice.view(len(choice), model.num_groups, -1).sort(-1, descending=True).values
            group_score = grouped[..., :2].sum(-1) if model.biased else grouped[..., 0]
            ordered, order = group_score.sort(-1, descending=True)
            margin = ordered[:, model.topk_group - 1] - ordered[:, model.topk_group]
            group = torch.arange(choice.shape[1]) // (choice.shape[1] // model.num_groups)
            kept = (group[None, :, None] == order[:, None, : model.topk_group]).any(-1)  # [T, E]
            choice = torch.where(kept, choice, -torch.inf)
        ordered, order = choice.sort(-1, descending=True)
        ids = order[:, : model.top_k]
        if model.top_k < choice.shape[1]:
            margin = margin.minimum(ordered[:, model.top_k - 1] - ordered[:, model.top_k])
        weights = scores.gather(1, ids)
        if model.renormalize:
            weights = weights / weights.sum(-1, keepdim=True)
        nearest = margin / ordered[:, model.top_k - 1].abs()
        return weights * model.scaling, ids.to(torch.int32), nearest < _TIE

    def check(self, case: Case, tensors: Tensors, found: Outputs, wanted: Outputs) -> None:  # noqa: ARG002
        """Compare each token's set of experts, and the weight of each; the order within a token is free."""
        require_count(found, ("weights", "ids"))
        (weights, ids), (true_weights, true_ids, tie) = found, wanted
        require_like("weights", weights, true_weights, dtype=False)
        require_like("ids", ids, true_ids, dtype=False)
        if tie.float().mean() > _MOST_TIES:
            msg = f"{int(tie.sum())} of {case.tokens} tokens have equal scores; expected almost none"
            raise DiffersError(msg)
        by_id, by_true_id = ids.long().argsort(1), true_ids.argsort(1)
        sorted_ids, sorted_true = ids.long().gather(1, by_id), true_ids.long().gather(1, by_true_id)
        wrong = (sorted_ids != sorted_true).any(1) & ~tie
        # Where scores are equal any choice will do, as long as it is one.
        wrong |= (sorted_ids[:, 1:] == sorted_ids[:, :-1]).any(1) | (sorted_ids < 0).any(1)
        wrong |= (sorted_ids >= case.model.num_experts).any(1)
        if wrong.any():
            token = int(wrong.nonzero()[0])
            msg = f"ids[{token}] is {ids[token].tolist()}; expected {true_ids[token].tolist()} in any order"
            raise DiffersError(msg)
        mine, theirs = weights.gather(1, by_id)[~tie], true_weights.gather(1, by_true_id)[~tie]
        require_close("weights by id", mine, theirs, relative=1e-4, absolute=1e-6)

    def implementations(self, kind: Kind) -> list[Implementation]:
        """Return the twin, the kernel, what serves, torch_npu's op, and vLLM's routers."""
        op, about = ops.npu_moe_gating_top_k, "torch_npu's op; softmax's weights are divided after it"
        found = [Implementation("torch", "the plain-torch twin", partial(_by, op.twin))]
        if kind == "cpu" and op.fast is not None:
            found.append(Implementation("numba", "the kernel for a CPU", partial(_by, op.fast)))
        found.append(
            Implementation("select_experts", "the op and what it leaves to do", _serving, serves=True)
        )
        if kind == "npu":
            found.append(Implementation("npu", about, _npu))
        return found + peers.gating(kind)

    def bytes_moved(self, case: Case) -> int:
        """Read float32 logits and bias, write a float32 weight and an int32 id for each entry."""
        experts = case.model.num_experts
        return 4 * (case.tokens * experts + (experts if case.model.biased else 0)) + 8 * case.entries


def _arguments(case: Case, tensors: Tensors) -> dict[str, Any]:
    model = case.model
    return {
        "k": model.top_k,
        "bias": tensors.get("bias"),
        "k_group": model.topk_group,
        "group_count": model.num_groups,
        "group_select_mode": int(model.biased),
        "renorm": int(model.renormalize),
        "norm_type": int(model.scoring_func == "sigmoid"),
        "out_flag": False,
        "routed_scaling_factor": model.scaling,
        "eps": 1e-20,
    }


def _by(function: Callable[..., Any], case: Case, tensors: Tensors) -> Run:
    logits, arguments = tensors["logits"], _arguments(case, tensors)
    return lambda: function(logits, **arguments)[:2]


def _npu(case: Case, tensors: Tensors) -> Run:
    logits, arguments = tensors["logits"], {**_arguments(case, tensors), "renorm": 0}
    op = torch.ops.npu.npu_moe_gating_top_k
    if case.model.scoring_func == "sigmoid" or not case.model.renormalize:
        return lambda: op(logits, **arguments)[:2]

    def run() -> Outputs:
        weights, ids, _ = op(logits, **arguments)
        return weights / weights.sum(-1, keepdim=True), ids

    return run


def _serving(case: Case, tensors: Tensors) -> Run:
    logits, bias, config = tensors["logits"], tensors.get("bias"), case.model.routing()
    return lambda: select_experts(logits, config, bias)
