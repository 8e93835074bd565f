# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The emulation's packages are importable while these tests are collected, and hidden from all others."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine is no failure: how long things take is measured in benchmarks.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

PACKAGES = str(Path(__file__).parents[1])
sys.path.insert(0, PACKAGES)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Let no other test see a torch_npu: the functions under test are held by their modules."""
    if PACKAGES in sys.path:
        sys.path.remove(PACKAGES)
    for name in [
        name for name in sys.modules if name.split(".")[0] in {"torch_npu", "torchair", "fla_npu", "acl"}
    ]:
        del sys.modules[name]
