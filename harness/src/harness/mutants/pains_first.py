# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Reports 1 to 24: maps, layouts, layers, choices, loads; `pains` has the others and the table."""

from __future__ import annotations

from harness.mutants import bounds, gate, library, native
from harness.mutants.mutant import Mutant

_S = "packages/expert-maps/src/expert_maps/"
_T = "packages/expert-maps/tests/test_"
_P = "packages/vllm-ascend-moe/src/vllm_ascend_moe/"
_U = "packages/vllm-ascend-moe/tests/test_"
_H = "harness/src/harness/accuracy/"
_V = "harness/meta_tests/test_accuracy_"


def core(what: str, file: str, before: str, after: str, test: str) -> Mutant:
    """Return a fault of the library, by the names of its file and test."""
    return Mutant(what, f"{_S}{file}.py", before, after, _T + test)


def plugin(what: str, file: str, before: str, after: str, test: str) -> Mutant:
    """Return a fault of the plugin."""
    return Mutant(what, f"{_P}{file}.py", before, after, _U + test)


def gate_fault(what: str, file: str, before: str, after: str, test: str) -> Mutant:
    """Return a fault of the accuracy gate."""
    return Mutant(what, f"{_H}{file}.py", before, after, _V + test)


KNOWN = {
    mutant.what: mutant for mutant in (*native.MUTANTS, *bounds.MUTANTS, *library.MUTANTS, *gate.MUTANTS)
}

