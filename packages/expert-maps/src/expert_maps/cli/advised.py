# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What `advise` does with its options, and what it prints."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from expert_maps.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from expert_maps.advice import Advice
    from expert_maps.advice_rules import Served
    from expert_maps.cli.loading import Loaded, LoadOptions
    from expert_maps.cli.server import Choices, ServerOptions
    from expert_maps.load import ExpertLoad
    from expert_maps.models import ModelCounts
    from expert_maps.report import Findings
    from expert_maps.simulation import Costs

# What a model's configuration has, and no load.
_MODEL_KEYS = {"architectures", "model_type", "num_hidden_layers"}
_MOST_CONFIG_BYTES = 2**22


def model_of(paths: Sequence[Path], said: LoadOptions) -> ModelCounts | None:
    """Return the model that stands in place of a load; None where it is a load.

    Raises:
        ExpertMapsError: there is neither a file nor a known model of that name, or the model cannot be read.
    """
    from expert_maps.cli.loading import LoadOptions
    from expert_maps.cli.model import read_model
    from expert_maps.models import model_counts

    path = paths[0]
    if len(paths) > 1 or os.fspath(path) == "-":
        return None
    if path.exists():
        if not _is_config(path):
            return None
    else:
        try:
            model_counts(os.fspath(path))
        except FormatError as error:
            if path.suffix:  # meant as a file
                return None
            raise FormatError(str(error)) from error
    if said != LoadOptions():
        msg = f"{path} is a model; expected a load beside --model and other options of loads"
        raise FormatError(msg)
    return read_model(os.fspath(path))


def _is_config(path: Path) -> bool:
    from expert_maps.files import read_json

    if path.is_dir() or path.name == "config.json":
        return True
    if path.suffix != ".json" or path.stat().st_size > _MOST_CONFIG_BYTES:
        return False
    try:
        found = read_json(path)
    except FormatError:
        return False
    return isinstance(found, dict) and bool(_MODEL_KEYS & set(found))


def model_advice(
    model: ModelCounts, ep_size: int, redundant: list[int] | None, server: ServerOptions, served: Served
) -> Advice:
    """Return the advice for a model without a load.

    Raises:
        ExpertMapsError: an option is invalid.
    """
    from expert_maps.advice_without_load import advise_model

    return advise_model(
        model, ep_size=ep_size, redundant=redundant, expert_bytes=server.expert_bytes, served=served
    )


def found_advice(
    trace: ExpertLoad, choices: Choices, server: ServerOptions, served: Served, price: Costs
) -> Advice:
    """Return the advice for what the command line says.

    Raises:
        ExpertMapsError: an option is invalid.
    """
    from expert_maps.advice import advise
    from expert_maps.cli.work import work

    model, least = server.time_model(), server.part_of_gain()
    return work(
        "simulating",
        lambda progress: advise(
            trace,
            ep_size=choices.ep_size,
            redundant=choices.redundant,
            intervals=choices.intervals,
            policies=choices.policies,
            time_model=model,
            costs=price,
            served=served,
            least_gain=least,
            workers=server.processes,
            progress=progress,
        ),
    )


def find_for_report(
    loaded: Loaded,
    ep_size: int,
    redundant: int | None,
    policy: str,
    server: ServerOptions,
    served: Served,
    price: Costs,
) -> Findings:
    """Return what `report` tells.

    Raises:
        ExpertMapsError: an option is invalid.
    """
    from expert_maps.cli.work import work
    from expert_maps.report import find

    model, least = server.time_model(), server.part_of_gain()
    return work(
        "simulating",
        lambda progress: find(
            loaded.load,
            ep_size=ep_size,
            num_redundant_experts=redundant,
            policy=policy,
            time_model=model,
            costs=price,
            served=served,
            least_gain=least,
            workers=server.processes,
            names=loaded.layers,
            notes=[f"the load was read as {loaded.file.description}", *loaded.file.warnings],
            progress=progress,
        ),
    )


def print_advice(found: Advice, *, json: bool) -> None:
    """Print the answer, what to set and why; or one JSON object."""
    from expert_maps.cli.output import print_json, say

    if json:
        print_json(document(found))
        return
    say([f"worth it: {found.answer}", *advice_lines(found)], wrap=True)


def advice_lines(found: Advice) -> list[str]:
    """Return what to set and why, a line each."""
    from expert_maps.cli.output import as_size

    lines = []
    if found.setting is not None:
        when = f"every {found.setting.interval} steps" if found.setting.interval else "once"
        left = "" if found.bytes_left is None else f", {as_size(found.bytes_left)} of the device left"
        lines.append(
            f"setting: {found.setting.num_redundant_experts} redundant experts, policy {found.setting.policy}, plan {when}"
        )
        lines.append(
            f"memory: {as_size(found.bytes_per_rank or 0)} of experts on a rank, "
            f"{as_size(found.extra_bytes_per_rank or 0)} of it for redundant ones{left}"
        )
        after = "" if found.payback_steps is None else f", saved again after {found.payback_steps:,.0f} steps"
        lines.append(f"first move and plan: {found.start_seconds or 0:.3f} s once{after}")
        lines.append(f"time model: a = {found.layer_ms:.4g} ms a layer, b = {found.token_ms:.4g} ms a token")
    else:
        lines += memory_lines(found)
    lines += [f"why: {reason}" for reason in found.reasons]
    lines += [f"known rule, {rule.name}: {rule.text}" for rule in found.rules]
    return lines + [f"assumed: {assumption}" for assumption in found.assumptions]


def memory_lines(found: Advice) -> list[str]:
    """Return what each redundancy takes, a line each."""
    from expert_maps.cli.output import as_size

    lines = []
    for row in found.memory:
        left = ""
        if row.bytes_left is not None:
            left = f", {as_size(row.bytes_left)} left" if row.fits else ": does not fit"
        lines.append(
            f"memory with {row.num_redundant_experts} redundant experts: {row.slots_per_rank} slots of a layer on a rank, "
            f"{as_size(row.bytes_per_rank)}, {as_size(row.extra_bytes_per_rank)} of it for redundant ones{left}"
        )
    return lines


def document(found: Advice) -> dict[str, object]:
    """Return the advice as JSON: gains as parts of 1, sizes in bytes, times in the unit of their name."""
    from dataclasses import asdict

    from expert_maps.simulation import row_of

    nested = {"setting", "rules", "memory", "chosen_from"}
    names = [name for name in found.__dataclass_fields__ if name not in nested]
    return {
        **{name: getattr(found, name) for name in names},
        "setting": None if found.setting is None else asdict(found.setting),
        "rules": [asdict(rule) for rule in found.rules],
        "memory": [asdict(row) for row in found.memory],
        "chosen_from": [row_of(run) for run in found.chosen_from],
    }
