# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Faults of the other objectives: what a batch activates, its bound and search, and copies by layer."""

from __future__ import annotations

from harness.mutants.mutant import Mutant

_S = "packages/expert-maps/src/expert_maps/"
_T = "packages/expert-maps/tests/test_"

MUTANTS = (
    Mutant(
        "a copy is as active as an expert without copies",
        f"{_S}activation.py",
        "np.log1p(-chance[:, None] / copies)",
        "np.log1p(-chance[:, None] / copies**0)",
        f"{_T}activated.py::test_chances_equal_the_formula",
    ),
    Mutant(
        "the bound on activated slots is above what can be reached",
        f"{_S}policies/activated.py",
        "return found is None or found[1] > limit * num_ranks",
        "return found is None or found[1] * 1.02 > limit * num_ranks",
        f"{_T}activated.py::test_every_part_equals_its_twin",
    ),
    Mutant(
        "the search by activated slots never changes counts",
        f"{_S}policies/activated.py",
        "if not (_swap(state, rank, limit) or _recount(state, rank, limit)):",
        "if not _swap(state, rank, limit):",
        f"{_T}activated.py::test_every_part_equals_its_twin",
    ),
    Mutant(
        "a bound on activated slots above its plan is repaired",
        f"{_S}by_activation.py",
        "    if wrong.size:",
        "    if False:",
        f"{_T}activated.py::test_a_bound_above_its_plan_is_an_error",
    ),
    Mutant(
        "slots are spent on layers that gain nothing",
        f"{_S}budgeting.py",
        "left = int(np.argmax(tables[-1] <= tables[-1][units]))",
        "left = units",
        f"{_T}per_layer.py::test_of_equal_ways_the_one_with_fewest_slots_is_taken",
    ),
    Mutant(
        "only equal slots are planned when copies are given by layer",
        f"{_S}per_layer.py",
        "            costs[:] = self._mean[:, None]\n",
        "            pass\n",
        f"{_T}per_layer.py::test_layers_that_need_copies_get_them",
    ),
)
