# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""From one placement to another: who sends what to whom, round after round."""

from expert_maps.migration.result import Schedule
from expert_maps.migration.scheduling import schedule

__all__ = ["Schedule", "schedule"]
