# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The examples at the end of each `--help`; a test runs all of them, in this order, in one folder with two loads."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "": (
        "expert-maps plan load.npz --ep-size 4 --redundant 4 --output map.json",
        "expert-maps check map.json",
        "expert-maps evaluate map.json load.npz",
    ),
    "generate": (
        "expert-maps generate --experts 256 --ep-size 16 --redundant 16 --layers 58 --output ring.json",
        "expert-maps generate --model deepseek-r1 --ep-size 32 > linear.json",
    ),
    "plan": (
        "expert-maps plan load.npz --ep-size 4 --redundant 4 --output map.json",
        "expert-maps plan load.npz --ep-size 4 --physical 20 --table",
        "expert-maps plan load.npz --ep-size 4 --groups 4 --nodes 2 --output grouped.json",
        "expert-maps plan later.npz --ep-size 4 --current map.json --max-moves 3 --output next.json",
        "expert-maps plan load.npz --ep-size 4 --redundant 4 --objective activated --batch-tokens 8 --top-k 2",
        "expert-maps plan load.npz --ep-size 4 --redundant 2 --redundancy per-layer --output layers.json",
        "expert-maps plan load.npz --ep-size 4 --output - | expert-maps check -",
    ),
    "load": (
        "expert-maps load load.npz",
        "expert-maps load load.npz --steps 0-1 --layers 0,2 --output part.csv",
        "expert-maps load part.csv --experts 16 --moe-layers 2",
    ),
    "convert": (
        "expert-maps convert map.json eplb.yaml --to tensorrt-llm --layers 0-3",
        "expert-maps convert eplb.yaml back.json --to expert-maps --ep-size 4",
        "expert-maps convert map.json phy2log.npz --to vllm",
    ),
    "rescale": (
        "expert-maps rescale map.json later.npz --failed-ranks 3 --physical 18 --output three.json",
        "expert-maps rescale map.json later.npz --ep-size 8 --max-moves any --output eight.json",
    ),
    "weights": ("expert-maps weights map.json later.npz --output weights.npz",),
    "check": (
        "expert-maps check map.json --experts 16 --ep-size 4",
        "expert-maps check ring.json --model deepseek-r1 --json",
    ),
    "show": (
        "expert-maps show map.json --layer 1 --rank 3",
        "expert-maps show map.json --rank 3 --compact",
    ),
    "diff": (
        "expert-maps diff map.json next.json --expert-bytes 44040192",
        "expert-maps diff map.json next.json --layer 0",
    ),
    "evaluate": (
        "expert-maps evaluate map.json later.npz",
        "expert-maps evaluate map.json later.npz --layer 2",
        "expert-maps evaluate map.json later.npz --table",
        "expert-maps evaluate map.json later.npz --batch-tokens 8 --top-k 2",
    ),
    "advise": (
        "expert-maps advise load.npz --ep-size 4 --expert-bytes 44040192 --bandwidth 25",
        "expert-maps advise load.npz --ep-size 4 --step-ms 40 --moe-ms 18 --phase prefill --json",
        "expert-maps advise deepseek-r1 --ep-size 32 --device-memory 64 --other-memory 20",
    ),
    "report": (
        "expert-maps report load.npz --ep-size 4 --redundant 4 --output report.html",
        "expert-maps report load.npz --ep-size 4 --device-memory 64 --expert-bytes 44040192 --output sized.html",
    ),
    "simulate": (
        "expert-maps simulate load.npz --ep-size 4 --redundant 0,4 --intervals 0,2 --expert-bytes 44040192 --bandwidth 25",
        "expert-maps simulate load.npz --ep-size 2,4 --redundant 4 --policies balanced,deepseek --resume runs.jsonl",
        "expert-maps simulate load.npz --ep-size 4 --redundant 4 --intervals 1 --max-moves 2,any --output runs.json",
    ),
    "compare": (
        "expert-maps compare load.npz --ep-size 4 --redundant 0,4,8",
        "expert-maps compare load.npz --ep-size 4 --policies balanced,deepseek_global",
    ),
}


def examples_of(command: str) -> str | None:
    """Return the text that ends a command's help; None where there are no examples."""
    lines = EXAMPLES.get(command)
    # What follows \b is printed as it is, so that a line can be copied.
    return None if lines is None else "\b\n" + "\n".join(["Examples:", *(f"  {line}" for line in lines)])
