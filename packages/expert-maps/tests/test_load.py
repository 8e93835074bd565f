# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

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


def test_it_is_an_array_to_numpy() -> None:
    numbers = np.arange(24).reshape(2, 3, 4)
    load = ExpertLoad(numbers)
    assert (load.shape, load.ndim, load.dtype, len(load)) == ((2, 3, 4), 3, np.dtype(np.float64), 2)
    assert np.asarray(load) is load.counts
    assert np.asarray(load, dtype=np.float64) is load.counts
    assert load.__array__(np.float64, copy=False) is load.counts
    for copied in (np.array(load), load.__array__(copy=True)):
        copied[...] = -1  # is the caller's
        np.testing.assert_array_equal(load.counts, numbers)
    whole = np.asarray(load, dtype=np.int64)
    assert whole.dtype == np.int64
    np.testing.assert_array_equal(whole, numbers)
    with pytest.raises(ValueError, match="no copy is allowed, and dtype is int64"):
        load.__array__(np.int64, copy=False)
    assert np.sum(load) == numbers.sum()
    np.testing.assert_array_equal(np.max(load, axis=2), numbers.max(axis=2))
    np.testing.assert_array_equal(np.stack([load, load]), [numbers, numbers])
    np.testing.assert_array_equal(np.add(load, 1), numbers + 1)
    np.testing.assert_array_equal(ExpertLoad(load), numbers)


@pytest.mark.parametrize("key", [0, -1, slice(1), (0, 1), (slice(None), [0, 2]), ([0, 1], 1), ..., (0, 1, 2)])
def test_indexing_and_iteration_give_what_the_array_has_read_only(key: Any) -> None:  # noqa: ANN401 - NumPy's
    numbers = np.arange(24.0).reshape(2, 3, 4)
    load = ExpertLoad(numbers)
    np.testing.assert_array_equal(load[key], numbers[key])
    assert load.counts.flags.c_contiguous
    steps = list(load)
    np.testing.assert_array_equal(steps, numbers)
    for array in (load[key], *steps):
        if isinstance(array, np.ndarray):
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0
    with pytest.raises(IndexError):
        load[2]


def test_loads_are_equal_where_every_number_is() -> None:
    load = ExpertLoad([[1, 2], [3, 4]])
    same = ExpertLoad(np.array([[[1.0, 2], [3, 4]]], order="F"))
    assert load == same
    assert hash(load) == hash(same)
    assert hash(ExpertLoad([[0.0, 1]])) == hash(ExpertLoad([[-0.0, 1]]))
    assert ExpertLoad([[0.0, 1]]) == ExpertLoad([[-0.0, 1]])
    for other in (
        ExpertLoad([[1, 2], [3, 5]]),
        ExpertLoad([[1, 2]]),
        ExpertLoad([[[1, 2], [3, 4]]] * 2),
        "load",
    ):
        assert load != other
    # Beside an array it is an array.
    beside: Any = load == np.array([[1, 0], [3, 4]])
    assert beside.tolist() == [[[True, False], [True, True]]]
    assert repr(load) == "ExpertLoad(num_steps=1, num_layers=2, num_experts=2)"
