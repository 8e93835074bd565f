# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What is run: a model, a task and the arms that are compared, as a YAML file of `accuracy/models`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from expert_maps import ExpertMapsError, Placement, generate_placement

MODELS = Path("accuracy/models")
# The key under which the plugin finds its options in vLLM's additional config.
EXPERT_MAPS = "expert_maps"
BASELINE, REPEAT = "baseline", "repeat"
_WORK = "work"
# Only the harness knows these paths, so a file may not set them.
_OWN_OPTIONS = {"record_load": "record_path", "plan": "expert_map_path"}
# The harness chooses these when it starts a server.
_OWN_ARGUMENTS = (
    "--config",  # a file that may hold the others
    "--model",
    "--host",
    "--port",
    "--dtype",
    "--additional-config",
    "--served-model-name",
)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Count = Annotated[int, Field(ge=1)]


# Of the weights and activations: those whose rounding is known.
DTYPES = ("float32", "bfloat16", "float16")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class ConfigError(ExpertMapsError):
    """A configuration is absent, malformed or contradicts itself; the message names the field."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Expected(_Strict):
    """What others have measured.

    Attributes:
        accuracy: in percent; None where nothing fitting is published.
        source: where it is published.
        reason: why there is none, or how that measurement differs from this task.
        chance: accuracy of guesses, in percent; a baseline that is no better is not judged by.
    """

    accuracy: Annotated[float, Field(ge=0, le=100)] | None = None
    source: str | None = None
    reason: str | None = None
    chance: Annotated[float, Field(ge=0, le=100)] = 0.0

    @model_validator(mode="after")
    def _is_founded(self) -> Expected:
        if self.accuracy is not None and not self.source:
            msg = f"accuracy is {self.accuracy} without a source; expected where it is published"
            raise ValueError(msg)
        if self.accuracy is None and not self.reason:
            msg = "accuracy is null without a reason; expected why there is none"
            raise ValueError(msg)
        return self


class Data(_Strict):
    """Local JSONL files with `question` and `answer`; ``{model}`` stands for the folder of the checkpoint."""

    test: str
    train: str


class Task(_Strict):
    """A task of lm-eval, and how it is asked.

    Attributes:
        name: of lm-eval's task.
        dataset: what tables call it.
        data: local files; None for the hub's.
        num_fewshot: worked examples before a question.
        chat_template: whether the server applies its chat template (chat completions, few-shot as turns).
        chat_template_kwargs: passed on to the template.
        max_tokens: most tokens of an answer.
        filter: which of the task's filters finds the number in an answer.
    """

    name: Literal["gsm8k", "gsm8k_cot_llama"]
    dataset: Name
    data: Data | None = None
    num_fewshot: Annotated[int, Field(ge=0, le=64)]
    chat_template: bool = False
    chat_template_kwargs: dict[str, Any] = {}
    max_tokens: Count
    filter: Literal["strict-match", "flexible-extract"] = "strict-match"


class Plan(_Strict):
    """A placement made before the arm is served: planned from a load, or a layout by name where there is none.

    Attributes:
        load_of: the arm whose recorded load is planned for.
        load: a file of load, instead of an arm.
        layout: of `expert_maps.generate_placement`, instead of a load.
        num_experts: E, logical; with a layout only, as a load says it.
        num_layers: MoE layers; likewise.
        num_redundant_experts: of a layer, over all ranks.
        ep_size: ranks.
    """

    load_of: Name | None = None
    load: str | None = None
    layout: Literal["ring", "append"] | None = None
    num_experts: Count | None = None
    num_layers: Count | None = None
    num_redundant_experts: Annotated[int, Field(ge=1)]
    ep_size: Annotated[int, Field(ge=2)]

    @model_validator(mode="after")
    def _has_a_load(self) -> Plan:
        if [self.load_of, self.load, self.layout].count(None) != 2:  # noqa: PLR2004 - of three
            msg = "a plan needs one of load_of (an arm), load (a file) and layout (a name)"
            raise ValueError(msg)
        sizes = [self.num_experts, self.num_layers]
        if sizes.count(None) != (0 if self.layout else len(sizes)):
            msg = f"a plan has num_experts {sizes[0]} and num_layers {sizes[1]}; expected both with a layout, else neither"
            raise ValueError(msg)
        try:
            self.named()
        except ExpertMapsError as error:
            msg = f"the layout {self.layout} does not fit: {str(error).splitlines()[0]}"
            raise ValueError(msg) from error
        return self

    def named(self) -> Placement | None:
        """Return the placement of the layout; None where one is planned from a load.

        Raises:
            ExpertMapsError: there is none of these sizes.
        """
        if self.layout is None or self.num_experts is None or self.num_layers is None:
            return None
        return generate_placement(
            self.layout,
            num_experts=self.num_experts,
            ep_size=self.ep_size,
            num_layers=self.num_layers,
            num_redundant_experts=self.num_redundant_experts,
        )


class Serving(_Strict):
    """How a server is started: arguments of ``vllm serve`` and environment variables."""

    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = {}

    @model_validator(mode="after")
    def _leaves_the_rest(self) -> Serving:
        for argument in self.arguments:
            # argparse takes an underscore for a dash, and the beginning of a name for the name.
            # A dot leads into an option's object.
            word = re.split(r"[=.]", argument, maxsplit=1)[0].replace("_", "-")
            if len(word) > len("--") and any(own.startswith(word) for own in _OWN_ARGUMENTS):
                msg = f"arguments hold {argument!r}, which the harness sets"
                raise ValueError(msg)
        for name in self.environment:
            if not _VARIABLE.fullmatch(name):
                msg = f"environment names {name!r}; expected letters, digits and underscores"
                raise ValueError(msg)
        if any("\0" in text for text in (*self.arguments, *self.environment.values())):
            msg = "an argument or a variable holds a NUL character; expected none"
            raise ValueError(msg)
        return self


def check_options(options: dict[str, Any]) -> None:
    """Check the plugin's options before a server is started, one by one and together; only where the plugin is installed.

    Raises:
        ValueError: one is unknown or has a wrong value, or no platform takes them together.
    """
    try:
        from vllm_ascend_moe import releases
        from vllm_ascend_moe.backends.ascend.front import AscendFront
        from vllm_ascend_moe.backends.ascend.front_v2 import AscendV2Front
        from vllm_ascend_moe.backends.cpu_front import CpuFront
        from vllm_ascend_moe.backends.eplb_front import EplbFront
        from vllm_ascend_moe.core.settings import Settings
    except ImportError:
        return
    fronts = [CpuFront(), EplbFront(), *map(AscendFront, releases.RELEASES)]
    fronts += [AscendV2Front(release) for release in releases.RELEASES if release.serves_v2]
    refused = []
    try:
        settings = Settings(**options)
        for front in fronts:
            try:
                front.settle(settings)
            except ExpertMapsError as error:
                refused.append(str(error))
        if len(refused) == len(fronts):
            msg = f"additional_config.{EXPERT_MAPS}: no platform takes these options: {refused[0]}"
            raise ValueError(msg)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, (EXPERT_MAPS, *first["loc"])))
        msg = f"additional_config.{place} is {first['input']!r:.60}: {first['msg']}"
        raise ValueError(msg) from error
    except ExpertMapsError as error:
        msg = f"additional_config.{EXPERT_MAPS}: {error}"
        raise ValueError(msg) from error


class Arm(Serving):
    """One side of the comparison.

    Attributes:
        role: what must be proven of its server: that EPLB is active, or that it is not; a ``repeat`` is the baseline once
            more, asked in another order, for what rounding does by itself.
        additional_config: vLLM's, as an object; the plugin's options stand under ``expert_maps``.
        record_load: whether the plugin records the expert load.
        plan: the placement to serve, where it is planned here.
        num_redundant_experts: what the server must report; None for any number above 0.
        dynamic: whether experts must have moved while serving.
    """

    role: Literal["baseline", "eplb", "repeat"]
    additional_config: dict[str, Any] = {}
    record_load: bool = False
    plan: Plan | None = None
    num_redundant_experts: Annotated[int, Field(ge=1)] | None = None
    dynamic: bool = False

    @model_validator(mode="after")
    def _agrees(self) -> Arm:
        options = self.additional_config.get(EXPERT_MAPS, {})
        if not isinstance(options, dict):
            msg = f"additional_config.{EXPERT_MAPS} is {options!r}; expected an object"
            raise ValueError(msg)  # noqa: TRY004 - pydantic shows ValueErrors
        for field, option in _OWN_OPTIONS.items():
            if option in options:
                msg = f"{option} is set in {EXPERT_MAPS}; use {field}, for which the harness finds a path"
                raise ValueError(msg)
        # With the paths that the harness will add.
        paths = {
            _OWN_OPTIONS[name]: path
            for name, path in (("record_load", "load.npz"), ("plan", "map.json"))
            if getattr(self, name)
        }
        check_options({**options, **paths})
        if self.role != "eplb" and (self.plan or self.dynamic or self.num_redundant_experts):
            msg = f"a {self.role} has a plan, moving or redundant experts; expected none of them"
            raise ValueError(msg)
        return self

    def additional(self, *, record: Path | None, expert_map: Path | None) -> dict[str, Any]:
        """Return vLLM's additional config with the paths of this run; empty where there is nothing to say."""
        paths = {"record_path": record, "expert_map_path": expert_map}
        options = {name: str(path) for name, path in paths.items() if path is not None}
        if not options:
            return self.additional_config
        return {
            **self.additional_config,
            EXPERT_MAPS: {**self.additional_config.get(EXPERT_MAPS, {}), **options},
        }