FIRST: tuple[tuple[str, Mutant | str], ...] = (
    ("the last rank indexes experts that do not exist", KNOWN["ring goes forwards"]),
    (
        "expert map and log2phy have different lengths",
        plugin(
            "log2phy has the length of the slots",
            "eplb",
            "log2phy=None if log2phy is None else _tensor(log2phy)",
            "log2phy=None if log2phy is None else _tensor(np.resize(log2phy, placement.num_physical_experts))",
            "eplb.py::test_on_every_rank_each_expert_is_reachable",
        ),
    ),
    (
        "ids are drawn from physical experts, not from logical ones",
        plugin(
            "an id of no logical expert is mapped",
            "npu_ops/ops/map_and_record",
            "    if stopped >= 0:",
            "    if False:",
            "map_and_record.py::test_what_does_not_exist_is_named_and_nothing_past_the_end_is_written",
        ),
    ),
    (
        "slots hold other weights than the placement says",
        plugin(
            "slots are not compared with their experts after a move",
            "backends/moving",
            "wrong = np.flatnonzero(experts[layer, row] != found)",
            "wrong = np.flatnonzero(found != found)",
            "moving.py::test_after_a_rearrangement_a_slot_with_other_weights_is_named",
        ),
    ),
    (
        "two modules built two maps",
        plugin(
            "ranks with different values agree",
            "core/agreement",
            "if len({value for value, _ in by_value}) > 1:",
            "if False:",
            "agreement.py::test_ranks_are_grouped_by_what_they_have",
        ),
    ),
    ("an expert stands twice on a rank", KNOWN["an expert twice on a rank passes"]),
    (
        "a refused plan still changes what is served",
        plugin(
            "without a plan every slot gets expert 0",
            "backends/one_plan",
            "rows = old.clone() if rows is None else rows",
            "rows = torch.zeros_like(old) if rows is None else rows",
            "ascend_planning.py::test_without_a_plan_nothing_moves_and_it_is_said",
        ),
    ),
    (
        "counts that do not divide",
        core(
            "redundancy that does not divide passes",
            "counts",
            "if num_redundant_experts and total % ep_size:",
            "if False:",
            "layouts.py::test_redundancy_that_does_not_divide_names_the_nearest_that_does",
        ),
    ),
    (
        "the draft layer is missing from the file",
        plugin(
            "the layer after the file's last is refused",
            "eplb",
            "if layer is not None and layer > placement.num_layers:",
            "if layer is not None and layer >= placement.num_layers:",
            "eplb.py::test_the_draft_layer_gets_the_default_placement_with_the_files_slots",
        ),
    ),
    (
        "pipeline stages read the wrong rows",
        plugin(
            "every stage begins at the first row",
            "backends/ranks",
            "return sum(counts[: wrapping.call(table.PP_GROUP).rank_in_group]), num_layers, sum(counts)",
            "return 0, num_layers, sum(counts)",
            "ranks.py::test_a_stage_takes_the_rows_after_those_before_it",
        ),
    ),
    (
        "dense layers are counted as MoE",
        core(
            "layers before the first MoE layer count",
            "models/rules",
            "return [layer for layer in range(first, count) if (layer - origin) % frequency == 0], words",
            "return [layer for layer in range(count) if (layer - origin) % frequency == 0], words",
            "models.py::test_moe_layers_by_each_rule",
        ),
    ),
    (
        "map and configured redundancy disagree",
        plugin(
            "a configured redundancy that contradicts the map passes",
            "_served_map",
            "if num_redundant_experts not in {0, placement.num_redundant_experts}:",
            "if False:",
            "eplb.py::test_a_file_that_contradicts_the_settings_is_an_error",
        ),
    ),
    (
        "paths: bare names, missing folders, bad JSON",
        Mutant(
            "where a bare name was looked for is not said",
            f"{_S}files.py",
            'return text if os.path.dirname(text) else f"{text} (in {Path.cwd()})"  # noqa: PTH120 - keeps "./"',
            "return text",
            f"{_T}files.py::test_of_a_bare_name_it_is_said_where_it_was_looked_for",
        ),
    ),
    (
        "ranks have unequally many slots",
        plugin(
            "uneven ranks pass where they are not served",
            "core/sources",
            "        if placement.is_even:",
            "        if True:",
            "ascend_checks.py::test_ranks_of_uneven_sizes_are_refused",
        ),
    ),
    ("shared experts are mixed into the placement", KNOWN["all ranks get the first shared expert"]),
    ("one replica takes all tokens", KNOWN["all ranks take the first of two replicas"]),
    (
        "a choice by rank where ranks must agree",
        plugin(
            "ranks that must agree may choose by rank",
            "core/slot_rule",
            "check_ranks_agree(self.choice, placement, ranks_must_agree=self.ranks_must_agree)",
            "check_ranks_agree(self.choice, placement, ranks_must_agree=False)",
            "replicas.py::test_where_ranks_must_agree_a_choice_by_rank_is_refused",
        ),
    ),
    (
        "a path skips log2phy",
        plugin(
            "ids are not mapped",
            "backends/ascend/choosing",
            "    return table[turn[:, None], ids.long()].to(ids.dtype)",
            "    return ids",
            "ascend_choosing.py::test_every_entry_is_computed_once_by_a_slot_of_its_expert",
        ),
    ),
    (
        "load collection overwrites memory that is in use",
        plugin(
            "the load that is remembered is the one that is cleared",
            "backends/ascend/recording",
            "return load.sum(dim=1) if load.dim() > self._experts.dim() else load.clone()",
            "return load.sum(dim=1) if load.dim() > self._experts.dim() else load",
            "ascend_recording.py::test_every_step_is_a_row_whatever_is_cleared_and_moved",
        ),
    ),
    (
        "EPLB is on and has no effect",
        gate_fault(
            "a dynamic arm in which nothing moved passes",
            "criteria",
            "(bool(after.dynamic) and not after.rearrangements,",
            "(False,",
            "verdict.py::test_a_dynamic_arm_must_have_moved",
        ),
    ),
    (
        "scales of quantised experts stay behind",
        plugin(
            "only what is moved is compared",
            "backends/moving",
            "return list(slot_tensors(module, model.num_local_physical_experts))",
            "return moved",
            "moving.py::test_scales_that_stay_behind_stop_the_start",
        ),
    ),
    (
        "loads are gathered wrongly",
        plugin(
            "slots' tokens are added to other experts",
            "backends/ascend/recording",
            "load.scatter_add_(1, self._experts, by_rank.flatten(1).long())",
            "load.scatter_add_(1, self._experts, by_rank.flatten(1).flip(1).long())",
            "ascend_recording.py::test_every_step_is_a_row_whatever_is_cleared_and_moved",
        ),
    ),
    (
        "padding, dummy and warm-up tokens are counted",
        plugin(
            "a forward that serves nobody is counted",
            "backends/ascend/recording",
            "told[-1] = 0 if self._is_dummy else 1",
            "told[-1] = 1",
            "ascend_recording.py::test_every_step_is_a_row_whatever_is_cleared_and_moved",
        ),
    ),
    (
        "prefill and decode differ",
        plugin(
            "a phase that ranks cannot agree on is served",
            "backends/ascend/checks",
            'if settings.load_collection_phase != "all" and not release.agrees_on_stage:',
            "if False:",
            "ascend_checks.py::test_a_phase_that_ranks_tell_each_by_itself_is_refused",
        ),
    ),
)
"""What was reported, and the fault that stands for it."""
