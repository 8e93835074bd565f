# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Check every golden case: bytes, regeneration, an independent computation, publications and vLLM."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from expert_maps import ExpertMapsError
from harness.golden import naive, vllm_peer
from harness.golden.build import build, load_of
from harness.golden.cases import CASES, Case

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

MANIFEST = "manifest.json"
_TABLES = ("physical_to_logical", "global_expert_map", "log2phy")
_AXES = {
    "physical_to_logical": ("layer", "physical expert"),
    "global_expert_map": ("layer", "rank", "expert"),
    "log2phy": ("layer", "rank", "expert"),
}


class GoldenError(AssertionError):
    """A golden check failed; the message names the case, its parameters and the first difference."""


def read_manifest(root: Path) -> list[dict[str, Any]]:
    """Return the manifest's cases.

    Raises:
        GoldenError: the manifest is missing or unreadable.
    """
    try:
        cases: list[dict[str, Any]] = json.loads((root / MANIFEST).read_text(encoding="utf-8"))["cases"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{root / MANIFEST} cannot be read: {error}; `nox -s golden -- regenerate` writes it"
        raise GoldenError(msg) from error
    return cases


def check_set(root: Path, cases: Sequence[Case] = CASES) -> list[str]:
    """Return what is wrong with the set of cases: missing ones, surplus ones, files nobody lists."""
    listed = {entry["name"]: entry for entry in read_manifest(root)}
    wanted = {case.name: case for case in cases}
    problems = [f"case {name} is missing from the manifest" for name in wanted if name not in listed]
    problems += [f"case {name} of the manifest is not defined" for name in listed if name not in wanted]
    for name, case in wanted.items():
        entry = listed.get(name)
        if entry is None:
            continue
        defined = json.loads(json.dumps(case.as_manifest(entry["sha256"])))
        problems += [
            f"case {name}: {key} is {entry.get(key)!r} in the manifest; expected {value!r}"
            for key, value in defined.items()
            if entry.get(key) != value
        ]
    files = {entry["file"] for entry in listed.values()}
    found = {path.relative_to(root).as_posix() for path in (root / "maps").glob("*")}
    problems += [f"{name} is in no case of the manifest" for name in sorted(found - files)]
    return problems


def check_case(entry: dict[str, Any], root: Path) -> list[str]:
    """Check one case; return the names of the checks made.

    Raises:
        GoldenError: the first check that fails.
    """
    document = _read(entry, root)
    try:
        rebuilt = build(entry["kind"], entry["parameters"], root)
    except ExpertMapsError as error:
        raise _failure(entry, f"cannot be built any more: {error}") from error
    for key, value in rebuilt.items():
        if key in _TABLES:
            _compare(entry, "regenerated", key, value, document[key])
        elif value != document[key]:
            raise _failure(entry, f"{key} is regenerated as {value}; expected {document[key]} (golden)")
    for key, value in _independent(entry, root, document):
        _compare(entry, "computed independently", key, value, document[key])
    for claim in entry["published"]:
        check_published(entry, claim, document)
    made = ["sha256", "regenerated", "independent"] + ["published"] * bool(entry["published"])
    if vllm_peer.is_installed():
        compared = list(_by_vllm(entry, root))
        for key, value in compared:
            _compare(entry, "computed by vLLM", key, value, document[key])
        made += ["vLLM"] * bool(compared)
    return made


def check_published(entry: dict[str, Any], claim: dict[str, Any], document: dict[str, Any]) -> None:
    """Compare with an expectation from outside: whole tables, or a rank's maps.

    Raises:
        GoldenError: they differ.
    """
    if "physical_to_logical" in claim:
        key = "physical_to_logical"
        _compare(entry, "published", key, claim[key], document[key])
    if "expert_map" in claim:
        found = document["global_expert_map"][claim["layer"]][claim["ep_rank"]]
        wanted = {int(expert): slot for expert, slot in claim["expert_map"].items()}
        for expert, slot in enumerate(found):
            if slot != wanted.get(expert, claim.get("elsewhere")):
                raise _failure(
                    entry,
                    f"expert_map at layer {claim['layer']}, rank {claim['ep_rank']}, expert {expert} is "
                    f"{slot}; expected {wanted.get(expert, claim.get('elsewhere'))} (published)",
                )
    if "log2phy" in claim:
        found = document["log2phy"][claim["layer"]][claim["ep_rank"]]
        if found != claim["log2phy"]:
            raise _failure(entry, f"log2phy is {found}; expected {claim['log2phy']} (published)")


def _read(entry: dict[str, Any], root: Path) -> dict[str, Any]:
    path = root / entry["file"]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _failure(entry, f"{entry['file']} cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != entry["sha256"]:
        raise _failure(entry, f"{entry['file']} has sha256 {digest}; expected {entry['sha256']}")
    document: dict[str, Any] = json.loads(content)
    return document


def _independent(
    entry: dict[str, Any], root: Path, document: dict[str, Any]
) -> Iterator[tuple[str, list[Any]]]:
    options = entry["parameters"]
    by_kind: dict[str, dict[str, Any]] = {"layout": {**naive.LAYOUTS}, "policy": {**naive.POLICIES}}
    twins = by_kind.get(entry["kind"])
    if twins is not None and options[entry["kind"]] not in twins:
        raise _failure(
            entry,
            f"the {entry['kind']} {options[entry['kind']]} has no slow twin in harness/golden/naive.py; "
            f"expected one of {', '.join(twins)}",
        )
    if entry["kind"] == "layout":
        layers = [naive.layout(options)]
    elif entry["kind"] == "map_file":
        layers = naive.map_file(root / options["path"])
    else:
        layers = naive.policy(_totals(options, root), options)
    experts, tp_size = document["num_logical_experts"], options.get("tp_size", 1)
    yield "physical_to_logical", [[expert for slots in ranks for expert in slots] for ranks in layers]
    yield "global_expert_map", [naive.expert_maps(ranks, experts) for ranks in layers]
    yield "log2phy", [naive.log2phys(ranks, experts, tp_size) for ranks in layers]


def _by_vllm(entry: dict[str, Any], root: Path) -> Iterator[tuple[str, list[Any]]]:
    options = entry["parameters"]
    if entry["kind"] == "layout":
        maps = vllm_peer.expert_maps(options)
        if maps is not None:
            yield "global_expert_map", [maps]
        slots = vllm_peer.initial_physical_to_logical(options)
        if slots is not None:
            yield "physical_to_logical", [slots]
    elif entry["kind"] == "policy":
        yield "physical_to_logical", vllm_peer.deepseek(_totals(options, root), options)


def _totals(options: dict[str, Any], root: Path) -> list[list[float]]:
    load = load_of(options, root)
    totals: list[list[float]] = load if isinstance(load, list) else load.total.tolist()
    return totals


def _compare(entry: dict[str, Any], how: str, key: str, found: list[Any], golden: list[Any]) -> None:
    left, right = np.array(found), np.array(golden)
    if left.shape != right.shape:
        raise _failure(
            entry, f"{key} {how} has shape {list(left.shape)}; expected {list(right.shape)} (golden)"
        )
    different = np.argwhere(left != right)
    if different.size:
        first = tuple(int(index) for index in different[0])
        where = ", ".join(f"{axis} {index}" for axis, index in zip(_AXES[key], first, strict=True))
        raise _failure(
            entry,
            f"{key} {how} at {where} is {left[first]}; expected {right[first]} (golden; "
            f"{len(different)} entries differ)",
        )


def _failure(entry: dict[str, Any], what: str) -> GoldenError:
    parameters = json.dumps(entry["parameters"])
    shown = parameters if len(parameters) <= 300 else parameters[:297] + "..."  # noqa: PLR2004 - one screen
    return GoldenError(f"{entry['name']} {shown}: {what}")
