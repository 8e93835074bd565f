# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A trace replayed under placements and policies: what EPLB would have gained, and what its moves would have cost."""

from __future__ import annotations

from expert_maps.simulation.replay import Run, replay
from expert_maps.simulation.saving import as_parquet, row_of
from expert_maps.simulation.settings import OFF, Costs, Setting, sweep
from expert_maps.simulation.sweeping import simulate
from expert_maps.simulation.transfers import transfer_rounds

__all__ = [
    "OFF",
    "Costs",
    "Run",
    "Setting",
    "as_parquet",
    "replay",
    "row_of",
    "simulate",
    "sweep",
    "transfer_rounds",
]
