# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Words: help, versions, completion, examples, and what is said of words that are not known."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_runs import assert_one_line_error, run

import expert_maps
from expert_maps.cli import words
from expert_maps.cli.commands import COMMANDS, load_command
from expert_maps.cli.examples import EXAMPLES
from expert_maps.cli.usage import long_options

LOAD = Path(__file__).resolve().parents[3] / "accuracy" / "loads" / "tiny_moe.npz"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help_with_its_examples(command: str) -> None:
    result = run(command, "-h")
    assert result.exit_code == 0
    assert result.stdout == run(command, "--help").stdout
    assert "--json" in result.stdout
    assert "Examples:" in result.stdout
    for line in EXAMPLES[command]:
        assert f"    {line}\n" in result.stdout  # in one piece, to be copied


def test_help_without_a_command_lists_them_all() -> None:
    for arguments in ((), ("-h",), ("--help",)):
        result = run(*arguments)
        assert result.exit_code == 0
        assert all(f"\n  {command} " in result.stdout for command in COMMANDS)
        assert "..." not in result.stdout.split("Commands:")[1]


def test_version() -> None:
    for option in ("--version", "-V"):
        assert run(option).stdout == f"expert-maps {expert_maps.__version__}\n"


def test_every_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    counts = np.load(LOAD)
    steps = np.concatenate([counts[name].reshape(-1, *counts[name].shape[-2:]) for name in counts.files])
    np.savez("load.npz", load=steps[:7])
    np.savez("later.npz", load=steps[7:])
    for command in ("", *(name for name in EXAMPLES if name)):
        for line in EXAMPLES[command]:
            given = None
            for part in line.split(" | "):
                words_of_it = shlex.split(part)
                target = words_of_it[-1] if words_of_it[-2] == ">" else None
                result = run(*(words_of_it[1:-2] if target else words_of_it[1:]), given=given)
                assert result.exit_code == 0, (line, result.output)
                given = result.stdout_bytes
                if target:
                    Path(target).write_bytes(given)
    assert set(EXAMPLES) == {"", *COMMANDS}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("plan", "x", "--cards", 4), "no such option: --cards; did you mean --ep-size?"),
        (("plan", "x", "--npus", 4), "--ep-size?"),
        (("generate", "--gpus", 4), "--ep-size?"),
        (("check", "x", "--devices", 4), "--ep-size?"),
        (("rescale", "x", "y", "--ranks", 4), "--ep-size?"),
        (("plan", "x", "--ep", 4), "--ep-size?"),
        (("compare", "x", "--world-size", 4), "--ep-size?"),
        (("plan", "x", "--ep_size", 4), "--ep-size?"),
        (("plan", "x", "--num-physical-experts", 4), "--physical?"),
        (("plan", "x", "--slots", 4), "--physical?"),
        (("compare", "x", "--slots", 4), "--redundant?"),
        (("plan", "x", "--num-redundant-experts", 4), "--redundant?"),
        (("generate", "--num_redundant_experts", 4), "--redundant?"),
        (("plan", "x", "--replicas", 4), "--redundant?"),
        (("plan", "x", "--copies", 4), "--redundant?"),
        (("generate", "--num-experts", 4), "--experts?"),
        (("check", "x", "--n-routed-experts", 4), "--experts?"),
        (("generate", "--num-layers", 4), "--layers?"),
        (("plan", "x", "--out", "y"), "--output?"),
        (("plan", "x", "--redundent", 4), "--redundant or --redundancy?"),
        (("check", "x", "--all-violations"), "--all?"),
        (("show", "x", "--zzz"), "no such option: --zzz (see "),
        (("balance",), "no such command: balance; did you mean plan?"),
        (("eplb",), "plan?"),
        (("validate",), "check?"),
        (("view",), "show"),
        (("print",), "show"),
        (("migrate",), "diff or rescale?"),
        (("info",), "show?"),
        (("inspect",), "show?"),
        (("chekc",), "check?"),
        (("version",), "--version?"),
        (("zzz",), "no such command: zzz (see "),
    ],
)
def test_unknown_words_name_the_ones_that_are_meant(arguments: tuple[object, ...], expected: str) -> None:
    assert_one_line_error(run(*arguments), expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("generate",), "missing option '--ep-size'"),
        (("plan",), "missing argument 'LOAD'"),
        (("plan", "x", "--ep-size"), "option '--ep-size' requires an argument"),
        (("plan", "x", "--ep-size", "many"), "many"),
        (("plan", "x", "--ep-size", 4, "--tolerance", "3x"), "3x"),
        (("check", "a", "b"), "unexpected extra argument"),
        (("plan", "x", "--ep-size", 4, "--table=3"), "--table"),
        (("rescale", "a", "b", "--max-moves", -1), "--max-moves is '-1'; expected a number from 0, or any"),
        (("rescale", "a", "b", "--failed-ranks", "x"), "--failed-ranks is 'x'; expected numbers"),
        (("plan", "-", "--ep-size", 4, "--current", "-"), "LOAD and --current are both '-'"),
    ],
)
def test_usage_errors_are_one_line(arguments: tuple[object, ...], expected: str) -> None:
    assert_one_line_error(run(*arguments), expected)


