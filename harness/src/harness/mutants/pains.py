# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What users and developers of EPLB have reported, each planted as a fault: the table report → bug → catcher."""

from __future__ import annotations

from harness.mutants.mutant import Mutant
from harness.mutants.pains_first import FIRST, KNOWN, core, gate_fault, plugin

PAINS: tuple[tuple[str, Mutant | str], ...] = (
    *FIRST,
    (
        "balancedness is logged wrongly",
        plugin(
            "balancedness is the peak over the mean",
            "backends/ascend/recording",
            "mean / peak if peak else 0.0,",
            "peak / mean if mean else 0.0,",
            "ascend_recording.py::test_balancedness_is_said_as_vllm_says_it",
        ),
    ),
    (
        "ranks wait for one that has failed",
        plugin(
            "a rank's error is not told to the others",
            "core/agreement",
            "    if failed:",
            "    if False:",
            "agreement.py::test_errors_come_first_and_all_of_them_are_told",
        ),
    ),
    (
        "out of memory by redundant experts, of which nobody spoke",
        plugin(
            "the bytes of redundant experts are those of all",
            "backends/moving",
            "return int(size * model.num_redundant_experts / model.num_physical_experts)",
            "return int(size)",
            "moving.py::test_lists_that_are_moved_are_what_is_compared",
        ),
    ),
    (
        "a balanced server rearranges, and stalls",
        plugin(
            "layers are moved whatever it costs",
            "core/gain",
            "chosen = chosen & (gain > cost)",
            "chosen = chosen & (gain > -1e30)",
            "gain.py::test_layers_that_pay_are_moved",
        ),
    ),
    (
        "a restart forgets the recorded load",
        plugin(
            "a record begins anew at each write",
            "core/recorder",
            "rows = [*self._rows, *self._fresh]",
            "rows = [*self._fresh]",
            "recorder.py::test_a_file_that_is_there_is_continued",
        ),
    ),
    (
        "experts are lost with a rank",
        core(
            "a failed rank is kept",
            "elastic",
            "for rank in range(current.ep_size) if rank not in failed]",
            "for rank in range(current.ep_size - len(failed))]",
            "rescale.py::test_every_expert_survives_and_no_more_moves_than_must",
        ),
    ),
    (
        "nobody says that EPLB does not pay with few experts a rank or short prompts",
        core(
            "few experts a rank are no reason",
            "advice_rules",
            'if served.phase == "decode" and own <= _FEW_EXPERTS:',
            "if False:",
            "advice.py::test_known_rules_are_applied_and_named",
        ),
    ),
    (
        "the plug-in list turns off what is needed, in silence",
        plugin(
            "what the list of plugins turns off is no problem",
            "doctor",
            "needed = [name for name in (ENTRY_POINT, *platforms) if name in off]",
            "needed = [name for name in (ENTRY_POINT, *platforms) if name not in off and name in off]",
            "doctor.py::test_a_list_without_the_platform_turns_that_off",
        ),
    ),
    ("accuracy gates fail on improvement", KNOWN["gains count as losses"]),
    (
        "a load is read wrongly without a word",
        core(
            "dense layers with tokens are left out",
            "formats/loads/choosing",
            "    busy = [label for label in dense if counts.values[:, labels.index(label)].any()]",
            "    busy: list[int] = []",
            "load_forms.py::test_sglang_layers_by_the_model",
        ),
    ),
    (
        "MoE layers of interleaved models are counted wrongly",
        core(
            "every n-th layer is counted from another",
            "models/rules",
            "if (layer - remainder) % step == 0]",
            "if (layer - remainder - 1) % step == 0]",
            "models.py::test_moe_layers_by_each_rule",
        ),
    ),
    (
        "a plan is written over its load",
        core(
            "an output may be an input",
            "cli/writing",
            "if any(_is_same(path, each) for each in paths):",
            "if False:",
            "cli_plan.py::test_an_input_is_never_written_over_by_whatever_name",
        ),
    ),
    (
        "groups that cannot stay on nodes are ignored in silence",
        core(
            "groups need not divide by the nodes",
            "counts",
            "    if cluster.num_groups % cluster.num_nodes:",
            "    if False:",
            "planning.py::test_groups_that_do_not_divide_by_the_nodes_are_an_error_that_names_both",
        ),
    ),
    (
        "no threshold for a rearrangement",
        plugin(
            "the least gain is not asked for",
            "core/gain",
            "if share < self.min_gain:",
            "if False:",
            "gain.py::test_the_reason_says_what_was_found_and_the_limit",
        ),
    ),
    (
        "nobody says whether EPLB is worth it",
        core(
            "a few steps are enough to advise",
            "advice",
            "if trace.num_steps < LEAST_STEPS or not trace.total.any():",
            "if not trace.total.any():",
            "advice.py::test_known_answers",
        ),
    ),
    ("new weights into a running EPLB server", "only a vLLM loads anew: the session vllm shows it"),
    ("the copy on the own rank is not preferred", KNOWN["a rank's own copy is not preferred"]),
    (
        "redundancy that divides is left to users",
        core(
            "the least redundancy is one rank's more",
            "counts",
            'return -experts % as_count("ep_size", ep_size, 1, error=LayoutError)',
            'return ep_size + -experts % as_count("ep_size", ep_size, 1, error=LayoutError)',
            "planning.py::test_without_either_the_least_that_divides_is_planned",
        ),
    ),
    (
        "two arms that both fail are no worse",
        gate_fault(
            "a baseline that answers by chance is sound",
            "criteria",
            "    if low <= expected.chance:",
            "    if False:",
            "verdict.py::test_a_baseline_that_does_not_know_its_task_decides_nothing",
        ),
    ),
    (
        "texts in 16 bits differ as greedy runs do",
        gate_fault(
            "texts in 16 bits need no repeat of the baseline",
            "criteria",
            '    if limits.lacks_floor("identical", floor):',
            "    if False:",
            "verdict.py::test_texts_in_16_bits_are_judged_beside_the_baseline_itself",
        ),
    ),
    ("load metrics over HTTP", "a wish, not a fault: nothing to plant"),
    (
        "weights planned for another map are taken",
        core(
            "weights of another map pass",
            "formats/weights",
            "        if self.digest != plain.digest:",
            "        if False:",
            "weights_file.py::test_weights_of_another_map_are_refused_with_both_digests",
        ),
    ),
    (
        "two servers with one record lose rows",
        plugin(
            "a record's lock is shared",
            "core/record_file",
            "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)",
            "fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)",
            "record_file.py::test_a_link_to_a_record_is_the_same_record",
        ),
    ),
    ("groups on nodes are not placed as well as they can be", KNOWN["the search for nodes is off"]),
    (
        "a rescale with many slots a rank takes minutes",
        "a time, which no test measures: the session planner_bench does",
    ),
)
"""What was reported, and the fault that stands for it, or why there is none; in the order of the reports."""

MUTANTS = tuple(fault for _, fault in PAINS if isinstance(fault, Mutant) and fault.what not in KNOWN)


def table() -> str:
    """Return a line for each report: its number, what it was, the bug and its catcher."""
    lines = []
    for number, (report, fault) in enumerate(PAINS, start=1):
        shown = f"{fault.what} -> {fault.test}" if isinstance(fault, Mutant) else f"none: {fault}"
        lines.append(f"{number:2} {report}: {shown}\n")
    return "".join(lines)
