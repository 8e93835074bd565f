# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Try every fault of the list: `python -m harness.mutants`, `--short` a dozen, or those that words name."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from harness.mutants import MUTANTS, Mutant, pains
from harness.mutants.mutant import MutantError
from harness.mutants.trial import Copy

_SURVIVED, _UNUSABLE = 1, 2


def main(arguments: list[str] | None = None, root: Path | None = None) -> int:
    """Print a line for each fault: what it is, and which test caught it.

    Returns:
        0 where all are caught, 1 where one survives, 2 where one cannot be tried.
    """
    parser = argparse.ArgumentParser(prog="harness.mutants", description=__doc__)
    parser.add_argument("words", nargs="*", help="only faults whose name or file has one of these")
    parser.add_argument("--short", action="store_true", help="only a dozen, as in CI")
    parser.add_argument(
        "--table", action="store_true", help="print report -> bug -> catcher, and try nothing"
    )
    options = parser.parse_args(arguments)
    if options.table:
        sys.stdout.write(pains.table())
        return 0
    chosen = [mutant for mutant in MUTANTS if _is_chosen(mutant, options.words, short=options.short)]
    if not chosen:
        sys.stderr.write("no mutant has one of these words\n")
        return _UNUSABLE
    here = Path.cwd() if root is None else root
    try:
        return _try_all(chosen, here)
    except MutantError as error:
        sys.stderr.write(f"{error}\n")
        return _UNUSABLE


def _is_chosen(mutant: Mutant, words: list[str], *, short: bool) -> bool:
    named = not words or any(word in mutant.what or word in mutant.file for word in words)
    return named and (mutant.short or not short)


def _try_all(chosen: list[Mutant], root: Path) -> int:
    for mutant in chosen:  # before anything is copied or run
        mutant.applied(root)
    survivors = 0
    with TemporaryDirectory(prefix="mutants-") as folder:
        copy = Copy(root, Path(folder))
        copy.check(chosen)
        for mutant in chosen:
            outcome = copy.try_out(mutant)
            survivors += outcome.caught_by is None
            said = f"caught by {outcome.caught_by}" if outcome.caught_by else f"SURVIVED {mutant.test}"
            sys.stdout.write(f"{mutant.file}: {mutant.what}: {said}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{len(chosen) - survivors} of {len(chosen)} caught\n")
    return _SURVIVED if survivors else 0


if __name__ == "__main__":
    raise SystemExit(main())
