# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What is said before a server is started: `accuracy validate`, `--dry-run`, and what a run's options name."""

from __future__ import annotations

import json
import re
import tempfile
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expert_maps import ExpertMapsError
from harness.accuracy.config import BASELINE, ConfigError
from harness.accuracy.data import check_data, find_data
from harness.accuracy.loading import load_config
from harness.accuracy.options import Trust  # noqa: TC001 - typer reads annotations at run time
from harness.accuracy.server import ServerError

if TYPE_CHECKING:
    from harness.accuracy.config import ModelConfig
    from harness.accuracy.settings import RunSettings

_BAD_INPUT = 2
_HOST = re.compile(r"[A-Za-z0-9._:%-]+")


def show_plan(settings: RunSettings, names: list[str]) -> int:
    """Check the questions and print what a run would do; the exit code."""
    from harness.accuracy.questions import preview

    config, task = settings.config, settings.config.task
    with tempfile.TemporaryDirectory() as cache:
        try:
            prompts = preview(task, count=settings.count, paths=settings.data, cache=Path(cache))
        except ExpertMapsError as error:
            typer.echo(f"error: {error}", err=True)
            return _BAD_INPUT
    typer.echo(
        f"{config.name}: {settings.model} in {settings.dtype}, {len(prompts)} questions of {task.dataset}"
    )
    for name in names:
        arm, url = config.arms[name], settings.base_urls.get(name)
        words = [*config.server.arguments, *arm.arguments, "--dtype", settings.dtype]
        options = json.dumps(arm.additional_config)
        served = (
            f"asked at {url}"
            if url
            else f"vllm serve {settings.model} {' '.join(words)} --additional-config '{options}'"
        )
        planned = f", planned from {arm.plan.load_of or arm.plan.load or arm.plan.layout}" if arm.plan else ""
        typer.echo(f"{name} ({arm.role}{planned}): {served}")
    if settings.performance is not None:
        for name, stream in settings.performance.streams.items():
            said = json.dumps(stream.model_dump(exclude_none=True))
            typer.echo(
                f"timed, {settings.performance.rounds} rounds of {name}: {said} with prompts: {stream.prompts}"
            )
    return 0


def validate_command(
    model: Annotated[str, typer.Argument(help="A name in accuracy/models, or a .yaml file.")],
    *,
    trust: Trust = False,
) -> None:
    """Check a configuration and its local data, and start no server. Exit code 0: it can be run. 2: it cannot.

    Without --trust a .yaml file sets arguments and variables of the lists in `harness.accuracy.trust` only: sizes, ranks,
    seeds, switches, and names of a quantisation, a dtype or a back end. A file of accuracy/models, by its name, is trusted.
    """
    try:
        config = load_config(model, trusted=trust)
        data = find_data(config, config.model, None)
        for split, path in (data or {}).items():
            check_data(split, path, config.task.num_fewshot)
        config.performance.check()
    except (ExpertMapsError, ValueError) as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(_BAD_INPUT) from error
    arms = ", ".join(f"{name} ({arm.role})" for name, arm in config.arms.items())
    typer.echo(
        f"{config.name}: {arms}; the data is {'checked' if data else 'on the hub, and was not looked at'}"
    )


def require_lm_eval() -> None:
    """Say so where lm-eval is not installed.

    Raises:
        ConfigError: it is not.
    """
    try:
        import lm_eval  # noqa: F401 - only whether it is there
    except ImportError as error:
        msg = f"lm-eval cannot be imported ({error}); expected it, as requirements/vllm.txt pins it"
        raise ConfigError(msg) from error


def parse_base_urls(texts: list[str], config: ModelConfig) -> dict[str, str]:
    """Read ``ARM=URL``.

    Raises:
        ConfigError: it is something else, or names an arm twice or one that is not there.
        ServerError: the URL is none.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, url = text.partition("=")
        if not equals or not url:
            msg = f"base URL is {text!r}; expected ARM=URL, for example {BASELINE}=http://127.0.0.1:8000"
            raise ConfigError(msg)
        config.require_arm(name)
        if name in found:
            msg = f"arm {name!r} has two base URLs; expected one"
            raise ConfigError(msg)
        found[name] = check_url(url)
    return found


def check_url(text: str) -> str:
    """Return the base address of a server, without ``/v1``.

    Raises:
        ServerError: it is none.
    """
    try:
        parts = urllib.parse.urlsplit(text)
        right = parts.scheme in {"http", "https"} and not (parts.query or parts.fragment or parts.username)
        right = right and _HOST.fullmatch(parts.hostname or "") is not None and parts.port != 0
    except ValueError:  # the port is no number below 65536, or a bracket is open
        right = False
    if not right:
        msg = f"base URL is {text!r}; expected one like http://127.0.0.1:8000"
        raise ServerError(msg)
    return text.rstrip("/").removesuffix("/v1")
