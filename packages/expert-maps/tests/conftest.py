# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from hypothesis import settings

# A busy machine is no failure: how long things take is measured in benchmarks.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
