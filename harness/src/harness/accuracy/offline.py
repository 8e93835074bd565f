# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Arms without a server: vLLM in this process, the same questions, texts, proof and record as of a real run.

What proves that the gate can be trusted needs dozens of arms, most of which differ in one tensor. They share an engine.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from expert_maps import ExpertMapsError
from harness.accuracy import proof
from harness.accuracy.arm_run import ArmRun
from harness.accuracy.arms import Arm
from harness.accuracy.cpu_server import fork_on_a_cpu
from harness.accuracy.evidence import Evidence, find_faults
from harness.accuracy.records import read_record, texts_digest
from harness.accuracy.schema import Forced
from harness.accuracy.server import RefusedError, Server
from harness.record.provenance import checkpoint_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.accuracy.loads import QuestionLoad
    from harness.accuracy.questions import Answer, Evaluated, Prompt
    from harness.accuracy.records import Record
    from harness.accuracy.settings import RunSettings

WORKER = "harness.accuracy.faults.FaultyWorker"
_NOT_FOUND = 404


class DidNotServeError(ExpertMapsError):
    """The engine stopped with an error; another one is needed."""


@dataclass(frozen=True)
class Engine(Server):
    """VLLM in this process, as a server that answers without HTTP.

    Attributes:
        llm: vLLM's.
    """

    llm: Any = field(default=None, repr=False)

    @property
    def is_own(self) -> bool:
        """The packages of this process acted."""
        return True

    def get(self, path: str, seconds: float = 60) -> Any:  # noqa: ANN401, ARG002 - as of a server
        """Answer ``/version``."""
        import vllm

        if path != "/version":
            raise RefusedError(_NOT_FOUND, path)
        return {"version": vllm.__version__}

    def post(self, path: str, body: Any, seconds: float = 600) -> Any:  # noqa: ANN401, ARG002 - as of a server
        """Answer ``/collective_rpc``."""
        if path != "/collective_rpc":
            raise RefusedError(_NOT_FOUND, path)
        return {"results": self.call(body["method"], *body["args"])}

    def call(self, method: str, *arguments: object) -> list[Any]:
        """Call a method of every worker.

        Raises:
            DidNotServeError: a worker failed.
        """
        with _dead_engines():
            answers: list[Any] = self.llm.collective_rpc(method, args=arguments)
        return answers

    def generate(self, prompts: Sequence[Any], options: Any, how: Order) -> list[Any]:  # noqa: ANN401 - vLLM's
        """Return vLLM's outputs in the order of the prompts, asked in another.

        Args:
            prompts: texts or lists of ids.
            options: vLLM's SamplingParams, of all or one for each prompt.
            how: in which order, and how many at a time.

        Raises:
            DidNotServeError: the engine failed.
        """
        found: dict[int, Any] = {}
        with _dead_engines():
            for part in how.parts(len(prompts)):
                each = [options[index] for index in part] if isinstance(options, list) else options
                outputs = self.llm.generate([prompts[index] for index in part], each, use_tqdm=False)
                found.update(zip(part, outputs, strict=True))
        return [found[index] for index in range(len(prompts))]


@contextlib.contextmanager
def _dead_engines() -> Iterator[None]:
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    try:
        yield
    except (EngineDeadError, EngineGenerateError) as error:
        msg = f"the engine stopped: {' '.join(str(error).split()):.200}"
        raise DidNotServeError(msg) from error


@dataclass(frozen=True)
class Order:
    """In which order questions are asked.

    Attributes:
        seed: of the order; None for that of the data.
        at_once: how many are handed over at a time; None for all of them.
    """

    seed: int | None = None
    at_once: int | None = None

    def parts(self, count: int) -> list[list[int]]:
        """Return the indices, a list for each time that questions are handed over."""
        import numpy as np

        indices = list(range(count))
        if self.seed is not None:
            indices = np.random.default_rng(self.seed).permutation(count).tolist()
        size = self.at_once or count
        return [indices[first : first + size] for first in range(0, count, size)]


