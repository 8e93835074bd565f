# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from expert_maps import ExpertLoad, LoadError


def test_two_axes_are_one_step() -> None:
    load = ExpertLoad([[1, 2], [3, 4]])
    assert (load.num_steps, load.num_layers, load.num_experts) == (1, 2, 2)
    assert load.total.tolist() == [[1, 2], [3, 4]]
    assert "num_steps=1" in repr(load)


def test_steps_are_summed_in_total_and_windows() -> None:
    load = ExpertLoad(np.arange(10).reshape(5, 1, 2))
    assert load.total.tolist() == [[20, 25]]
    assert load.windows(2).counts.tolist() == [[[2, 4]], [[10, 12]], [[8, 9]]]
    assert load.windows(99).counts.tolist() == [[[20, 25]]]
    with pytest.raises(LoadError, match="size is 0"):
        load.windows(0)


def test_peak_to_mean_of_an_idle_layer_is_one() -> None:
    assert ExpertLoad([[0, 0], [3, 1]]).peak_to_mean().tolist() == [1.0, 1.5]


def test_the_load_is_copied_and_read_only() -> None:
    array = np.ones((1, 2))
    load = ExpertLoad(array)
    array[:] = 5
    assert load.total.tolist() == [[1, 1]]
    with pytest.raises(ValueError, match="read-only"):
        load.counts[...] = 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1.0, 1e31])
def test_bad_values_name_layer_and_expert(value: float) -> None:
    array = np.ones((2, 3, 4))
    array[1, 2, 3] = value
    with pytest.raises(LoadError, match="load at step 1, layer 2, expert 3 is"):
        ExpertLoad(array)
    with pytest.raises(LoadError, match=r"load at layer 2, expert 3 is .* expected a number from 0"):
        ExpertLoad(array[1])
    array[0, 0, 0] = value
    with pytest.raises(LoadError, match="and 1 more"):
        ExpertLoad(array)


@pytest.mark.parametrize(
    "load",
    [[1, 2], [[[[1]]]], [[]], np.zeros((0, 3)), [["a"]], [[1], [1, 2]], [[1j]], [[True]], None, {"a": 1}],
)
def test_wrong_shapes_and_types_are_refused(load: object) -> None:
    with pytest.raises(LoadError, match="load "):
        ExpertLoad(load)  # type: ignore[arg-type]
