# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Training of a tiny model: a fixed number of tokens, on the CPU, the same each time.

Nothing depends on the clock: a process that was stopped and goes on trains the same model.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from harness.tiny import checkpoint, problems
from harness.tiny.batches import IGNORE, Batch, batches
from harness.tiny.evaluate import load, score
from harness.tiny.models import build, routers
from harness.tiny.optimizer import Muon
from harness.tiny.tokenizer import PAD_ID

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from harness.tiny.plan import Plan

MUON_RATE = 0.02
ADAM_RATE = 3e-3
WARMUP_STEPS = 40
# From this share of the tokens on, rates fall to nothing in a straight line.
DECAY_FROM = 0.4
# How far an expert's correction moves in a step, as in DeepSeek-V3's report (there 0.001).
CORRECTION_STEP = 1e-3
CHECKS = 10


@dataclass
class Loads:
    """How many tokens each expert was chosen for, by hooks on the routers.

    Attributes:
        model: its routers are watched.
        real: which tokens of the batch are not padding, [rows · length] bool.
        step: counts of the batch, [experts] for each MoE layer.
        total: counts since `skew` was last asked, [MoE layers, experts].
    """

    model: PreTrainedModel
    real: torch.Tensor | None = None
    step: list[torch.Tensor] = field(default_factory=list)
    total: torch.Tensor | None = None

    def __post_init__(self) -> None:
        """Watch the routers."""
        for router in routers(self.model):
            router.register_forward_hook(self._count)

    def start(self, batch: Batch) -> None:
        """Begin a batch; padding is not counted."""
        self.real, self.step = (batch.tokens != PAD_ID).flatten(), []

    def _count(self, router: Any, _inputs: object, output: tuple[torch.Tensor, ...]) -> None:  # noqa: ANN401 - each architecture has a class of its own
        if self.model.training and self.real is not None:
            chosen = output[2][self.real].flatten()
            self.step.append(torch.bincount(chosen, minlength=router.num_experts))

    def finish(self) -> None:
        """Add the batch to the total."""
        counts = torch.stack(self.step)
        self.total = counts if self.total is None else self.total + counts

    def skew(self) -> list[float]:
        """Return each layer's largest load over its mean since the last time."""
        assert self.total is not None, "no batch was finished"
        skews = self.total.amax(dim=1) / self.total.float().mean(dim=1)
        self.total = None
        return [round(skew, 2) for skew in skews.tolist()]


def correct(model: PreTrainedModel, loads: Loads) -> None:
    """Raise the corrections of experts with less than the mean load, lower those with more.

    Algorithm: DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024, section 2.1.2. Corrections decide which experts
    are chosen, never how much they weigh. Routers without corrections are left as they are.
    """
    for router, load_of in zip(routers(model), loads.step, strict=True):
        bias = getattr(router, "e_score_correction_bias", None)
        if bias is not None:
            error = load_of.float().mean() - load_of
            bias.add_(error.sign(), alpha=CORRECTION_STEP)


def optimizers(model: PreTrainedModel) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of attention and experts, and Adam for all else, routers included."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, weight in model.named_parameters():
        inner = weight.dim() > 1 and not name.endswith(
            ("embed_tokens.weight", "lm_head.weight", "gate.weight")
        )
        (matrices if inner else others).append(weight)
    return [Muon(matrices, MUON_RATE), torch.optim.Adam(others, ADAM_RATE, betas=(0.9, 0.95))]


def rate_at(step: int, share: float) -> float:
    """Return the factor of the learning rates at a step, and a share of all tokens from 0 to 1."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * min(1.0, (1 - share) / (1 - DECAY_FROM))


def loss_of(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Return the mean loss over the tokens of answers."""
    # Padding stands on the right, where nothing that counts looks: no mask is needed.
    hidden = model.model(input_ids=batch.tokens, use_cache=False).last_hidden_state
    counts = batch.labels != IGNORE
    return cross_entropy(model.lm_head(hidden[counts]), batch.labels[counts])


def minutes() -> float:
    """Return the minutes of CPU that this process took: a stopped process takes none."""
    return round(time.process_time() / 60, 2)


def fit(
    plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, console: Console
) -> dict[str, Any]:
    """Train a model in place.

    Returns:
        The steps, the tokens, and a record of each tenth of the way; exact match there is on the examples for
        prompts, so that held-out problems decide nothing.
    """
    from rich.progress import Progress

    movers, loads, examples = optimizers(model), Loads(model), problems.fewshot()
    base = [[group["lr"] for group in mover.param_groups] for mover in movers]
    history: list[dict[str, Any]] = []
    seen = step = 0
    losses: list[float] = []
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"training {plan.kind.value}", total=plan.tokens)
        for batch in batches(tokenizer.backend_tokenizer):
            factor = rate_at(step, seen / plan.tokens)
            for mover, rates in zip(movers, base, strict=True):
                for group, rate in zip(mover.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
            loads.start(batch)
            loss = loss_of(model.train(), batch)
            loss.backward()  # type: ignore[no-untyped-call] # torch has no types here
            for mover in movers:
                mover.step()
                mover.zero_grad()
            correct(model, loads)
            loads.finish()
            losses.append(loss.item())
            seen, step = seen + batch.count, step + 1
            progress.update(task, completed=seen)
            if seen * CHECKS >= plan.tokens * (len(history) + 1):
                reached = score(model.eval(), tokenizer, examples)
                history.append(
                    {
                        "tokens": seen,
                        "cpu_minutes": minutes(),
                        "loss": round(sum(losses) / len(losses), 4),
                        "examples_exact_match": reached.exact_match,
                        "max_over_mean_load": loads.skew(),
                    }
                )
                losses = []
                console.print(f"{history[-1]}", soft_wrap=True, highlight=False)
            if seen >= plan.tokens:
                break
    return {"steps": step, "tokens": seen, "history": history}


def measure(folder: Path, console: Console) -> dict[str, Any]:
    """Return the exact match of a written checkpoint on the held-out problems."""
    asked, shots = problems.held_out(), problems.fewshot()[:5]
    found: dict[str, Any] = {"held_out": len(asked)}
    for name, dtype, examples in (
        ("bfloat16_0shot", "bfloat16", []),
        ("float32_0shot", "float32", []),
        ("float32_5shot", "float32", shots),
    ):
        model, tokenizer = load(folder, dtype)
        result = score(model, tokenizer, asked, examples, console)
        found[name] = {"correct": result.correct, "exact_match": result.exact_match}
        console.print(f"{name}: {result.correct} of {result.count}")
    return found


def train(plan: Plan, folder: Path, console: Console) -> dict[str, Any]:
    """Train, write the checkpoint's folder, measure what was written, and seal it with sums.

    Args:
        plan: what is trained.
        folder: is made; its files are replaced.
        console: shows progress.

    Returns:
        The log, as written.

    Raises:
        FormatError: the folder cannot be written.
    """
    import transformers

    torch.set_num_threads(plan.threads)
    torch.manual_seed(plan.seed)
    checkpoint.prepare(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = build(plan.kind, len(tokenizer), plan.seed)
    begun = time.monotonic()
    fitted = fit(plan, model, tokenizer, console)
    fitted |= {"cpu_minutes": minutes(), "wall_minutes": round((time.monotonic() - begun) / 60, 2)}
    checkpoint.save_model(folder, model, plan.kind)
    parameters = sum(weight.numel() for weight in model.parameters())
    log = checkpoint.log_of(plan, parameters, fitted, measure(folder, console))
    checkpoint.finish(folder, log)
    return log
