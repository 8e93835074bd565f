# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Faults of the compiled planner: bounds, two slots a rank, nodes, windows, and what is said of the answer."""

from __future__ import annotations

from harness.mutants.mutant import Mutant

_C = "packages/expert-maps/native/"
_T = "packages/expert-maps/tests/test_"

# what, C file, text before, text after, test, whether in the short list
_LIST: tuple[tuple[str, str, str, str, str, bool], ...] = (
    (
        "the mean bound is a hundredth too high",
        "bound",
        "return total / p->num_ranks;",
        "return 1.01 * total / p->num_ranks;",
        "reference_descent.py::test_the_mean_is_the_twins",
        True,
    ),
    (
        "the bound from single copies has one copy too many",
        "bound",
        "if ((k + 1) * low + companions > bound) bound = (k + 1) * low + companions;",
        "if ((k + 2) * low + companions > bound) bound = (k + 2) * low + companions;",
        "reference_descent.py::test_bounds_are_below_all_placements",
        True,
    ),
    (
        "an expert is split below a size by one copy less",
        "bound",
        "const double copies = ceil(p->weight[e] / size * (1 - 1e-12));",
        "const double copies = floor(p->weight[e] / size * (1 - 1e-12));",
        "reference_descent.py::test_the_bound_from_single_copies_is_the_twins",
        False,
    ),
    (
        "the bound counts one companion too many",
        "bound",
        "i < slots - k - 1",
        "i < slots - k && i < p->num_experts",
        "reference_descent.py::test_bounds_are_below_all_placements",
        False,
    ),
    (
        "the search for counts of two slots is off",
        "two_slots",
        "for (int tries = 0; tries < 64 && reached > goal && moves > 0; tries++) {",
        "for (int tries = 0; tries < 0 && reached > goal && moves > 0; tries++) {",
        "reference_two_slots.py::test_the_search_for_counts_is_the_twins",
        True,
    ),
    (
        "a smaller copy is rounded to the unsafe side in the search",
        "two_slots",
        "if (smaller && bin < place) bin++;",
        "",
        "reference_two_slots.py::test_the_search_for_counts_is_the_twins",
        False,
    ),
    (
        "an expert may give up a copy that it needs",
        "two_slots",
        "if (c > 1 && p->weight[e] / (c - 1) <= s->target)",
        "if (c > 1)",
        "reference_two_slots.py::test_the_search_for_counts_is_the_twins",
        False,
    ),
    (
        "the bound for two slots calls everything impossible",
        "two_slot_bound",
        "if (value < -1e-9 * p->num_slots) return 1;",
        "return 1;",
        "reference_two_slots.py::test_the_bound_is_below_all_counts_and_tight_for_most",
        True,
    ),
    (
        "the bound for two slots proves nothing",
        "two_slot_bound",
        "if (value < -1e-9 * p->num_slots) return 1;",
        "",
        "reference_two_slots.py::test_the_bound_is_below_all_counts_and_tight_for_most",
        False,
    ),
    (
        "the bound for two slots rounds to the unsafe side",
        "two_slot_bound",
        "size <= target / 2 ? floor(size * scale) : ceil((target - size) * scale)",
        "size <= target / 2 ? ceil(size * scale) : floor((target - size) * scale)",
        "reference_two_slots.py::test_the_bound_is_the_twins",
        True,
    ),
    (
        "the bound for two slots forgets the tail of copies",
        "two_slot_bound",
        "tail[e] = most > CHOICES ? choice(p->weight[e], most, target) : (Choice){0, 0};",
        "tail[e] = (Choice){0, 0};",
        "reference_two_slots.py::test_more_copies_than_are_looked_at_one_by_one_are_not_forgotten",
        True,
    ),
    (
        "the search for nodes is off",
        "nodes",
        "    visit(&s, 0, 0);\n",
        "",
        "reference_plan.py::test_plans_are_the_references",
        False,
    ),
    (
        "a node gets more groups than it has room for",
        "nodes",
        "if (same || s->fill[node] == s->room || sum >= s->best_value) continue;",
        "if (same || sum >= s->best_value) continue;",
        "reference_plan.py::test_plans_are_the_references",
        False,
    ),
    (
        "the bound of the nodes is what was found",
        "nodes",
        "if (s.visits > 0 && s.best_value > s.enough) return s.best_value;",
        "return s.best_value;",
        "reference_plan.py::test_plans_are_the_references",
        False,
    ),
    (
        "a loose tolerance is aimed at as it stands",
        "plan",
        "tolerance < 0.005 ? tolerance : 0.9 * tolerance;",
        "tolerance;",
        "reference_plan.py::test_plans_are_the_references",
        False,
    ),
    (
        "the first target is the last",
        "plan",
        "for (double gap = 0.01; gap > 2 * tolerance; gap /= 2) {",
        "for (double gap = 0.01; 0; gap /= 2) {",
        "reference_plan.py::test_plans_are_the_references",
        False,
    ),
    (
        "windows count by the power of 4 in place of 32",
        "windows",
        "return x16 * x16;",
        "return x4;",
        "reference_windows.py::test_plans_for_windows_are_the_references",
        True,
    ),
    (
        "a window counts without its root",
        "windows",
        "return sqrtf(sqrtf(sqrtf(sqrtf(sqrtf(sum)))));",
        "return sum;",
        "reference_windows.py::test_plans_for_windows_are_the_references",
        False,
    ),
    (
        "swaps are passed over that the slopes do not rule out",
        "windows",
        "if (gained - p->rise[j] - rounding >= best->change",
        "if (gained - p->rise[j] >= 10 * best->change",
        "reference_windows.py::test_plans_for_windows_are_the_references",
        False,
    ),
    (
        "every window counts as much, whatever its tokens",
        "over_time",
        "p->tokens[w] = (float)mean;",
        "p->tokens[w] = mean > 0;",
        "reference_windows.py::test_plans_for_windows_are_the_references",
        False,
    ),
    (
        "no bound is doubted",
        "plan",
        "    doubt_bounds(problem);\n",
        "",
        "reference_check.py::test_a_bound_above_the_plan_is_doubted",
        False,
    ),
    (
        "an answer that is no placement is returned",
        "plan",
        "if (!is_placement(problem, last)) return BROKEN;",
        "(void)last;",
        "reference_check.py::test_what_is_no_placement_is_refused",
        False,
    ),
    (
        "an expert counts once on each rank",
        "plan",
        "missing -= last[e] < base;",
        "missing -= last[e] < base + r;",
        "reference_check.py::test_a_placement_passes_and_bounds_below_it_stay",
        False,
    ),
)

MUTANTS = tuple(
    Mutant(what, f"{_C}{file}.c", before, after, _T + test, short)
    for what, file, before, after, test, short in _LIST
)
