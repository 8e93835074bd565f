# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Faults of schedules of migrations, and of `rescale`."""

from __future__ import annotations

from harness.mutants.mutant import Mutant

_P = "packages/expert-maps/"
_S = f"{_P}src/expert_maps/"
_T = f"{_P}tests/test_"

MUTANTS = (
    Mutant(
        "an expert's last copy is replaced before another is there",
        f"{_S}migration/needs.py",
        "    if not kept and not settled:",
        "    if False:",
        f"{_T}migration.py::test_swaps_without_a_copy_to_spare_form_cycles",
        short=True,
    ),
    Mutant(
        "an expert comes from any rank, not from the nearest",
        f"{_S}migration/need.py",
        "    if holders & near:",
        "    if False:",
        f"{_T}migration.py::test_a_node_gets_an_expert_once_and_hands_it_on",
    ),
    Mutant(
        "the bound of rounds takes copies to grow more slowly than they do",
        f"{_S}migration/bound.py",
        "least = max(least, (times - 1).bit_length())",
        "least = max(least, times.bit_length())",
        f"{_T}migration.py::test_thousands_of_random_pairs_and_how_near_the_bound_they_are",
    ),
    Mutant(
        "what is on the rank already stays in its old slot",
        f"{_S}migration/scheduling.py",
        "np.stack([layers, found % max(now.shape[1], 1), slots], axis=1)",
        "np.stack([layers, slots, slots], axis=1)",
        f"{_T}migration.py::test_what_is_on_the_rank_already_is_not_sent",
    ),
    Mutant(
        "rescale seeks as long in each of many layers as in one",
        f"{_P}native/replan.c",
        "problem->effort > 0 && problem->effort < MOST_EFFORT ? problem->effort : MOST_EFFORT",
        "MOST_EFFORT",
        f"{_T}rescale.py::test_many_layers_are_searched_less_and_equal_calls_give_equal_plans",
    ),
    Mutant(
        "a rescale that changes nothing evens ranks out",
        f"{_S}elastic.py",
        "        start.max_moves == 0\n        and cluster.allow_uneven",
        "        start.max_moves == 1\n        and cluster.allow_uneven",
        f"{_T}rescale.py::test_a_rescale_that_changes_nothing_moves_nothing_also_where_ranks_are_uneven",
    ),
)
