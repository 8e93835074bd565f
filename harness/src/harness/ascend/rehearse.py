# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A map on trial: does the released vllm-ascend start with it, and serve what it serves without it?"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from expert_maps import ExpertMapsError, read_placement
from harness.ascend import engine
from harness.ascend.models import TINY_MOE, write_map
from harness.ascend.prompts import prompts_for
from harness.ascend.served import compare_tokens
from harness.ascend.stage import ROOT, stage
from harness.ascend.tables import InspectionError, experts_of, slot_faults

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.ascend.served import Served
    from vllm_ascend_moe.releases import Release

MAX_RANKS = 16
_SHOWN_TEXTS = 3
_CONFIG = "config.json"
# Under which names a model's configuration says how many experts a layer has.
_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")


class BadInputError(ExpertMapsError):
    """What was asked for cannot be rehearsed; the message says why."""


@dataclass(frozen=True)
class Trial:
    """What is put on trial.

    Attributes:
        release: of vllm-ascend.
        chip: A2 or A3.
        ranks: expert-parallel ranks.
        model: a checkpoint's folder.
        map: the file; None for one that is planned for the embedded model.
        prompts: what is asked.
        plugin: whether the plugin gives the map; if not, vllm-ascend reads the file by itself.
    """

    release: Release
    chip: str
    ranks: int
    model: Path
    map: Path | None
    prompts: list[str]
    plugin: bool = True


@dataclass
class Outcome:
    """What the trial showed.

    Attributes:
        verdict: ``right``, ``wrong`` or ``refused``.
        reason: why it was refused, or did not start; None where it served.
        wrong: each thing that is wrong, in words: texts, and slots by layer, rank and slot.
        texts: how many texts are equal, and of how many.
        slots: how many slots were compared.
        paths: by which ways tokens went to their experts.
        names: the ops that were used.
        seconds: of both engines.
        log: of the engine with the map.
    """

    verdict: str = "right"
    reason: str | None = None
    wrong: list[str] = field(default_factory=list)
    texts: tuple[int, int] | None = None
    slots: int = 0
    paths: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    seconds: float = 0.0
    log: str = ""

    @property
    def exit_code(self) -> int:
        """0 right, 1 wrong, 2 refused."""
        return {"right": 0, "wrong": 1}.get(self.verdict, 2)


def check_trial(trial: Trial) -> None:
    """Refuse what cannot be rehearsed, before anything is fetched or started.

    Raises:
        BadInputError: see the class.
        ExpertMapsError: the map cannot be read.
    """
    if not 2 <= trial.ranks <= MAX_RANKS:  # noqa: PLR2004 - one rank has no expert parallelism
        msg = f"--ranks is {trial.ranks}; expected 2 to {MAX_RANKS}: each is a process on this machine"
        raise BadInputError(msg)
    experts = _num_experts(trial.model)
    if trial.map is None:
        if trial.model != TINY_MOE:
            msg = (
                "--model is given without --map; expected a map for it (expert-maps plan … --output map.json)"
            )
            raise BadInputError(msg)
        return
    placement = read_placement(trial.map)
    if placement.ep_size != trial.ranks:
        msg = (
            f"{trial.map} is a map for {placement.ep_size} ranks, and --ranks is {trial.ranks}; expected the same: "
            f"add --ranks {placement.ep_size}, which starts as many processes here"
        )
        raise BadInputError(msg)
    if placement.num_logical_experts != experts:
        msg = (
            f"{trial.map} is a map for {placement.num_logical_experts} experts; expected {experts}, as {trial.model} "
            "has: give the model that it is for with --model"
        )
        raise BadInputError(msg)


def _num_experts(model: Path) -> int:
    try:
        config: Any = json.loads((model / _CONFIG).read_text(encoding="utf-8"))
        text = config.get("text_config", config)
        found = [int(text[name]) for name in _EXPERTS if text.get(name)]
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        msg = f"{model / _CONFIG} cannot be read ({getattr(error, 'strerror', None) or error}); expected a checkpoint's folder"
        raise BadInputError(msg) from error
    if not found:
        msg = (
            f"{model / _CONFIG} names no experts ({', '.join(_EXPERTS)}); expected a Mixture-of-Experts model"
        )
        raise BadInputError(msg)
    return found[0]


def rehearse(trial: Trial, root: Path = ROOT) -> Outcome:
    """Serve without the map, then with it, and compare tokens and slots.

    Raises:
        BadInputError: see `check_trial`.
        ContractError: the release could not be fetched.
    """
    check_trial(trial)
    staged = stage(trial.release, root)
    folder = root / "rehearsal"
    path = trial.map
    if path is None:
        path = folder / "planned.json"
        write_map(path, trial.model, trial.ranks, trial.ranks)
    outcome = Outcome()
    served = {}
    for name, config in (("without", None), ("with", _config(trial, path))):
        request = {
            "engine": engine.options(trial.model, trial.ranks, config),
            "prompts": trial.prompts,
        }
        place = folder / name
        plugin = trial.plugin and name == "with"
        variables = engine.environment(staged, trial.chip, place, plugin=plugin)
        served[name] = engine.serve(request, place, variables)
        outcome.seconds += served[name].seconds
        if name == "without" and served[name].tokens is None:
            msg = f"vllm-ascend {trial.release.vllm_ascend} does not serve {trial.model} without a map either: {served[name].failed}"
            raise BadInputError(msg)
    _judge(outcome, served["without"], served["with"], _num_experts(trial.model))
    return outcome


def _config(trial: Trial, path: Path) -> dict[str, Any]:
    asked = {"expert_map_path": str(path.absolute())}
    if trial.plugin:
        return {"expert_maps": asked}
    redundant = read_placement(path).num_redundant_experts
    # Releases whose loader fills vLLM's order want to be told what the file says.
    told = {"num_redundant_experts": redundant} if trial.release.fills == "append" and redundant else {}
    return {"eplb_config": {**asked, **told}}


def _judge(outcome: Outcome, without: Served, with_map: Served, num_experts: int) -> None:
    outcome.paths, outcome.names = with_map.paths, with_map.names
    outcome.log = "" if with_map.log is None else str(with_map.log)
    if with_map.refused is not None:
        outcome.verdict, outcome.reason = "refused", with_map.refused
        return
    if with_map.tokens is None:
        outcome.verdict, outcome.reason = "wrong", f"it does not serve: {with_map.failed}"
        outcome.wrong.append(outcome.reason)
        return
    assert without.tokens is not None
    outcome.texts = compare_tokens(with_map.tokens, without.tokens)
    differ = [n for n, (a, b) in enumerate(zip(with_map.tokens, without.tokens, strict=True)) if a != b]
    if differ:
        outcome.wrong.append(
            f"{len(differ)} of {len(without.tokens)} texts differ from those without the map: prompts "
            f"{_few(differ)}"
        )
    for number, inspection in enumerate(with_map.inspections):
        when = ("after loading", "after serving")[min(number, 1)]
        try:
            faults = slot_faults(inspection, experts_of(without.inspections[0], num_experts))
        except InspectionError as error:
            outcome.wrong.append(str(error))
            continue
        outcome.slots += sum(len(layer["slots"]) for worker in inspection for layer in worker["layers"])
        outcome.wrong += [f"{when}: {fault}" for fault in faults]
    if outcome.wrong:
        outcome.verdict = "wrong"


def _few(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:_SHOWN_TEXTS]))
    return shown + (", …" if len(numbers) > _SHOWN_TEXTS else "")


def default_prompts(model: Path) -> list[str]:
    """Return the prompts for a model where none are given."""
    return prompts_for(model)
