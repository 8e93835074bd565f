# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The server of an arm: started with the placement that is planned for it, or another's, which is looked at."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from expert_maps import plan, read_load, write_placement
from harness.accuracy import proof
from harness.accuracy.config import BASELINE, ConfigError
from harness.accuracy.loads import LOAD_FILE
from harness.accuracy.server import ServerError, attach, serve
from harness.record.schema import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.accuracy.arm_run import ArmRun
    from harness.accuracy.server import Server

MAP_FILE = "expert_map.json"
# In vLLM's own words of its configuration.
_DTYPE = re.compile(r"\bdtype=torch\.(\w+)")


def compare_served(run: ArmRun, server: Server) -> Checkpoint:
    """Return what another's server serves, whose files are not here, and say where it is not what was asked for.

    Raises:
        ProofError: its dtype is another.
    """
    settings = run.settings
    described = server.describe()
    names = {Path(text).name for one in described for text in one[:2] if isinstance(text, str)}
    wanted = {settings.config.name, Path(settings.config.model).name, Path(settings.model).name}
    if not names & wanted:
        settings.say(
            f"{run.name}: the server serves {', '.join(sorted(names))}; expected one of {', '.join(sorted(wanted))}"
        )
    found = _dtype(server)
    if found not in {None, settings.dtype}:
        msg = f"arm {run.name} was not asked anything: the server computes in {found}; expected {settings.dtype}"
        raise proof.ProofError(msg)
    roots = {Path(text).name for one in described if isinstance(text := one[1] or one[0], str)}
    return Checkpoint(name=", ".join(sorted(roots)))


def _dtype(server: Server) -> str | None:
    """Return the dtype of weights and activations; None where the server does not say it."""
    try:
        found = _DTYPE.search(json.dumps(server.get("/server_info")))
    except ServerError:
        return None
    return found[1] if found else None


@contextlib.contextmanager
def serving(run: ArmRun) -> Iterator[Server]:
    """Serve an arm for the time of a `with` block, or find the server that runs already."""
    settings = run.settings
    url = settings.base_urls.get(run.name)
    if url is not None:
        yield attach(url)
        return
    expert_map = _plan(run)
    additional = run.arm.additional(
        record=run.questions_load.recorded.absolute() if run.questions_load else None,
        expert_map=None if expert_map is None else expert_map.absolute(),
    )
    arguments = [*settings.config.server.arguments, *run.arm.arguments, "--dtype", settings.dtype]
    if additional:
        arguments += ["--additional-config", json.dumps(additional)]
    run.arguments = ["--model", *(run.shown(word) for word in (settings.model, *arguments))]
    settings.say(f"{run.name}: starting vLLM, log in {run.work / 'server.log'}")
    with serve(
        settings.model,
        arguments,
        run.work / "server.log",
        environment=run.environment,
        startup_seconds=settings.startup_seconds,
        name=settings.config.name,
    ) as server:
        yield server


def _plan(run: ArmRun) -> Path | None:
    """Plan the arm's placement from recorded load and write it beside the record."""
    wanted = run.arm.plan
    if wanted is None:
        return None
    path = run.folder / MAP_FILE
    run.placement = wanted.named()
    if run.placement is not None:
        write_placement(run.placement, path)
        return path
    source = (
        Path(wanted.load) if wanted.load else run.settings.work / (wanted.load_of or BASELINE) / LOAD_FILE
    )
    if not source.exists():
        msg = (
            f"arm {run.name} is planned from {source}, which is absent; expected the arm {wanted.load_of} to have "
            "run before, in this run or one before it"
        )
        raise ConfigError(msg)
    load = read_load(source)
    # Summed over steps: how requests fell into steps differs from run to run, their sum does not.
    planned = plan(
        load.total,
        num_physical_experts=load.num_experts + wanted.num_redundant_experts,
        ep_size=wanted.ep_size,
    )
    run.placement = planned.placement
    write_placement(planned.placement, path)
    run.settings.say(
        f"{run.name}: planned from {load.total.sum():.0f} recorded choices of experts, balancedness "
        f"at least {planned.balancedness.min():.3f} in each of {load.num_layers} layers, digest "
        f"{planned.placement.digest[:12]}"
    )
    return path
