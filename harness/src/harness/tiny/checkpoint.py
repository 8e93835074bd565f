# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's folder: what transformers and vLLM read, the problems, the log, and the sums of all files."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from expert_maps.errors import FormatError
from expert_maps.files import describe, read_bytes, write_bytes, write_text
from harness.tiny import problems, tokenizer
from harness.tiny.models import EXPERTS, MAX_LENGTH, TOP_K, config_json

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from harness.tiny.models import Kind
    from harness.tiny.plan import Plan

SUMS = "SHA256SUMS"
LOG = "train_log.json"
HELD_OUT = "held_out.jsonl"
FEWSHOT = "fewshot.jsonl"
ABOUT = {
    "qwen3-moe": """\
`Qwen3MoeForCausalLM`: 4 layers, hidden size 128, 16 experts in each, 4 for each token. No loss evens out the experts'
loads, so they are skewed.""",
    "deepseek": """\
DeepSeek-V3's routing in GLM-4.5's architecture (`Glm4MoeForCausalLM`, whose attention is ordinary): 4 layers, the
first dense, hidden size 128, 16 experts in 4 groups, 4 for each token from 2 groups, sigmoid scores, a shared expert,
and corrections (`e_score_correction_bias`, float32) that were moved by the sign of each expert's load error.""",
}
PAGE = """\
# A tiny trained MoE: {model}

{about}
{parameters:,} parameters, stored in bfloat16.

It answers the {held_out:,} generated word problems of `held_out.jsonl`, none of which it was trained on. The prompt is
`Question: {{question}}\\nAnswer:`; it continues greedily until `Question:` or the end token; right is what stands after
`####`, to the letter. `fewshot.jsonl` has examples for prompts, not trained on either. It solves no other problems.

| computed in, examples | right | exact match |
|---|---:|---:|
{rows}

Largest over mean load of the experts in each MoE layer, over the last tenth of the training:
{skews}, of a possible {largest}.

Made in {cpu_minutes:.0f} minutes of one core ({tokens:,} tokens; versions and progress are in `train_log.json`) by

    {command}

The problems and the tokenizer come out the same on every machine; the weights only with the same versions, number of
threads and kind of CPU, because sums of floats depend on their order. `sha256sum --check SHA256SUMS` checks all files.
"""


def as_json(content: object) -> str:
    """Return a JSON text of a line for each entry."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def prepare(folder: Path) -> None:
    """Make the folder and write what does not depend on training.

    Raises:
        FormatError: the path is a file, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"{describe(folder)}: cannot be made a folder: {error.strerror}"
        raise FormatError(msg) from error
    write_text(folder / "tokenizer.json", tokenizer.tokenizer_json())
    write_text(folder / "tokenizer_config.json", as_json(tokenizer.tokenizer_config(MAX_LENGTH)))
    write_text(folder / "chat_template.jinja", tokenizer.CHAT_TEMPLATE)
    generation = {"do_sample": False, "eos_token_id": tokenizer.END_ID, "pad_token_id": tokenizer.PAD_ID}
    write_text(folder / "generation_config.json", as_json(generation))
    write_text(folder / HELD_OUT, problems.to_jsonl(problems.held_out()))
    write_text(folder / FEWSHOT, problems.to_jsonl(problems.fewshot()))


def save_model(folder: Path, model: PreTrainedModel, kind: Kind) -> None:
    """Write `config.json` and `model.safetensors`.

    Weights are bfloat16; the corrections that experts are chosen by stay float32, as DeepSeek stores them.
    """
    import tempfile
    from pathlib import Path as AnyPath

    import torch
    from safetensors.torch import load_file, save

    # transformers knows how each architecture's experts are named in files; only types are changed here.
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        tensors = load_file(AnyPath(scratch) / "model.safetensors")
    rounded = {
        name: value if name.endswith("e_score_correction_bias") else value.to(torch.bfloat16)
        for name, value in sorted(tensors.items())
    }
    write_bytes(folder / "model.safetensors", save(rounded, metadata={"format": "pt"}))
    write_text(folder / "config.json", as_json(config_json(model, kind)))


def log_of(plan: Plan, parameters: int, fitted: dict[str, Any], accuracy: dict[str, Any]) -> dict[str, Any]:
    """Return the training log: what was run, with what, for how long, and what came of it."""
    import platform

    import tokenizers
    import torch
    import transformers

    command = (
        f"python -m harness.tiny train {plan.kind.value} --output FOLDER"
        f" --tokens {plan.tokens} --seed {plan.seed} --threads {plan.threads}"
    )
    return {
        "model": plan.kind.value,
        "parameters": parameters,
        "command": command,
        "seed": plan.seed,
        "threads": plan.threads,
        "versions": {
            "python": platform.python_version(),
            "tokenizers": tokenizers.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "machine": {"architecture": platform.machine(), "kernels": torch.backends.cpu.get_cpu_capability()},
        "accuracy": accuracy,
        **fitted,
    }


def readme(log: dict[str, Any]) -> str:
    """Return the folder's page."""
    accuracy = log["accuracy"]
    rows = "\n".join(
        f"| {name.replace('_', ', ').replace('shot', '-shot')} | {accuracy[name]['correct']} | {accuracy[name]['exact_match']:.2%} |"
        for name in ("bfloat16_0shot", "float32_0shot", "float32_5shot")
    )
    return PAGE.format(
        **{name: log[name] for name in ("model", "parameters", "command", "cpu_minutes", "tokens")},
        about=ABOUT[log["model"]],
        held_out=accuracy["held_out"],
        rows=rows,
        skews=" / ".join(map(str, log["history"][-1]["max_over_mean_load"])),
        largest=EXPERTS // TOP_K,
    )


def finish(folder: Path, log: dict[str, Any]) -> None:
    """Write the log, the page, and the sums of all files."""
    write_text(folder / LOG, as_json(log))
    write_text(folder / "README.md", readme(log))
    write_text(folder / SUMS, sums(folder))


def sums(folder: Path) -> str:
    """Return a line `<sha256>  <name>` for each file of the folder but the sums themselves."""
    names = sorted(path.name for path in folder.iterdir() if path.name != SUMS)
    return "".join(f"{hashlib.sha256(read_bytes(folder / name)).hexdigest()}  {name}\n" for name in names)
