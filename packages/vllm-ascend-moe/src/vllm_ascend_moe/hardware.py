# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""One file about one server: what was served, where, and what every slot held.

Collected on an NPU and once more on the emulated NPU, two of them say whether the emulation told the truth:
`hardware_comparison`.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import platform
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from expert_maps import ExpertMapsError
from expert_maps.files import write_text
from vllm_ascend_moe._version import __version__
from vllm_ascend_moe.core.activation import versions
from vllm_ascend_moe.eplb import read_served_map

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = "vllm-ascend-moe report 1"
DTYPES = ("float32", "bfloat16", "float16")
# Prompts are token ids that are drawn, the same everywhere; the first ids of a vocabulary are special.
NUM_PROMPTS, _SEED, _FIRST_ID = 16, 0, 8

# The commands, and what each is for.
_COMMANDS = (
    ("vllm-ascend-moe doctor", "what is installed, and what would not work"),
    ("vllm-ascend-moe releases", "which pairs of vllm-ascend and vLLM the plugin knows"),
    ("vllm-ascend-moe options", "which option works beside it"),
    ("expert-maps check MAP", "whether the map is one"),
    (
        "nox -s ascend -- rehearse --map MAP --model MODEL",
        "in the repository, on any Linux machine: the map, emulated",
    ),
    (
        "nox -s ascend -- collect --map MAP --model MODEL --output emulated.json",
        "there too: the next command, emulated",
    ),
    (
        "vllm-ascend-moe doctor collect --map MAP --model MODEL --output npu.json",
        "on the NPU: serves, and writes one file",
    ),
    ("vllm-ascend-moe doctor compare npu.json emulated.json", "whether both served the same"),
    ("nox -s npu_bench", "in the repository, on the NPU: the routing ops, checked and timed"),
    (
        "nox -s accuracy -- --model MODEL --base-url baseline=URL --base-url eplb-static=URL",
        "in the repository: whether a map changes answers, on 1,319 questions",
    ),
)
_BEFORE = "Ten commands on the way to hardware. Nothing here has been run on an NPU yet: yours would be the first report."
_AFTER = """\
Send npu.json, and what the eighth says, with an issue. It holds versions, the chip, the placement, checksums and token ids;
no weights, no prompts of yours, no paths and no host names.
"""


class ReportError(ExpertMapsError):
    """A report cannot be made, read or compared; the message says what was found and expected."""


def commands() -> str:
    """Return what a person with an NPU should run."""
    lines = [
        f"{number:2}  {command}\n      {what}" for number, (command, what) in enumerate(_COMMANDS, start=1)
    ]
    return "\n".join([_BEFORE, "", *lines, "", _AFTER])


@dataclass(frozen=True)
class Request:
    """What is served.

    Attributes:
        model: a checkpoint's folder.
        map_path: a map for it; None serves the linear layout.
        ranks: tensor-parallel size.
        dtype: of the weights that are not quantised.
        max_tokens: generated for each prompt.
    """

    model: Path
    map_path: Path | None = None
    ranks: int = 2
    dtype: str = "float32"
    max_tokens: int = 16

    def check(self) -> None:
        """Refuse what cannot be served, before vLLM is imported.

        Raises:
            ReportError: the model, a number or the dtype is none.
            ExpertMapsError: the map is none.
        """
        if not (self.model / "config.json").is_file():
            msg = f"--model is {self.model}; expected a checkpoint's folder, with a config.json"
            raise ReportError(msg)
        for name, value in (("--ranks", self.ranks), ("--max-tokens", self.max_tokens)):
            if value < 1:
                msg = f"{name} is {value}; expected at least 1"
                raise ReportError(msg)
        if self.dtype not in DTYPES:
            msg = f"--dtype is {self.dtype!r}; expected one of {', '.join(DTYPES)}"
            raise ReportError(msg)
        if self.map_path is not None:
            read_served_map(self.map_path)


