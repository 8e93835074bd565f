# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The golden checks, fed with what they must find."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.golden import check, naive, vllm_peer
from harness.golden.cases import CASES
from harness.golden.check import GoldenError, check_case, check_set, read_manifest
from harness.golden.regenerate import regenerate

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
SMALL = tuple(
    case
    for case in CASES
    if case.name in {"ring_10_ep4_redundant6", "linear_10_ep4", "vllm_ascend_map_file", "deepseek_readme"}
)
BY_NAME = {case.name: case for case in CASES}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a golden folder of the small cases."""
    shutil.copytree(ROOT / "golden" / "inputs", tmp_path / "golden" / "inputs")
    regenerate(tmp_path / "golden", SMALL)
    return tmp_path / "golden"


def entry_of(root: Path, name: str) -> dict[str, Any]:
    return next(entry for entry in read_manifest(root) if entry["name"] == name)


def tamper(root: Path, entry: dict[str, Any], edit: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Change a data file and the manifest's hash with it, so that only the values can tell."""
    path = root / entry["file"]
    document = json.loads(path.read_text(encoding="utf-8"))
    edit(document)
    path.write_text(json.dumps(document), encoding="utf-8")
    return {**entry, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_the_projects_own_golden_data_pass() -> None:
    assert check_set(ROOT / "golden") == []
    for entry in read_manifest(ROOT / "golden"):
        assert {"sha256", "regenerated", "independent"} <= set(check_case(entry, ROOT / "golden"))


def test_the_shapes_that_users_serve_are_covered() -> None:
    shapes = {(c.parameters.get("num_layers"), c.parameters.get("num_experts")) for c in CASES}
    assert {(58, 256), (94, 128), (60, 384)} <= shapes
    ring = BY_NAME["ring_256_ep16_redundant16"].published[0]
    assert ring["expert_map"] == {0: 16, **{expert: expert - 240 for expert in range(240, 256)}}


def test_a_changed_byte_is_found(root: Path) -> None:
    entry = entry_of(root, "linear_10_ep4")
    (root / entry["file"]).write_text((root / entry["file"]).read_text(encoding="utf-8") + " ")
    with pytest.raises(GoldenError, match=r"maps/linear_10_ep4\.json has sha256 .*; expected "):
        check_case(entry, root)


@pytest.mark.parametrize(
    ("table", "place", "where"),
    [
        ("physical_to_logical", (0, 3), "layer 0, physical expert 3"),
        ("global_expert_map", (0, 2, 1), "layer 0, rank 2, expert 1"),
        ("log2phy", (0, 3, 9), "layer 0, rank 3, expert 9"),
    ],
)
def test_a_changed_entry_is_found_with_parameters_and_coordinate(
    root: Path, table: str, place: tuple[int, ...], where: str
) -> None:
    def edit(document: dict[str, Any]) -> None:
        row = document[table]
        for index in place[:-1]:
            row = row[index]
        row[place[-1]] += 1

    entry = tamper(root, entry_of(root, "ring_10_ep4_redundant6"), edit)
    with pytest.raises(GoldenError, match=rf'"num_redundant_experts": 6.*{table} regenerated at {where} is'):
        check_case(entry, root)


def test_a_table_of_another_shape_and_another_count_are_found(root: Path) -> None:
    entry = entry_of(root, "ring_10_ep4_redundant6")
    shorter = tamper(root, entry, lambda document: document["log2phy"][0].pop())
    with pytest.raises(
        GoldenError, match=r"log2phy regenerated has shape \[1, 4, 10\]; expected \[1, 3, 10\]"
    ):
        check_case(shorter, root)
    regenerate(root, SMALL)
    counted = tamper(root, entry, lambda document: document.update(num_layers=2))
    with pytest.raises(GoldenError, match="num_layers is regenerated as 1; expected 2"):
        check_case(counted, root)


def test_a_generator_that_errs_is_found_by_the_independent_computation(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data were regenerated with the same fault, so that only the slow computation disagrees."""
    entry = entry_of(root, "ring_10_ep4_redundant6")

    def edit(document: dict[str, Any]) -> None:
        document["log2phy"][0][1][0] += 1

    wrong = tamper(root, entry, edit)
    document = json.loads((root / entry["file"]).read_text(encoding="utf-8"))
    monkeypatch.setattr(check, "build", lambda *_: document)
    with pytest.raises(GoldenError, match="log2phy computed independently at layer 0, rank 1, expert 0 is"):
        check_case(wrong, root)


def test_what_vllm_computes_otherwise_is_found(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = entry_of(root, "linear_10_ep4")
    maps = naive.expert_maps(naive.layout(entry["parameters"]), 10)
    monkeypatch.setattr(vllm_peer, "is_installed", lambda: True)
    monkeypatch.setattr(vllm_peer, "expert_maps", lambda _: maps)
    assert "vLLM" in check_case(entry, root)
    maps[3][9] = 0
    with pytest.raises(GoldenError, match="computed by vLLM at layer 0, rank 3, expert 9 is 0; expected 1"):
        check_case(entry, root)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("linear_10_ep4", {"expert_map": {8: 0, 9: 0}, "elsewhere": -1}, "expert 9 is 1; expected 0"),
        ("linear_10_ep4", {"expert_map": {9: 1}, "elsewhere": -1}, "expert 8 is 0; expected -1"),
        ("vllm_ascend_map_file", {"log2phy": [0] * 8}, r"log2phy is \[.*expected \[0, 0"),
        ("deepseek_readme", {"physical_to_logical": [[0] * 16] * 2}, "published at layer 0"),
    ],
)
def test_what_contradicts_a_publication_is_not_written(
    root: Path, name: str, change: dict[str, Any], message: str
) -> None:
    claim = {"layer": 0, "ep_rank": 3 if name == "linear_10_ep4" else 1, **change}
    before = {path.name: path.read_bytes() for path in root.rglob("*.json")}
    with pytest.raises(GoldenError, match=message):
        regenerate(root, [replace(BY_NAME[name], published=[claim])])
    assert {path.name: path.read_bytes() for path in root.rglob("*.json")} == before


def test_the_set_of_cases_is_checked(root: Path) -> None:
    assert check_set(root, SMALL) == []
    added = replace(SMALL[0], name="added")
    assert check_set(root, [*SMALL, added]) == ["case added is missing from the manifest"]
    assert check_set(root, SMALL[1:]) == [f"case {SMALL[0].name} of the manifest is not defined"]
    (root / "maps" / "stray.json").write_text("{}")
    assert check_set(root, SMALL) == ["maps/stray.json is in no case of the manifest"]
    edited = replace(SMALL[0], parameters={**SMALL[0].parameters, "ep_size": 5})
    problem = check_set(root, [edited, *SMALL[1:]])[0]
    assert problem.startswith(f"case {edited.name}: parameters is")


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"cases"'])
def test_an_unreadable_manifest_is_one_clear_failure(root: Path, content: str | None) -> None:
    (root / "manifest.json").unlink()
    if content is not None:
        (root / "manifest.json").write_text(content)
    with pytest.raises(GoldenError, match=r"manifest\.json cannot be read: .*`nox -s golden -- regenerate`"):
        read_manifest(root)


def test_a_missing_data_file_is_found(root: Path) -> None:
    entry = entry_of(root, "linear_10_ep4")
    (root / entry["file"]).unlink()
    with pytest.raises(GoldenError, match=r"maps/linear_10_ep4\.json cannot be read: No such file"):
        check_case(entry, root)


def test_regenerate_says_what_changed(root: Path) -> None:
    assert regenerate(root, SMALL) == []
    tamper(
        root, entry_of(root, "linear_10_ep4"), lambda document: document["log2phy"][0][0].__setitem__(3, 7)
    )
    (root / "maps" / "stray.json").write_text("{}")
    (root / "maps" / "deepseek_readme.json").unlink()
    assert sorted(regenerate(root, SMALL)) == [
        "maps/deepseek_readme.json: new",
        "maps/linear_10_ep4.json: log2phy 1 entries, first at [0, 0, 3]: 7 → 3",
        "maps/stray.json: removed, no case has it",
    ]
    assert check_set(root, SMALL) == []


def test_the_independent_layouts_do_not_use_expert_maps() -> None:
    code = "import sys, harness.golden.naive; sys.exit('expert_maps' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def golden_command(root: Path, command: str = "check") -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "harness.golden", command, "--root", str(root)]
    return subprocess.run(arguments, check=False, capture_output=True, text=True, timeout=120)


def test_the_command_exits_1_and_names_every_failure(tmp_path: Path) -> None:
    root = tmp_path / "golden"
    shutil.copytree(ROOT / "golden", root)
    shutil.copytree(ROOT / "accuracy" / "loads", tmp_path / "accuracy" / "loads")
    assert golden_command(root).returncode == 0
    for name in ("linear_10_ep4", "linear_60_ep8"):
        with (root / "maps" / f"{name}.json").open("a") as stream:
            stream.write(" ")
    failed = golden_command(root)
    assert failed.returncode == 1
    assert len([line for line in failed.stderr.splitlines() if line.startswith("FAILED linear_")]) == 2
    assert f"{len(CASES)} golden cases, 2 failures" in failed.stdout
    assert "2 files changed" in golden_command(root, "regenerate").stdout
    assert golden_command(root).returncode == 0


def test_the_command_names_an_absent_folder(tmp_path: Path) -> None:
    failed = golden_command(tmp_path / "absent")
    assert failed.returncode == 1
    assert "manifest.json cannot be read" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_names_are_unique_and_every_case_says_who_vouches_for_it() -> None:
    assert len(BY_NAME) == len(CASES)
    assert all(case.provenance for case in CASES)


@pytest.mark.parametrize(
    ("name", "twins", "kind"),
    [("deepseek_readme", naive.POLICIES, "policy"), ("ring_10_ep4_redundant6", naive.LAYOUTS, "layout")],
)
def test_a_case_is_checked_against_the_twin_of_its_own_name(
    root: Path, name: str, twins: dict[str, Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = entry_of(root, name)
    own = entry["parameters"][kind]
    # A twin of another name that errs says nothing about this one.
    for key in set(twins) - {own}:
        monkeypatch.setitem(twins, key, lambda *_: pytest.fail("another's twin was asked"))
    assert "independent" in check_case(entry, root)
    monkeypatch.setitem(twins, own, lambda *_: [[[0]]] if kind == "policy" else [[0]])
    with pytest.raises(GoldenError, match="computed independently"):
        check_case(entry, root)
    monkeypatch.delitem(twins, own)
    with pytest.raises(
        GoldenError, match=rf"the {kind} {own} has no slow twin in .*naive\.py; expected one of"
    ):
        check_case(entry, root)
