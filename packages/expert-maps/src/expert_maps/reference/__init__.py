# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The planner of the policy ``balanced`` once more, to be read: a function for each part, slow and right.

``docs/planner.md`` has the words and the sources. Each part is the twin of a C file in ``native/``, and the tests hold
both to the same answer. Read them in this order:

1. `layer`: what a layer is while it is planned, and the verbs that change it.
2. `counts` and `packing`: the first solution.
"""

from __future__ import annotations
