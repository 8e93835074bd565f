# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Whether two arms are of one kind, so that what differs in their answers can be put down to EPLB."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from harness.accuracy.schema import RecordError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.accuracy.records import Record
    from harness.accuracy.schema import Summary

_CONFIG = "--additional-config"
# What makes another model of a checkpoint; with one in one arm alone a pair says nothing about EPLB.
_MODEL_OPTIONS = (
    *("--quantization", "--kv-cache-dtype", "--load-format", "--hf-overrides", "--revision"),
    *("--code-revision", "--tokenizer", "--rope-scaling", "--rope-theta", "--enable-lora", "--lora-modules"),
    *("--speculative-config", "--logits-processors", "--override-generation-config", "--generation-config"),
)
_SHORT = {"-q": "--quantization", "-sc": "--speculative-config"}
# What computes: another release may answer otherwise, with EPLB or without.
_COMPUTING = ("vllm", "vllm_ascend", "torch", "torch_npu", "transformers", "lm_eval")


def refuse_unlike(baseline: Record, arm: Record) -> None:
    """Refuse two records of which one could lose for a reason that is not EPLB.

    Raises:
        RecordError: a record is not complete, or they differ in task, model, dtype, checkpoint, or an option of the
            server that changes the model.
    """
    for record in (baseline, arm):
        if record.summary.status != "complete":
            msg = f"{record.folder}: status is {record.summary.status} ({record.summary.reason}); expected a complete record"
            raise RecordError(msg)
    before, after = baseline.summary, arm.summary
    first, second = (one.task.model_dump(exclude={"configuration"}) for one in (before, after))
    fields = [(f"task.{name}", first.get(name), second.get(name)) for name in first | second]
    fields += [(name, getattr(before, name), getattr(after, name)) for name in ("model", "dtype")]
    fields.append(("checkpoint", _digest(before), _digest(after)))
    options = [_model_options(one.server.arguments) for one in (before, after)]
    fields += [(name, options[0].get(name), options[1].get(name)) for name in _MODEL_OPTIONS]
    for name, expected, found in fields:
        if found != expected and not (name == "checkpoint" and None in {found, expected}):
            msg = f"{arm.folder}: {name} is {_shown(found)}; expected {_shown(expected)}, as in {baseline.folder}"
            raise RecordError(msg)


def _shown(value: object) -> str:
    return "not given" if value is None else f"{value!r:.60}"


def _digest(summary: Summary) -> str | None:
    return None if summary.checkpoint is None else summary.checkpoint.sha256


def _model_options(arguments: Sequence[str]) -> dict[str, str]:
    """Return the options that change the model, with their values."""
    found = {}
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        name = _SHORT.get(name, name.replace("_", "-"))
        if name in _MODEL_OPTIONS:
            following = arguments[place + 1] if place + 1 < len(arguments) else ""
            found[name] = value if equals else "" if following.startswith("-") else following
    return found


def unlike(before: Summary, after: Summary) -> list[str]:
    """Return what computed otherwise in two arms, so that it may have changed answers: releases and the machine."""
    sides = [
        {name: one.versions.model_dump().get(name) for name in _COMPUTING}
        | {name: one.environment.get(name) for name in ("machine", "device")}
        for one in (before, after)
    ]
    return _differing(*sides)


def _differing(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    names = [name for name in before if before[name] != after.get(name)]
    return [f"{name} is {before[name]} and {after.get(name)}" for name in names]


def checkpoints_unknown(before: Summary, after: Summary) -> str | None:
    """Return why nobody knows whether both served one checkpoint; None where it is known."""
    if _digest(before) is not None and _digest(after) is not None:
        return None
    names = [one.checkpoint.name if one.checkpoint else None for one in (before, after)]
    if None not in names and names[0] == names[1]:
        return None
    return f"the checkpoint of {before.arm if names[0] is None else after.arm} is not known"


def differences(before: Summary, after: Summary) -> list[str]:
    """Return what else differs between two arms: what makes them hard to repeat, and how they were served."""
    found = _differing(before.versions.model_dump(), after.versions.model_dump())
    if before.role != "baseline":
        found.append(f"{before.arm} is no baseline: its role is {before.role}")
    found += _differing({"commit": before.git.commit}, {"commit": after.git.commit})
    arguments = [Counter(_without_config(one.server.arguments)) for one in (before, after)]
    sides = [sorted((arguments[i] - arguments[1 - i]).elements()) for i in range(2)]
    if any(sides):
        found.append(f"arguments differ: {' '.join(sides[0]) or 'none'} and {' '.join(sides[1]) or 'none'}")
    variables = [one.server.environment for one in (before, after)]
    names = [name for name in variables[0] | variables[1] if variables[0].get(name) != variables[1].get(name)]
    if names:
        found.append(f"variables differ: {', '.join(sorted(names))}")
    dirty = [one.arm for one in (before, after) if one.git.dirty]
    if dirty:
        found.append(f"uncommitted changes: {', '.join(dirty)}")
    return found


def _without_config(arguments: Sequence[str]) -> list[str]:
    skipped = {place + step for place, word in enumerate(arguments) if word == _CONFIG for step in (0, 1)}
    return [word for place, word in enumerate(arguments) if place not in skipped]