def test_every_word_leads_to_what_exists() -> None:
    known = {name for command in COMMANDS for each in load_command(command).params for name in each.opts}
    assert {option for meant in words.OPTION_WORDS.values() for option in meant} <= known
    later = {"load", "convert"}  # commands of other formats
    meant_commands = {name for meant in words.COMMAND_WORDS.values() for name in meant}
    assert meant_commands <= set(COMMANDS) | later | {"--version", "--help"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_answers_without_numpy(shell: str) -> None:
    code = "import sys; sys.argv[0] = 'expert-maps'; from expert_maps.cli.entry import run; run(['--show-completion']); "
    environment = {
        "_EXPERT_MAPS_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "expert-maps pl",
        "COMP_CWORD": "1",
        "_TYPER_COMPLETE_ARGS": "expert-maps pl",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "PYTHONPATH": ":".join(path for path in sys.path if path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False, timeout=60
    )
    assert "plan" in done.stdout, done.stderr
    assert "check" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said", "meant"),
    [
        (("plan", "load.npy", "--ep-size", 2, "--policy", "deepsek"), "--policy is 'deepsek'", "deepseek"),
        (("plan", "load.npy", "--ep-size", 2, "--policy", "global"), "--policy is 'global'", "deepseek_global?"),
        (("load", "load.npy", "--format", "tensorrtllm"), "--format is 'tensorrtllm'", "tensorrt-llm?"),
        (("load", "load.npy", "--format", "trt-llm"), "--format is 'trt-llm'", "tensorrt-llm?"),
        (("load", "load.npy", "--files", "rank"), "expected one of ranks, steps", "ranks?"),
        (("show", "map.json", "--from", "expert_maps"), "--from is 'expert_maps'", "expert-maps?"),
        (("convert", "map.json", "out.json", "--to", "native"), "--to is 'native'", "expert-maps?"),
        (("generate", "--experts", 4, "--ep-size", 2, "--layout", "round-robin"), "--layout", "round_robin?"),
        (("compare", "load.npy", "--ep-size", 2, "--policies", "deepseek,ballanced"), "--policies", "balanced?"),
    ],
)  # fmt: skip
def test_an_unknown_value_names_the_one_that_is_meant(
    arguments: tuple[object, ...], said: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "load.npy").write_bytes(b"")
    (tmp_path / "map.json").write_text("{}")
    assert_one_line_error(run(*arguments), said, f"; did you mean {meant}")


@pytest.mark.parametrize(
    ("command", "option", "meant"),
    [
        ("show", "--tp", "--tp-size"),
        ("plan", "--tp", "--ep-size"),
        ("plan", "--tensor-parallel-size", "--ep-size"),
        ("plan", "--dp-size", "--ep-size"),
        ("load", "--tp", None),
        ("generate", "--max-swaps", None),
    ],
)
def test_a_word_that_a_command_has_nothing_for_names_nothing_else(
    command: str, option: str, meant: str | None
) -> None:
    said = run(command, option, 2).stderr
    assert (
        (f"did you mean {meant}?" in said) if meant else ("did you mean" not in said and "--help)" in said)
    ), said


def test_quantities_are_called_as_they_were_typed() -> None:
    known = ["--ep-size", "--redundant"]
    for text, said in (
        ("ep_size is 0; expected at least 1", "--ep-size is 0; expected at least 1"),
        ("num_redundant_experts is 3: no ep_size 4", "--redundant is 3: no --ep-size 4"),
        ("nothing to compare: ep_size is 0", "nothing to compare: --ep-size is 0"),
        # Of no option of this command; of a file; of no quantity.
        ("num_groups is 3", "num_groups is 3"),
        ("map.json: ep_size is 4; expected 2", "map.json: ep_size is 4; expected 2"),
        ("an ep_size is missing", "an ep_size is missing"),
    ):
        assert words.with_options(text, known) == said
    options = {name for command in COMMANDS for name in long_options(load_command(command))}
    assert {option for options in words.QUANTITIES.values() for option in options} <= options
