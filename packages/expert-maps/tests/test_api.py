# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The library as its users see it: names, values that do not change, results that say what they are."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import pickle
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import expert_maps
from expert_maps import (
    ExpertLoad,
    ExpertMapsError,
    Moves,
    Placement,
    PlanResult,
    ReplicaWeights,
    balancedness,
    evaluate,
    generate_placement,
    moves,
    over_steps,
    overall_balancedness,
    peak_to_mean,
    plan,
    rank_load,
    rescale,
    split_replicas,
    step_peaks,
)
from expert_maps.policies import load_planner

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[3]
LOAD = np.random.default_rng(0).lognormal(sigma=1.5, size=(3, 2, 16))


def planned(steps: int = 1, **options: Any) -> PlanResult:  # noqa: ANN401 - as `plan` has them
    return plan(LOAD[:steps], ep_size=4, num_redundant_experts=4, **options)


def changed() -> PlanResult:
    """A plan with moves."""
    return plan(LOAD[1], ep_size=4, current=planned(), max_moves=6)


# Names


def test_dir_shows_the_interface_alone() -> None:
    shown = dir(expert_maps)
    assert shown == sorted(expert_maps.__all__)
    assert not [name for name in shown if name.startswith("_") and name != "__version__"]
    for name in shown:
        assert getattr(expert_maps, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'read_lod'"):
        _ = expert_maps.read_lod
    everything: dict[str, object] = {}
    exec("from expert_maps import *", everything)  # noqa: S102 - what a notebook does
    assert set(expert_maps.__all__) <= set(everything)


def test_importing_and_planning_load_no_command_line_and_no_figures() -> None:
    code = (
        "import sys, numpy, expert_maps as m\n"
        "before = set(sys.modules)\n"
        "m.plan(numpy.ones((1, 8)), ep_size=4).summary()\n"
        "assert 'expert_maps.formats' not in before, 'readers are loaded when they are asked for'\n"
        "assert callable(m.read_load) and 'expert_maps.formats.loads' in sys.modules\n"
        "print(*sorted(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    assert not loaded & {"typer", "click", "rich", "yaml", "matplotlib", "torch", "vllm"}
    assert "expert_maps.plots" not in run.stdout.split()


def test_no_other_package_uses_a_private_name() -> None:
    if not (ROOT / "packages" / "vllm-ascend-moe").is_dir():
        pytest.skip("not in a checkout")
    private = re.compile(
        r"\bexpert_maps(?:\.\w+)*\._(?!_)\w+"
        r"|from expert_maps[\w.]* import (?:\((?:[^)]*[\s,])?|(?:[^\n#(]*[ ,])?)(?<!as )_(?!_)\w+"
    )
    assert private.search("from expert_maps import (\n    plan,\n    _rules,\n)")
    assert private.search("from expert_maps import plan, _library")
    assert private.search("from expert_maps.policies._mend import x")
    assert not private.search("expert_maps.__version__; from expert_maps import plan as _plan")
    packages = [path for path in (ROOT / "packages").iterdir() if path.name != "expert-maps"]
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for place in (*packages, ROOT / "harness", ROOT / "docs", ROOT / "noxfile.py")
        for path in ([place] if place.is_file() else sorted(place.rglob("*.py")))
        for match in private.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not found


def test_the_planner_has_a_public_home() -> None:
    assert load_planner().expert_maps_plan is not None


# Values that do not change


def values() -> dict[str, Any]:
    result = changed()
    return {
        "Placement": result.placement,
        "ExpertLoad": ExpertLoad(LOAD),
        "PlanResult": result,
        "ReplicaWeights": split_replicas(result, LOAD),
        "Moves": result.moves,
        "Evaluation": evaluate(result, LOAD),
    }


VALUES = values()
COPIES: dict[str, Callable[[Any], Any]] = {
    "itself": lambda value: value,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),  # noqa: S301 - made here
    "replace": lambda value: dataclasses.replace(
        value, **{field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    ),
}


def arrays_of(value: Any) -> dict[str, np.ndarray[Any, Any]]:  # noqa: ANN401 - any of the values
    """Return every array that a value shows, and those of what it holds."""
    found = {}
    for name in dir(type(value)) + [field.name for field in dataclasses.fields(value)]:
        if name.startswith("_"):
            continue
        shown = getattr(value, name)
        if isinstance(shown, np.ndarray):
            found[name] = shown
        elif dataclasses.is_dataclass(shown) and not isinstance(shown, type):
            found |= {f"{name}.{inner}": array for inner, array in arrays_of(shown).items()}
    return found


FRESH = {"max_rank_load", "peak_to_mean", "gap"}  # computed anew each time


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", VALUES)
def test_arrays_stay_read_only_and_copies_are_equal(name: str, way: str) -> None:
    value = VALUES[name]
    other = COPIES[way](value)
    assert other == value
    assert hash(other) == hash(value)
    assert repr(other) == repr(value)
    arrays = arrays_of(other)
    assert arrays
    for where, array in arrays.items():
        if where.split(".")[-1] not in FRESH:
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        other.placement = None


def test_derived_maps_are_read_only() -> None:
    placement = planned().placement
    weights = split_replicas(placement, LOAD)
    for array in (
        placement.global_expert_map(),
        placement.global_expert_map(1),
        placement.expert_map(0, 1),
        placement.global_log2phy(),
        placement.global_log2phy(0, prefer_own_rank=True),
        placement.log2phy(0, 1),
        placement.log2phy(0, 1, prefer_own_rank=True),
        placement.routing_table(0, 1),
        weights.routing_table(0, 1),
        placement.local_experts(0, 1),
    ):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_arrays_of_the_caller_stay_the_callers() -> None:
    flags = np.zeros((1, 4), dtype=bool)
    moved = Moves(flags, flags)
    flags[:] = True
    assert moved.num_changed == 0
    assert flags.flags.writeable


def test_no_property_has_a_lock_that_a_fork_could_take_along() -> None:
    modules = [
        importlib.import_module(found.name)
        for found in pkgutil.walk_packages(expert_maps.__path__, "expert_maps.")
        if not re.search(r"\.(__main__|cli|_planner)", found.name)
    ]
    with_lock = {
        f"{module.__name__}.{kind.__name__}.{name}"
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and kind.__module__.startswith("expert_maps")
        for name, member in vars(kind).items()
        if isinstance(member, functools.cached_property)
    }
    assert not with_lock


def test_a_fork_while_another_thread_computes_does_not_hang() -> None:
    code = """
import os, signal, threading
from expert_maps._frozen import lazy
class Slow:
    def __init__(self, waits): self.waits = waits
    @lazy
    def value(self):
        if self.waits: inside.set(); release.wait()
        return 7
inside, release = threading.Event(), threading.Event()
threading.Thread(target=lambda: Slow(True).value, daemon=True).start()
inside.wait()
child = os.fork()
if child == 0:
    signal.alarm(20)
    os._exit(0 if Slow(False).value == 7 else 1)
release.set()
assert os.waitpid(child, 0)[1] == 0, "the child was killed"
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


# Results


@pytest.mark.parametrize("name", VALUES)
def test_a_repr_is_short(name: str) -> None:
    text = repr(VALUES[name])
    assert text.startswith(f"{name}(")
    assert "\n" not in text
    assert "array" not in text
    assert len(text) < 220


def test_a_repr_names_counts_and_balance() -> None:
    result = planned()
    assert repr(result) == (
        "PlanResult(policy='balanced', num_layers=2, num_logical_experts=16, num_redundant_experts=4, ep_size=4, "
        f"overall_balancedness={result.overall_balancedness:.4f})"
    )
    assert re.search(r", changed=\d+\)$", repr(changed()))


def test_results_are_equal_where_their_content_is() -> None:
    assert planned() == planned()
    assert len({planned(), planned()}) == 1
    assert planned() != planned(policy="deepseek")
    assert planned() != plan(2 * LOAD[:1], ep_size=4, num_redundant_experts=4)
    assert planned() != planned().placement
    weights = split_replicas(planned(), LOAD[0])
    assert weights == split_replicas(planned().placement, LOAD[0])
    other = weights.weights.copy()
    other[0, 0, 0] += 1e-9
    assert weights != dataclasses.replace(weights, weights=other)
    bound = weights.lower_bound * 0
    zero, minus = (dataclasses.replace(weights, lower_bound=array) for array in (bound, -bound))
    assert zero == minus
    assert hash(zero) == hash(minus)
    assert changed().moves == changed().moves
    assert changed().moves != moves(planned(), planned())


def test_balance_over_layers_and_steps() -> None:
    one, several = planned(), planned(3)
    assert one.overall_balancedness == overall_balancedness(one.placement, LOAD[0])
    assert one.over_steps == pytest.approx(one.overall_balancedness)
    peaks = step_peaks(several, LOAD)
    assert several.over_steps == pytest.approx(LOAD.sum() / 4 / peaks.sum())
    assert several.over_steps == over_steps(several.placement, LOAD)
    assert several.over_steps < several.overall_balancedness
    weights = split_replicas(several, LOAD)
    assert weights.over_steps < weights.overall_balancedness
    assert split_replicas(one, LOAD[0]).over_steps == pytest.approx(
        split_replicas(one, LOAD[0]).overall_balancedness
    )
    nothing = plan(np.zeros((2, 8)), ep_size=4)
    assert (nothing.overall_balancedness, nothing.over_steps) == (1, 1)
    unknown = dataclasses.replace(weights, load=None)
    for call in (lambda: unknown.over_steps, unknown.plot):
        with pytest.raises(ExpertMapsError, match="the load of these weights is not known"):
            call()


def test_a_summary_says_what_there_is_to_know() -> None:
    one = planned().summary().splitlines()
    assert one[0] == "balanced: 2 layers, 16 experts + 4 redundant on 4 ranks of 5 slots"
    assert re.fullmatch(
        r"balancedness 0\.\d{4} \(mean / max rank load\), worst layer \d with 0\.\d{4}", one[1]
    )
    assert re.fullmatch(r"the hottest ranks carry \d+\.\d{3}% more than a proved lower bound", one[2])
    assert len(one) == 3
    several = planned(3).summary()
    assert f"balancedness over 3 steps {planned(3).over_steps:.4f}" in several
    assert "lower bound" not in several
    result = changed()
    assert result.moves is not None
    assert result.summary().splitlines()[-1] == result.moves.summary()
    assert result.moves.summary().startswith(f"{result.moves.num_changed} of 40 slots change (")
    assert "lower bound" not in planned(policy="deepseek").summary()
    assert "copies that take turns: balancedness 0." in split_replicas(planned(), LOAD).summary()


def test_a_figure_needs_matplotlib_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for value in (planned(), split_replicas(planned(), LOAD), evaluate(planned(), LOAD)):
        with pytest.raises(ExpertMapsError, match=r"matplotlib is not installed.*pip install matplotlib"):
            value.plot()


def test_a_figure_shows_every_rank_and_layer_before_and_after() -> None:
    pytest.importorskip("matplotlib")
    before = generate_placement("linear", num_experts=16, ep_size=4, num_layers=2)
    result = planned()
    for figure in (result.plot(), result.plot(before), evaluate(result, LOAD[0]).plot(before)):
        maps = [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]
        for found, loads in zip(maps, (rank_load(before, LOAD[0]), result.rank_load), strict=False):
            np.testing.assert_allclose(found, loads / loads.mean(axis=1, keepdims=True))
        lines = next(axes for axes in figure.axes if axes.get_title() == "Hottest rank of each layer").lines
        np.testing.assert_allclose(lines[0].get_ydata(), peak_to_mean(before, LOAD[0]))
        np.testing.assert_allclose(lines[1].get_ydata(), result.peak_to_mean)
        worst = int(balancedness(before, LOAD[0]).argmin())
        experts = next(
            axes for axes in figure.axes if axes.get_title().startswith(f"Experts of layer {worst},")
        )
        heights = [bar.get_height() for bar in experts.patches[:16]]
        assert heights == sorted(LOAD[0][worst].tolist(), reverse=True)
    weighted = split_replicas(result, LOAD[1])
    lines = next(
        axes for axes in weighted.plot().axes if axes.get_title() == "Hottest rank of each layer"
    ).lines
    np.testing.assert_allclose(lines[0].get_ydata(), peak_to_mean(result, LOAD[1]))
    np.testing.assert_allclose(lines[1].get_ydata(), 1 / weighted.balancedness)


def test_figures_are_drawn_by_matplotlib_where_it_is(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    planned().plot().savefig(tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


# A result in place of its placement


def test_functions_take_a_result_as_its_placement() -> None:
    result = planned()
    placement, load = result.placement, LOAD[1]
    holders: tuple[PlanResult | ReplicaWeights, ...] = (result, split_replicas(result, LOAD[0]))
    for holder in holders:
        for function in (rank_load, balancedness, overall_balancedness, peak_to_mean, step_peaks, over_steps):
            np.testing.assert_array_equal(function(holder, load), function(placement, load))
        assert moves(holder, holder) == moves(placement, placement)
        assert split_replicas(holder, load) == split_replicas(placement, load)
        assert evaluate(holder, load) == evaluate(placement, load)
        assert plan(load, ep_size=4, current=holder) == plan(load, ep_size=4, current=placement)
        assert rescale(holder, load, ep_size=5) == rescale(placement, load, ep_size=5)


@pytest.mark.parametrize("wrong", [None, "map.json", [[0, 1]], LOAD])
def test_what_is_no_placement_is_named(wrong: Any) -> None:  # noqa: ANN401 - what people pass
    for call in (
        lambda: rank_load(wrong, LOAD),
        lambda: split_replicas(wrong, LOAD),
        lambda: evaluate(wrong, LOAD),
        lambda: moves(planned(), wrong),
        lambda: rescale(wrong, LOAD),
    ):
        with pytest.raises(
            ExpertMapsError, match=f"is {type(wrong).__name__}; expected a Placement, or a result"
        ):
            call()


def test_a_private_constructor_is_private() -> None:
    assert not hasattr(Placement, "from_checked")


def test_a_result_is_written_as_its_placement(tmp_path: Path) -> None:
    result = expert_maps.plan([[3, 1, 1, 1]], num_redundant_experts=2, ep_size=2)
    expert_maps.write_placement(result, tmp_path / "map.json")
    assert expert_maps.read_placement(tmp_path / "map.json") == result.placement
    with pytest.raises(expert_maps.ExpertMapsError, match="expected a Placement"):
        expert_maps.write_placement([[0, 1]], tmp_path / "no.json")  # type: ignore[arg-type]
    assert not (tmp_path / "no.json").exists()


def test_every_array_of_a_result_is_read_only() -> None:
    load = [[3, 1, 1, 1]]
    result = expert_maps.plan(load, num_redundant_experts=2, ep_size=2)
    for found in (result, expert_maps.evaluate(result, load), expert_maps.split_replicas(result, load)):
        for copied in (found, copy.copy(found), pickle.loads(pickle.dumps(found))):  # noqa: S301
            arrays = {
                name: getattr(copied, name) for name in dir(copied) if name[0] != "_" and name != "plot"
            }
            writeable = [n for n, a in arrays.items() if isinstance(a, np.ndarray) and a.flags.writeable]
            assert not writeable, type(copied)
