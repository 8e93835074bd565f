# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Record the expert load of a Hugging Face MoE checkpoint over a file of texts.

This made `accuracy/loads/tiny_moe.npz`. It needs `torch` and `transformers`, which nothing else here does:

    python -m harness.record_load --model CHECKPOINT --texts PROBLEMS.jsonl --output load.npz
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from expert_maps.files import write_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


def main(
    model: Annotated[Path, typer.Option(help="Folder of the checkpoint.")],
    texts: Annotated[Path, typer.Option(help="JSONL with 'question' and 'answer'.")],
    output: Annotated[Path, typer.Option(help="The .npz to write; a .json of provenance goes beside it.")],
    count: Annotated[int, typer.Option(help="Texts to run.")] = 256,
    window: Annotated[int, typer.Option(help="Tokens of one step.")] = 2048,
) -> None:
    """Run the texts through the model and count the tokens routed to each expert, window by window."""
    import torch
    import transformers

    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    num_experts = int(network.config.num_experts)
    top_k = int(network.config.num_experts_per_tok)
    with texts.open(encoding="utf-8") as stream:
        lines = [json.loads(line) for _, line in zip(range(count), stream, strict=False)]
    with torch.inference_mode():
        routed = np.concatenate(
            [_route(network, tokenizer, line, top_k) for line in lines]
        )  # [tokens, layers, k]
    load = np.stack(list(_count_windows(routed, window, num_experts)))
    np.savez_compressed(output, load=load)
    provenance = {
        "model_sha256": hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest(),
        "texts_sha256": hashlib.sha256(texts.read_bytes()).hexdigest(),
        "texts": len(lines),
        "tokens": len(routed),
        "window_tokens": window,
        "top_k": top_k,
        "shape_steps_layers_experts": list(load.shape),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sha256": hashlib.sha256(load.astype("<i8").tobytes()).hexdigest(),
    }
    write_text(output.with_suffix(".json"), json.dumps(provenance, indent=2) + "\n")
    typer.echo(f"{output}: {list(load.shape)}, {len(routed)} tokens")


def _route(network: Any, tokenizer: Any, line: dict[str, str], top_k: int) -> NDArray[np.int64]:  # noqa: ANN401 - transformers' classes are made at run time
    """Return the logical experts of each token of one text: int64 [tokens, layers, k]."""
    text = f"Question: {line['question']}\nAnswer: {line['answer']}"
    ids = tokenizer(text, return_tensors="pt").input_ids
    logits = network(ids, output_router_logits=True).router_logits
    # The softmax before the top-k keeps the order, so the logits choose the same experts.
    chosen = [layer.reshape(ids.shape[1], -1).topk(top_k, dim=-1).indices.numpy() for layer in logits]
    return np.stack(chosen, axis=1)


def _count_windows(routed: NDArray[np.int64], window: int, num_experts: int) -> Iterator[NDArray[np.int64]]:
    """Yield int64 [layers, experts] for each full window; a shorter rest is dropped."""
    num_layers = routed.shape[1]
    for start in range(0, len(routed) - window + 1, window):
        part = routed[start : start + window]
        keys = part + np.arange(num_layers)[None, :, None] * num_experts
        yield np.bincount(keys.ravel(), minlength=num_layers * num_experts).reshape(num_layers, num_experts)


if __name__ == "__main__":
    typer.run(main)
