# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Files of replica weights, each for one map."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from strategies import placements
from typer.testing import CliRunner

from expert_maps import (
    ExpertMapsError,
    FormatError,
    Placement,
    plan,
    read_weights,
    split_replicas,
    write_placement,
    write_weights,
)
from expert_maps.cli.app import app
from expert_maps.files import Source
from expert_maps.formats.weights import content_of, read_stored

if TYPE_CHECKING:
    from pathlib import Path

    from expert_maps import PlanResult, ReplicaWeights

LOAD = np.random.default_rng(0).lognormal(sigma=1.5, size=(2, 8))


def planned() -> PlanResult:
    return plan(LOAD, ep_size=4, num_redundant_experts=8)


def split() -> ReplicaWeights:
    return split_replicas(planned(), LOAD[::-1])


@pytest.mark.parametrize("suffix", [".npz", ".json"])
@given(placement=placements())
def test_what_is_written_is_read_to_the_last_bit(suffix: str, placement: Placement) -> None:
    load = np.random.default_rng(0).lognormal(size=placement.replica_count.shape)
    found = split_replicas(placement, load)
    source = Source(f"weights{suffix}", content_of(found, suffix))
    again = read_weights(source, placement)
    assert again.dtype == np.float64
    assert not again.flags.writeable
    np.testing.assert_array_equal(again, found.weights)
    assert read_stored(source).digest == placement.digest


