# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The root of the commands: every error is one line, unknown words name the ones that are meant."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from expert_maps.cli.commands import COMMANDS, load_command
from expert_maps.cli.notes import held_notes
from expert_maps.cli.output import error_line, say
from expert_maps.cli.words import hint, meant_commands, meant_options, with_options
from expert_maps.errors import ExpertMapsError, PlacementError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

OK, CHECK_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

# typer brings Click along since 0.26 and needs it before; either way this is what its usage errors are.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class Commands(TyperGroup):
    """A group that prints errors as one line, and ends with the exit codes that `--help` tells."""

    def main(self, *args: Any, standalone_mode: bool = True, **options: Any) -> Any:  # noqa: ANN401 - typer's
        """Run a command and exit."""
        try:
            code = super().main(*args, **{**options, "standalone_mode": False})
        except _UsageError as error:
            say(error_line(usage_text(error)), err=True)
            code = BAD_INPUT
        except typer.Abort:
            code = INTERRUPTED
        except EndOfOutputError:
            raise BrokenPipeError from None
        if standalone_mode:
            sys.exit(code if isinstance(code, int) else OK)
        return code

    def make_context(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - typer's
        """Parse the arguments; help and version are printed here."""
        with _output_may_end():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - typer's
        """Run the command; an error of this package is bad input."""
        with _output_may_end(), bad_input(self._options_of(ctx)), held_notes():
            return super().invoke(ctx)

    def _options_of(self, ctx: Any) -> Callable[[], list[str]]:  # noqa: ANN401 - typer's
        """Return what tells the options of the command that runs: which it is, is known when it has begun."""

        def options() -> list[str]:
            command = self.commands.get(ctx.invoked_subcommand)
            return [] if command is None else long_options(command)

        return options

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401, ARG002 - typer's
        """Name the commands in their own order."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401, ARG002 - typer's
        """Return a command, which is imported when it is first asked for."""
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            self.commands[cmd_name] = load_command(cmd_name)
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - typer's
        """Find the command, or say which one may be meant."""
        name = args[0]
        if self.get_command(ctx, name) is None and not ctx.resilient_parsing:
            ctx.fail(f"no such command: {name}{hint(meant_commands(name, self.list_commands(ctx)))}")
        return super().resolve_command(ctx, args)


class EndOfOutputError(Exception):
    """Whoever read standard output has left; not an OSError, which Click would answer itself."""


@contextmanager
def _output_may_end() -> Generator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise EndOfOutputError from error


def long_options(command: Any) -> list[str]:  # noqa: ANN401 - typer's
    """Return the options of a command."""
    return [name for each in command.params for name in each.opts if name.startswith("--")]


@contextmanager
def bad_input(options: Callable[[], list[str]] = list) -> Generator[None]:
    """Turn an error of this package into one line on standard error and exit code 2.

    Args:
        options: returns those of the command that runs; a message calls quantities by them.
    """
    try:
        yield
    except ExpertMapsError as error:
        say(error_line(with_options(error_text(error), options())), err=True)
        raise typer.Exit(BAD_INPUT) from error
    except MemoryError as error:
        say(error_line("not enough memory for counts this large"), err=True)
        raise typer.Exit(BAD_INPUT) from error


def error_text(error: ExpertMapsError) -> str:
    """Return what is wrong; of many violations the first, and how many there are."""
    return f"invalid placement: {error.summary}" if isinstance(error, PlacementError) else str(error)


def usage_text(error: Exception) -> str:
    """Return what is wrong with the words typed, and where the right ones are told."""
    context = getattr(error, "ctx", None)
    option = getattr(error, "option_name", None)
    if isinstance(option, str) and context is not None and str(error).lower().startswith("no such option"):
        known = [*long_options(context.command), "--help"]
        text = f"no such option: {option}{hint(meant_options(option, known))}"
    else:
        text = _wrong_value(error)
    return text if context is None or text.endswith("?") else f"{text} (see {context.command_path} --help)"


# What is expected where a value has the wrong type, by the kind of error that pydantic names.
_EXPECTED = {"int_parsing": "an integer", "int_parsing_size": "an integer", "float_parsing": "a number"}


def _wrong_value(error: Exception) -> str:
    """Return the message in this package's form; where pydantic has read the value, its message lacks that value."""
    option = getattr(getattr(error, "param", None), "opts", ("the value",))[0]
    details = getattr(error.__cause__, "errors", None)
    for detail in details() if callable(details) else ():
        expected = _EXPECTED.get(str(detail.get("type")), str(detail.get("msg", "")).split(",")[0])
        bounds = detail.get("ctx") or {}
        if "ge" in bounds or "le" in bounds:
            expected = (
                f"a number of at least {bounds['ge']}" if "ge" in bounds else f"a number up to {bounds['le']}"
            )
        return f"{option} is {detail.get('input')!r}; expected {expected}"
    message: str = error.format_message()  # type: ignore[attr-defined]
    return message[:1].lower() + message[1:].rstrip().rstrip(".")
