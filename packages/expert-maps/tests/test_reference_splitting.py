# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The split over the copies: the compiled flows level the ranks as trying all sets of ranks does."""

from __future__ import annotations

import numpy as np
import pytest
from reference_cases import cases

from expert_maps import Placement, split_replicas
from expert_maps.reference.packing import pack
from expert_maps.reference.splitting import level_ranks


def test_the_split_is_as_level_as_that_of_the_twin() -> None:
    uneven = 0
    for case in cases(400, 61, experts=12, ranks=5):
        layer = case.layer()
        pack(layer)
        # Another load than the one that was packed for: some ranks cannot be level.
        load = case.rng.permutation(case.weight) * case.rng.lognormal(size=layer.num_experts)
        flat = np.array([[expert for slots in layer.slots for expert in slots]])
        placement = Placement(
            flat, layer.num_ranks, slots_per_rank=np.array(layer.capacity), allow_uneven=True
        )
        found = split_replicas(placement, load[None])
        expected = level_ranks(load.tolist(), layer.holders, layer.num_ranks)
        assert found.rank_load[0] == pytest.approx(expected, rel=1e-9, abs=1e-12 * load.sum()), case
        assert found.lower_bound[0] == pytest.approx(max(expected), rel=1e-9)
        assert np.allclose(found.weights.sum(axis=2), 1)
        assert (found.weights >= 0).all()
        uneven += max(expected) > load.sum() / layer.num_ranks * 1.01
    assert uneven > 100


def test_the_twin_settles_the_hottest_ranks_first() -> None:
    # Expert 0 is on rank 0 alone; what is left is shared by ranks 1 and 2 as far as expert 1 can go.
    assert level_ranks([6.0, 2.0, 1.0], [[0], [0, 1], [1, 2]], 3) == [6.0, 2.0, 1.0]
    assert level_ranks([1.0, 4.0, 1.0], [[0], [0, 1, 2], [2]], 3) == [2.0, 2.0, 2.0]
    assert level_ranks([0.0, 0.0], [[0], [1]], 2) == [0.0, 0.0]
