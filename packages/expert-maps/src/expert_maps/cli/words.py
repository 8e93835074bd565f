# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The words people use for options and commands elsewhere, and the ones that are meant here."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

_EP_SIZE = ("--ep-size",)
_PHYSICAL = ("--physical", "--redundant")
_REDUNDANT = ("--redundant", "--physical")

# Without their hyphens, so that --num_experts and --numexperts are found too.
OPTION_WORDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            "cards",
            "numcards",
            "npus",
            "numnpus",
            "gpus",
            "numgpus",
            "devices",
            "numdevices",
            "devicecount",
            "ranks",
            "numranks",
            "ep",
            "eps",
            "epranks",
            "worldsize",
            "expertparallelsize",
            "dies",
            "numdies",
        ),
        _EP_SIZE,
    ),
    **dict.fromkeys(
        ("numphysicalexperts", "physicalexperts", "numphysical", "numslots", "slots", "numreplicas"),
        _PHYSICAL,
    ),
    **dict.fromkeys(
        (
            "numredundantexperts",
            "redundantexperts",
            "numredundant",
            "redundancy",
            "replicas",
            "copies",
            "extra",
            "extraexperts",
        ),
        _REDUNDANT,
    ),
    **dict.fromkeys(
        (
            "numexperts",
            "nroutedexperts",
            "numroutedexperts",
            "numlocalexperts",
            "numlogicalexperts",
            "logicalexperts",
            "routedexperts",
        ),
        ("--experts", "--model"),
    ),
    **dict.fromkeys(
        ("numlayers", "moelayers", "nummoelayers", "numhiddenlayers"), ("--layers", "--layer", "--model")
    ),
    **dict.fromkeys(("out", "outfile", "outputfile", "save", "write", "dest", "to", "o"), ("--output",)),
    **dict.fromkeys(("numgroups", "ngroup", "expertgroups", "numexpertgroup"), ("--groups",)),
    **dict.fromkeys(("numnodes", "nnodes", "servers", "hosts", "machines"), ("--nodes",)),
    **dict.fromkeys(("numsharedexperts", "nsharedexperts", "sharedexperts"), ("--shared",)),
    **dict.fromkeys(
        ("eprank", "rankid", "card", "npu", "gpu", "device", "deviceid"), ("--rank", "--ep-size")
    ),
    **dict.fromkeys(("tp", "tensorparallelsize", "tensorparallel", "numtp"), ("--tp-size", "--ep-size")),
    **dict.fromkeys(
        ("dp", "dpsize", "dataparallelsize", "tpsize", "worldranks", "numgpu", "numnpu"), ("--ep-size",)
    ),
    **dict.fromkeys(
        ("algorithm", "algo", "eplbpolicy", "eplbpolicytype", "strategy"), ("--policy", "--policies")
    ),
    **dict.fromkeys(("old", "before", "currentmap", "from", "previous", "init"), ("--current",)),
    **dict.fromkeys(("maxswaps", "budget", "moves", "maxchanges"), ("--max-moves",)),
    **dict.fromkeys(("failed", "lost", "dead", "failedrank", "lostranks", "deadranks"), ("--failed-ranks",)),
    **dict.fromkeys(("config", "modelpath", "modelname", "hfconfig"), ("--model",)),
    **dict.fromkeys(("array", "field", "name"), ("--key",)),
    **dict.fromkeys(("verbose", "full", "details", "long", "alllayers"), ("--table", "--all")),
    **dict.fromkeys(("reference", "expected", "expect"), ("--golden",)),
    **dict.fromkeys(("gap", "threshold", "precision"), ("--tolerance",)),
    **dict.fromkeys(("uneven", "allowragged"), ("--allow-uneven",)),
    **dict.fromkeys(("duplicates", "allowduplicate"), ("--allow-duplicates",)),
}

COMMAND_WORDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("balance", "rebalance", "eplb", "optimize", "optimise", "solve", "schedule"), ("plan",)),
    **dict.fromkeys(("validate", "verify", "lint", "test", "doctor"), ("check",)),
    **dict.fromkeys(("view", "print", "display", "cat", "dump", "export"), ("show", "convert")),
    **dict.fromkeys(("migrate", "moves", "delta", "changes"), ("diff", "rescale")),
    **dict.fromkeys(("info", "inspect", "describe", "stat", "stats", "read"), ("load", "show")),
    **dict.fromkeys(("eval", "score", "metrics", "measure", "balancedness", "simulate"), ("evaluate",)),
    **dict.fromkeys(("bench", "benchmark", "policies", "sweep"), ("compare",)),
    **dict.fromkeys(("init", "create", "new", "make", "gen", "layout", "default"), ("generate",)),
    **dict.fromkeys(("scale", "resize", "elastic", "shrink", "grow", "recover"), ("rescale",)),
    **dict.fromkeys(("transform", "translate", "import"), ("convert",)),
    **dict.fromkeys(("split", "shares", "replicas"), ("weights",)),
    **dict.fromkeys(("version",), ("--version",)),
    **dict.fromkeys(("help", "usage"), ("--help",)),
}