class ModelConfig(_Strict):
    """A file of `accuracy/models`.

    Attributes:
        name: of the folder of results.
        model: a folder of a checkpoint, or a name on the hub.
        dtype: of the weights and activations.
        concurrency: requests in flight at a time.
        logprobs: whether each arm also scores the baseline's texts token by token.
        startup_seconds: most seconds until a server answers.
        request_seconds: most seconds for one answer.
        task: what is asked.
        expected: what others have measured.
        server: how all arms are served.
        arms: what is compared with the arm ``baseline``, in the order in which they run.
    """

    name: Name
    model: Annotated[str, Field(min_length=1)]
    dtype: Literal["float32", "bfloat16", "float16"]
    concurrency: Annotated[int, Field(ge=1, le=4096)] = 32
    logprobs: bool = True
    startup_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 600
    request_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1800
    task: Task
    expected: Expected
    server: Serving = Serving()
    arms: dict[Name, Arm]

    @model_validator(mode="after")
    def _has_a_baseline(self) -> ModelConfig:
        first = next(iter(self.arms), None)
        if first != BASELINE or self.arms[BASELINE].role != BASELINE:
            msg = f"the first arm is {first!r}; expected {BASELINE!r}, of the role {BASELINE!r}"
            raise ValueError(msg)
        if _WORK in self.arms:
            msg = f"an arm is called {_WORK!r}, as the folder of what is kept while a run is under way"
            raise ValueError(msg)
        others = [name for name, arm in self.arms.items() if arm.role == BASELINE and name != BASELINE]
        if others:
            msg = f"arm {others[0]!r} has the role {BASELINE!r} too; expected one baseline"
            raise ValueError(msg)
        for name, arm in self.arms.items():
            if (name == REPEAT) != (arm.role == REPEAT):
                msg = f"arm {name!r} has the role {arm.role!r}; expected {REPEAT!r} for one of that name, and for no other"
                raise ValueError(msg)
            source = arm.plan.load_of if arm.plan else None
            if source is not None and not (source in self.arms and self.arms[source].record_load):
                msg = f"arm {name!r} is planned from the load of {source!r}; expected an arm with record_load"
                raise ValueError(msg)
        return self

    def with_repeat(self) -> ModelConfig:
        """Return the configuration with the baseline once more, right after it; itself where it has one."""
        if REPEAT in self.arms:
            return self
        again = self.arms[BASELINE].model_copy(update={"role": REPEAT, "record_load": False})
        rest = {name: arm for name, arm in self.arms.items() if name != BASELINE}
        return self.model_copy(update={"arms": {BASELINE: self.arms[BASELINE], REPEAT: again, **rest}})

    def choose(self, names: list[str] | None) -> list[str]:
        """Return the arms to run, in the file's order.

        Raises:
            ConfigError: there is no arm of a name.
        """
        for name in names or ():
            self.require_arm(name)
        return [name for name in self.arms if not names or name in names]

    def require_arm(self, name: str) -> Arm:
        """Return an arm.

        Raises:
            ConfigError: there is none of that name.
        """
        if name not in self.arms:
            msg = f"arm is {name!r}; expected one of {', '.join(self.arms)}"
            raise ConfigError(msg)
        return self.arms[name]