@pytest.mark.parametrize("name", ["weights.npz", "weights.json"])
def test_files_and_their_content_not_their_names_decide(tmp_path: Path, name: str) -> None:
    write_weights(split(), tmp_path / name)
    (tmp_path / name).rename(tmp_path / "renamed")
    np.testing.assert_array_equal(read_weights(tmp_path / "renamed", planned()), split().weights)
    assert repr(read_stored(tmp_path / "renamed")).startswith(
        f"StoredWeights(shape=[2, 8, {split().weights.shape[2]}], digest={planned().placement.digest[:12]}, "
    )


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_weights_of_another_map_are_refused_with_both_digests(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    write_weights(split(), path)
    placement = planned().placement
    # The same counts and shapes: only the digest tells.
    other = Placement(np.roll(placement.physical_to_logical, 4, axis=1), 4, num_logical_experts=8)
    assert other.logical_to_physical.shape == split().weights.shape
    message = (
        f"weights{suffix} holds weights for the map {placement.digest[:12]}; expected {other.digest[:12]}"
    )
    with pytest.raises(FormatError, match=message):
        read_weights(path, other)


def test_a_name_from_which_the_form_cannot_be_told_is_refused(tmp_path: Path) -> None:
    for name, why in (
        ("w.npy", "cannot say which map"),
        ("w", "ends in .npz or .json"),
        ("w.NPZ", "ends in .npz"),
    ):
        with pytest.raises(FormatError, match=why):
            write_weights(split(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def npz(**arrays: Any) -> bytes:  # noqa: ANN401 - what NumPy writes
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def changed_npz(**change: Any) -> bytes:  # noqa: ANN401 - what NumPy writes
    placement = planned().placement
    digest = np.frombuffer(bytes.fromhex(placement.digest), dtype=np.uint8)
    given_arrays = {"weights": split().weights, "digest": digest, "version": np.int64(1), **change}
    return npz(**{name: array for name, array in given_arrays.items() if array is not None})


def changed_json(**change: object) -> bytes:
    document = {**json.loads(content_of(split(), ".json")), **change}
    return json.dumps({key: value for key, value in document.items() if value is not None}).encode()


def bare() -> bytes:
    stream = io.BytesIO()
    np.save(stream, split().weights)
    return stream.getvalue()


def with_value(value: float) -> np.ndarray[Any, Any]:
    weights = split().weights.copy()
    weights[1, 2, 0] = value
    return weights


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bare(), r"a bare \.npy array, which does not say which map .*`expert-maps weights MAP LOAD"),
        (b"", "not valid JSON: the file is empty"),
        (b"\xff\xfe", "not UTF-8"),
        (b"PK\x03\x04 nothing", r"not a NumPy \.npz"),
        (b"[1]", "not a file of weights; expected an object with weights, digest, version"),
        (b'{"physical_to_logical": [[0]]}', "holds 'physical_to_logical'; expected replica weights"),
        (npz(load=np.ones((2, 8))), "holds 'load'; expected replica weights: weights, digest, version"),
        (npz(), "holds nothing; expected replica weights"),
        (changed_npz(more=np.ones(1)), "holds .*'more'; expected replica weights"),
        (changed_npz(digest=None), "holds 'weights', 'version'; expected"),
        (changed_npz(version=np.int64(2)), "version is 2; expected 1"),
        (changed_npz(version=np.ones(2, dtype=int)), r"version is int64 \[2\]; expected one integer"),
        (changed_npz(digest=np.zeros(31, dtype=np.uint8)), r"digest is uint8 \[31\]; expected uint8 \[32\]"),
        (changed_npz(weights=np.ones((2, 8))), r"weights have shape \[2, 8\]; expected \[L, E, X\]"),
        (changed_npz(weights=np.ones((2, 8, 1), dtype=bool)), "weights are bool"),
        (changed_npz(weights=np.ones((0, 8, 1))), r"weights have shape \[0, 8, 1\]"),
        (
            changed_npz(weights=np.ones((2, 8, 1))),
            r"weights are \[2, 8, 1\]; expected \[2, 8, \d\], as the map's",
        ),
        (changed_npz(weights=with_value(-0.5)), "layer 1, expert 2, copy 0 is -0.5; expected at least 0"),
        (changed_npz(weights=with_value(np.nan)), "layer 1, expert 2, copy 0 is nan; expected at least 0"),
        (changed_npz(weights=with_value(9.0)), r"layer 1, expert 2 sum to 9\S*; expected 1"),
        (
            changed_npz(weights=np.full(split().weights.shape, 1 / split().weights.shape[2])),
            "expected 0, because there is no such copy",
        ),
        (changed_json(version=True), "version is true; expected 1"),
        (changed_json(version="1"), r'version is "1"; expected 1'),
        (changed_json(digest="abc"), "digest is no SHA-256; expected 64 hexadecimal digits"),
        (changed_json(digest=7), "digest is no SHA-256"),
        (changed_json(weights=1), r"weights are 1; expected lists of numbers \[L, E, X\]"),
        (changed_json(weights=[]), r"weights have shape \[0\]; expected \[L, E, X\]"),
        (changed_json(weights=[[1], 2]), r"weights is ragged: 2 at \[1\]; expected 1 entries"),
        (changed_json(weights=[[[1], [1, 2]]]), r"ragged: 2 entries at \[0, 1\]; expected 1"),
        (changed_json(weights=[[["1"]]]), r"weights has '1' at \[0, 0, 0\], of type str"),
        (changed_json(weights=[[[True]]]), r"weights has True at \[0, 0, 0\], of type bool"),
        (changed_json(weights=[[[[1]]]]), r"weights have shape \[1, 1, 1, 1\]"),
        (
            changed_json(weights=[[[10**400]]]),
            "weights holds an integer of 1329 bits; expected numbers of 64 bits",
        ),
    ],
)
def test_what_is_no_file_of_these_weights_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "given"
    path.write_bytes(content)
    with pytest.raises(ExpertMapsError, match=message) as error:
        read_weights(path, planned())
    assert str(error.value).startswith(f"{path}")
    assert str(error.value).count(str(path)) == 1
    assert "\n" not in str(error.value)


def test_what_is_no_share_is_not_written(tmp_path: Path) -> None:
    wrong = dataclasses.replace(split(), weights=with_value(9.0))
    with pytest.raises(FormatError, match="replica weights: weights of layer 1, expert 2 sum to"):
        write_weights(wrong, tmp_path / "w.npz")
    assert not list(tmp_path.iterdir())


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"none\.npz: no such file"):
        read_weights(tmp_path / "none.npz", planned())


def test_the_command_line_writes_them_for_the_map_that_it_read(tmp_path: Path) -> None:
    write_placement(planned().placement, tmp_path / "map.json")
    np.save(tmp_path / "load.npy", LOAD[::-1])
    for name in ("weights.npz", "weights.json"):
        arguments = ["weights", "map.json", "load.npy", "--output", name]
        paths = [str(tmp_path / text) if "." in text else text for text in arguments]
        run = CliRunner().invoke(app, paths)
        assert run.exit_code == 0, run.output
        np.testing.assert_array_equal(read_weights(tmp_path / name, planned()), split().weights)
    paths[-1] = str(tmp_path / "weights.npy")
    run = CliRunner().invoke(app, paths)
    assert run.exit_code == 2
    assert not (tmp_path / "weights.npy").exists()