@contextlib.contextmanager
def engine(settings: RunSettings, *changes: str, additional: dict[str, Any]) -> Iterator[Engine]:
    """Run vLLM for the time of a `with` block, as the model's configuration says.

    Args:
        settings: of the run.
        changes: arguments beside the configuration's, which they override.
        additional: the plugin's options.

    Raises:
        DidNotServeError: it did not start.
    """
    os.environ.update({"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "TQDM_DISABLE": "1"})
    os.environ.update(settings.config.server.environment)
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    words = [*settings.config.server.arguments, "--model", settings.model, "--dtype", settings.dtype]
    words += ["--worker-extension-cls", WORKER, "--disable-log-stats", *changes]
    words += ["--additional-config", json.dumps({"expert_maps": additional})]
    # Each of its processes would import everything anew, and an arm is a handful of questions.
    fork_on_a_cpu()
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    try:
        llm = LLM.from_engine_args(EngineArgs.from_cli_args(parser.parse_args(words)))
    except RuntimeError as error:
        msg = f"vLLM did not start, what it printed says why: {' '.join(str(error).split()):.200}"
        raise DidNotServeError(msg) from error
    try:
        yield Engine("offline", settings.config.name, llm=llm)
    finally:
        llm.llm_engine.engine_core.shutdown()


def ask(served: Engine, prompts: Sequence[Prompt], how: Order) -> list[Answer]:
    """Answer questions greedily, as the harness asks a server."""
    from vllm import SamplingParams

    from harness.accuracy.questions import Answer

    options = [
        SamplingParams(temperature=0, max_tokens=prompt.max_tokens, stop=list(prompt.stop))
        for prompt in prompts
    ]
    outputs = served.generate([prompt.content for prompt in prompts], options, how)
    return [Answer(one.outputs[0].text, one.outputs[0].finish_reason) for one in outputs]


@dataclass(frozen=True)
class Trial:
    """An arm to measure.

    Attributes:
        name: of its record.
        role: `baseline` or `eplb`.
        arguments: how its engine was started, as a record shows it.
        how: in which order it is asked.
    """

    name: str
    role: str
    arguments: tuple[str, ...] = ()
    how: Order = Order()


def measure(
    served: Engine,
    settings: RunSettings,
    trial: Trial,
    baseline: Record | None,
    load: QuestionLoad | None = None,
) -> tuple[Record, Evaluated]:
    """Ask, score, force and prove one arm on an engine that runs, and write its record.

    Args:
        served: the engine.
        settings: of the run; the record goes into its folder.
        trial: what is measured.
        baseline: whose texts are scored; None for the arm's own.
        load: where the engine records; None where it does not.

    Returns:
        The record as written and read again; and the prompts, for further measurements of the same texts.

    Raises:
        DidNotServeError: the engine failed.
        ProofError: its ranks contradict each other.
    """
    from harness.accuracy import versions
    from harness.accuracy.questions import evaluate

    arms = {**settings.config.arms, trial.name: Arm(role=trial.role)}  # type: ignore[arg-type] # checked there
    with_arm = replace(settings, config=settings.config.model_copy(update={"arms": arms}))
    run = ArmRun(with_arm, trial.name, list(trial.arguments))
    run.found = versions.versions(served)
    run.checkpoint = checkpoint_of(settings.model)
    before = proof.read_state(served)
    evaluated = evaluate(
        settings.config.task,
        lambda prompts: ask(served, prompts, trial.how),
        count=settings.count,
        paths=settings.data,
        cache=settings.work / "datasets",
    )
    run.evaluated = evaluated
    if load is not None:
        state = proof.read_state(served)
        load.keep(state.recorded_steps if state else None, 0, settings.say)
    run.forced = forced(served, evaluated, trial.how, baseline)
    after = proof.read_state(served, checksums=True)
    run.evidence = Evidence(before, after, find_faults(run.arm, before, after))
    settings.make_folder(run.folder)
    run.write("complete", None)
    return read_record(run.folder), evaluated


def forced(served: Engine, evaluated: Evaluated, how: Order, baseline: Record | None) -> list[Forced]:
    """Return the log-probabilities of the baseline's texts, of the arm's own where there is none; as `harness.accuracy.logprobs`."""
    from vllm import SamplingParams

    source = list(baseline.questions) if baseline else evaluated.questions
    encode = served.llm.get_tokenizer().encode
    parts = [
        (encode(evaluated.prompts[one.index].content), encode(one.text, add_special_tokens=False))
        for one in source
    ]
    asked = [index for index, (_, after) in enumerate(parts) if after]
    options = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    prompts = [{"prompt_token_ids": parts[index][0] + parts[index][1]} for index in asked]
    found: list[list[float]] = [[] for _ in parts]
    for index, output in zip(asked, served.generate(prompts, options, how), strict=True):
        before, after = parts[index]
        rows = output.prompt_logprobs[len(before) :]
        found[index] = [row[token].logprob for token, row in zip(after, rows, strict=True)]
    digest = texts_digest(one.text for one in source)
    return [
        Forced(doc_hash=one.doc_hash, forced_from=digest, logprobs=values)
        for one, values in zip(source, found, strict=True)
    ]