# Other names of formats, forms, policies and layouts.
VALUE_WORDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("native", "own", "expertmap", "expertmapsjson"), ("expert-maps",)),
    **dict.fromkeys(("ascend", "vllmascendmap", "moeload", "msserviceprofiler"), ("vllm-ascend",)),
    **dict.fromkeys(("trtllm", "trt", "tensorrt", "nvidia"), ("tensorrt-llm",)),
    **dict.fromkeys(("omniinfer", "npy01"), ("omni",)),
    **dict.fromkeys(("das", "vllmdas"), ("vllm-plugin-das",)),
    **dict.fromkeys(("eplb", "deepseekeplb"), ("deepseek",)),
    **dict.fromkeys(("mindspeedrl",), ("mindspeed",)),
    **dict.fromkeys(("npy", "npz", "json", "numpy", "tensor", "safetensors"), ("array",)),
    **dict.fromkeys(("rows", "plaincsv"), ("csv-rows",)),
    **dict.fromkeys(("trace", "routing", "routed"), ("routed-experts",)),
    **dict.fromkeys(("hierarchical",), ("deepseek_hierarchical",)),
    **dict.fromkeys(("global",), ("deepseek_global",)),
    **dict.fromkeys(("default", "balance", "auto", "best"), ("balanced",)),
    **dict.fromkeys(("robin", "rr", "interleaved"), ("round_robin",)),
}


# The options that say what a message of the library calls by its own name; the first that the command has.
QUANTITIES: dict[str, tuple[str, ...]] = {
    "ep_size": ("--ep-size",),
    "num_redundant_experts": ("--redundant",),
    "num_physical_experts": ("--physical",),
    "num_logical_experts": ("--experts",),
    "num_experts": ("--experts",),
    "num_layers": ("--moe-layers", "--layers"),
    "num_groups": ("--groups",),
    "num_nodes": ("--nodes",),
    "num_shared_experts": ("--shared",),
    "interval": ("--intervals",),
    "threshold": ("--thresholds",),
    "window": ("--look-back", "--window"),
    **{
        name: (f"--{name.replace('_', '-')}",)
        for name in (
            "bandwidth",
            "batch_tokens",
            "device",
            "expert_bytes",
            "first",
            "max_moves",
            "moe_ms",
            "phase",
            "prompt_tokens",
            "step_ms",
            "tolerance",
            "top_k",
            "workers",
        )
    },
}
_QUANTITY = re.compile(rf"\b({'|'.join(QUANTITIES)})\b")
# The same at the start, or behind what could not be done because of it.
_ABOUT_ONE = re.compile(rf"((nothing|there is nothing) to [a-z ]+: )?({'|'.join(QUANTITIES)}) is ")


def with_options(text: str, known: Collection[str]) -> str:
    """Return a message in which quantities are called as they were typed.

    Only where it is one of them that the message is about: elsewhere such a word may be a key of a file.

    Args:
        text: of an error; it starts with the name of a quantity, perhaps after what could not be done.
        known: the options of the command.
    """
    if not _ABOUT_ONE.match(text):
        return text
    return _QUANTITY.sub(lambda found: _option(found[1], known), text)


def _option(name: str, known: Collection[str]) -> str:
    return next((option for option in QUANTITIES[name] if option in known), name)


def meant_values(word: str, known: Collection[str]) -> list[str]:
    """Return the values that an unknown one may stand for, likeliest first; at most three, perhaps none."""
    plain = _plain(word)
    spelled = [value for value in known if _plain(value) == plain]
    translated = [value for value in VALUE_WORDS.get(plain, ()) if value in known]
    return spelled or translated or _similar(word, known)


def hint(words: Sequence[str]) -> str:
    """Return the question that ends a message: which of some words is meant; nothing where there are none."""
    if not words:
        return ""
    return f"; did you mean {', '.join(words[:-1])}{' or ' * (len(words) > 1)}{words[-1]}?"


def meant_options(word: str, known: Collection[str]) -> list[str]:
    """Return the options that an unknown one may stand for, likeliest first; at most three, perhaps none.

    Args:
        word: as typed, like ``--cards``.
        known: the options of the command.
    """
    plain = _plain(word)
    spelled = [option for option in known if _plain(option) == plain]
    translated = [option for option in OPTION_WORDS.get(plain, ()) if option in known]
    # Of the words that mean one thing the first is the best; the second stands in where a command lacks the first. Where it
    # lacks both, what is spelled alike means something else.
    return spelled or (translated[:1] if plain in OPTION_WORDS else _similar(word, known))


def meant_commands(word: str, known: Collection[str]) -> list[str]:
    """Return the commands that an unknown one may stand for, likeliest first; at most three, perhaps none."""
    names: Mapping[str, tuple[str, ...]] = COMMAND_WORDS
    translated = [name for name in names.get(_plain(word), ()) if name in known or name.startswith("--")]
    return translated or _similar(word, known)


def _similar(word: str, known: Collection[str]) -> list[str]:
    close = get_close_matches(word.lower(), known, n=3, cutoff=0.7)
    begun = [name for name in known if len(_plain(word)) > 1 and _plain(name).startswith(_plain(word))]
    longer = [name for name in known if _plain(word).startswith(_plain(name))]
    return close or begun[:3] or longer[:1]


def _plain(word: str) -> str:
    return word.lower().replace("-", "").replace("_", "")
