# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Tests run in an order that is drawn: one that leans on what another left behind does not stay green for long.

The seed is printed; `--order-seed` takes it again. Files are shuffled, and the tests within each; those of a file stay
together, because they may share what is dear to make. What starts engines keeps its order.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

_VARIABLE = "EXPERT_MAPS_ORDER_SEED"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--order-seed`."""
    parser.addoption(
        "--order-seed", type=int, help="order of the tests: a seed that was printed, 0 for that of files"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Draw a seed where none is given."""
    if config.option.order_seed is None:
        # The workers of pytest-xdist must agree; they inherit the environment, and are not given what is set here.
        drawn = str(random.SystemRandom().randrange(1, 10**6))
        config.option.order_seed = int(os.environ.setdefault(_VARIABLE, drawn))


def pytest_report_header(config: pytest.Config) -> str:
    """Say how to have the same order again."""
    return f"order of tests: --order-seed {config.option.order_seed}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shuffle."""
    if seed := config.option.order_seed:
        items[:] = shuffled(items, seed, [config.rootpath / folder for folder in config.getini("testpaths")])


def shuffled(items: list[pytest.Item], seed: int, folders: list[Path]) -> list[pytest.Item]:
    """Return the tests with the files below some folders in another order, and those of a file too.

    Args:
        items: the tests, in pytest's order.
        seed: of the order; the same tests and seed give the same.
        folders: whose tests are shuffled; others come first, as they are.
    """
    files: dict[Path, list[pytest.Item]] = {}
    kept: list[pytest.Item] = []
    for item in items:
        inside = any(folder in item.path.parents for folder in folders)
        (files.setdefault(item.path, []) if inside else kept).append(item)
    draw = random.Random(seed)  # noqa: S311 - no secret
    names = sorted(files)
    draw.shuffle(names)
    for name in names:
        draw.shuffle(files[name])
    return [*kept, *(item for name in names for item in files[name])]
