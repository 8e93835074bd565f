# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Faults put into a copy of the project, one at a time, each with the test that must notice.

A test that stays green when the code it names is removed proves nothing. The lists are data: `native`, `bounds`, `library`, `gate`,
`objectives`, `migration` and `pains`.
"""

from __future__ import annotations

from harness.mutants import bounds, gate, library, migration, native, objectives, pains
from harness.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (
    *native.MUTANTS,
    *bounds.MUTANTS,
    *library.MUTANTS,
    *gate.MUTANTS,
    *objectives.MUTANTS,
    *migration.MUTANTS,
    *pains.MUTANTS,
)

__all__ = ["MUTANTS", "Mutant"]