def collect(request: Request) -> dict[str, Any]:
    """Serve in this process and its workers, and return what is to be told.

    Raises:
        ReportError: see `Request.check`.
        ExpertMapsError: the plugin refuses it.
    """
    request.check()
    begin = time.perf_counter()
    llm, sampling = _start(request)
    started = time.perf_counter()
    vocabulary = int(llm.llm_engine.model_config.get_vocab_size())
    prompts: list[Any] = [{"prompt_token_ids": ids} for ids in _prompts(vocabulary)]
    results = [result.outputs[0] for result in llm.generate(prompts, sampling, use_tqdm=False)]
    ended = time.perf_counter()
    ranks = llm.collective_rpc("expert_maps_report", args=(True,))
    for rank in ranks:
        # The path of a map is nobody's business.
        rank["settings"] = {name: value for name, value in rank["settings"].items() if "path" not in name}
    return {
        "format": FORMAT,
        **_where(),
        "model": {"name": request.model.resolve().name, "digest": model_digest(request.model)},
        "request": {
            "ranks": request.ranks,
            "dtype": request.dtype,
            "max_tokens": request.max_tokens,
            "prompts": NUM_PROMPTS,
            "map": None if request.map_path is None else read_served_map(request.map_path).digest,
        },
        "ranks": ranks,
        "tokens": [list(output.token_ids) for output in results],
        "logprobs": [
            [choice[token].logprob for token, choice in zip(output.token_ids, output.logprobs, strict=True)]
            for output in results
        ],
        "seconds": {"start": round(started - begin, 2), "generate": round(ended - started, 2)},
    }


def _start(request: Request) -> tuple[Any, Any]:
    """Start vLLM's engine, and say how it samples."""
    try:
        from vllm import LLM, SamplingParams
    except ImportError as error:
        msg = f"vLLM cannot be imported ({error}); see `vllm-ascend-moe doctor`"
        raise ReportError(msg) from error
    options: dict[str, Any] = {}
    if request.map_path is not None:
        options["expert_map_path"] = str(request.map_path.absolute())
    try:
        llm = LLM(
            model=str(request.model.absolute()),
            dtype=request.dtype,
            tensor_parallel_size=request.ranks,
            enable_expert_parallel=request.ranks > 1,
            enforce_eager=True,
            max_model_len=128,
            max_num_seqs=NUM_PROMPTS,
            # For all of them at once, and no more of a device's memory.
            num_gpu_blocks_override=256,
            enable_prefix_caching=False,
            seed=0,
            additional_config={"expert_maps": options},
        )
    except ExpertMapsError:
        raise
    except Exception as error:
        # What stopped a worker is said in vLLM's log, above.
        said = (str(error).splitlines() or [""])[0]
        msg = f"vLLM does not serve {request.model} here ({type(error).__name__}: {said}); its log above says why"
        raise ReportError(msg) from error
    return llm, SamplingParams(temperature=0, max_tokens=request.max_tokens, ignore_eos=True, logprobs=0)


def _prompts(vocabulary: int) -> list[list[int]]:
    draw = random.Random(_SEED)  # noqa: S311 - the same everywhere
    return [
        [draw.randrange(_FIRST_ID, vocabulary) for _ in range(draw.randrange(8, 41))]
        for _ in range(NUM_PROMPTS)
    ]


def model_digest(model: Path) -> str:
    """Return what tells two checkpoints apart: their configuration, and names and sizes of their weights' files."""
    found = hashlib.sha256((model / "config.json").read_bytes())
    for path in sorted(model.glob("*.safetensors")):
        found.update(f"{path.name} {path.stat().st_size}\n".encode())
    return found.hexdigest()


def _where() -> dict[str, Any]:
    """Return what served: versions, the release's row, the chip, and whether that is hardware."""
    from vllm_ascend_moe import backends

    front = backends.front()
    found: dict[str, Any] = {
        "emulated": False,
        "platform": {"system": platform.system(), "machine": platform.machine(), "kind": front.kind},
        "python": platform.python_version(),
        "versions": {"vllm-ascend-moe": __version__, **versions()},
        "release": front.facts().release,
        "chip": None,
    }
    if front.kind == "ascend":
        from vllm_ascend_moe.backends.ascend.checks import chip

        found["chip"] = chip()
        # The emulated one says so of itself.
        found["emulated"] = bool(getattr(importlib.import_module("torch_npu"), "IS_EMULATED", False))
    return found


def write(report: dict[str, Any], path: Path) -> None:
    """Write a report, whole or not at all."""
    write_text(path, json.dumps(report, indent=1) + "\n")


def read(path: Path) -> dict[str, Any]:
    """Read a report.

    Raises:
        ReportError: it is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read as a report: {error}"
        raise ReportError(msg) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        said = found.get("format") if isinstance(found, dict) else type(found).__name__
        msg = f"{path} has the format {said!r}; expected {FORMAT!r}, as `vllm-ascend-moe doctor collect` writes it"
        raise ReportError(msg)
    missing = [name for name in ("model", "request", "ranks", "tokens", "logprobs") if name not in found]
    if missing:
        msg = f"{path} lacks {', '.join(missing)}; expected a whole report"
        raise ReportError(msg)
    return found
