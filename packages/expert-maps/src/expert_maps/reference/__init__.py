# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The planner of the policy ``balanced`` once more, to be read: a function for each part, slow and right.

``docs/planner.md`` has the words and the sources. Each part is the twin of a C file in ``native/``, and the tests hold
both to the same answer on thousands of small problems. Read them in this order:

1. `layer`: what a layer is while it is planned, and the verbs that change it.
2. `counts` and `packing`: the first solution.
3. `descent` and `kicks`: make the hottest rank cooler; restarts.
4. `bounds`: what no placement can be below, and so when to stop; `exact`: of small layers, all placements.
5. `two_slots` and `two_slot_bound`: where all is in the counts.
6. `nodes` and `assignments`: which groups go where. `planner` puts all of these together.
7. `incremental`, `budget`, `relabelling`: from a placement in use, or on other ranks. `replanning` puts these together.
8. `windows`: a load of several steps.
9. `splitting`: how tokens are best split over the copies of a placement that is given.
10. `activated`: plans for decode, by the slots that a batch activates; `budgeting`: copies by layer. Their twins are NumPy, and
    ``docs/objectives.md`` has the words.

`policy` makes a policy of it: ``expert_maps.plan(load, ep_size=8, policy="reference")``.
"""

from __future__ import annotations
