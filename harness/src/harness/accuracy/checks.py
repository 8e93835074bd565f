# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What is said before a server is started: `accuracy validate`, `--dry-run`, and what a run's options name."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import tempfile
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.accuracy import options as given
from harness.accuracy.config import BASELINE, ConfigError
from harness.accuracy.data import check_data, find_data
from harness.accuracy.loading import load_config
from harness.accuracy.server import ServerError

if TYPE_CHECKING:
    from harness.accuracy.config import ModelConfig
    from harness.accuracy.settings import RunSettings

_HOST = re.compile(r"[A-Za-z0-9._:%-]+")


def show_plan(settings: RunSettings, names: list[str]) -> None:
    """Check the questions and print what a run would do.

    Raises:
        ConfigError: the data cannot be loaded, or does not fit the task.
    """
    from harness.accuracy.questions import preview

    config = settings.config
    with tempfile.TemporaryDirectory() as cache:
        count = len(preview(settings, Path(cache)))
    typer.echo(
        f"{config.name}: {settings.model} in {settings.dtype}, {count} questions of {config.task.dataset}"
    )
    for name in names:
        arm, url = config.arms[name], settings.base_urls.get(name)
        words = " ".join([*config.server.arguments, *arm.arguments, "--dtype", settings.dtype])
        options = json.dumps(arm.additional_config)
        own = f"vllm serve {settings.model} {words} --additional-config '{options}'"
        planned = f", planned from {arm.plan.load_of or arm.plan.load or arm.plan.layout}" if arm.plan else ""
        typer.echo(f"{name} ({arm.role}{planned}): {f'asked at {url}' if url else own}")
    if settings.performance is not None:
        for name, stream in settings.performance.streams.items():
            rounds, said = settings.performance.rounds, json.dumps(stream.model_dump(exclude_none=True))
            typer.echo(f"timed, {rounds} rounds of {name}: {said} with prompts: {stream.prompts}")


def validate_command(
    model: Annotated[str, typer.Argument(help="A name in accuracy/models, or a .yaml file.")],
    *,
    trust: given.Trust = False,
) -> None:
    """Check a configuration and its local data, and start no server. Exit code 0: it can be run. 2: it cannot.

    Without --trust a .yaml file sets arguments and variables of the lists in `harness.accuracy.trust` only: sizes, ranks,
    seeds, switches, and names of a quantisation, a dtype or a back end. A file of accuracy/models, by its name, is trusted.
    """
    with given.bad_input():
        config = load_config(model, trusted=trust)
        data = find_data(config, config.model, None)
        for split, path in (data or {}).items():
            check_data(split, path, config.task.num_fewshot)
        config.performance.check()
    arms = ", ".join(f"{name} ({arm.role})" for name, arm in config.arms.items())
    looked = "checked" if data else "on the hub, and was not looked at"
    typer.echo(f"{config.name}: {arms}; the data is {looked}")


def require_modules(*names: str) -> None:
    """Say so where a module that a run needs is not installed.

    Raises:
        ConfigError: it is not.
    """
    for name in names:
        try:
            # A package may be there without what it needs; a module of it is only looked for, as vLLM's takes long to import.
            found = importlib.util.find_spec(name) if "." in name else importlib.import_module(name)
            if found is None:
                msg = f"No module named {name!r}"
                raise ModuleNotFoundError(msg, name=name)
        except ImportError as error:
            shown = name.replace("_", "-")
            msg = f"{shown} cannot be imported ({error}); expected it, as requirements/vllm.txt pins it"
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
