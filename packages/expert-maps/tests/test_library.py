# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from expert_maps import ExpertMapsError, _library

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    _library.load_library.cache_clear()
    yield
    _library.load_library.cache_clear()


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "native"
    folder.mkdir()
    (folder / "plan.c").write_text("int one;\n")
    (folder / "plan.h").write_text("extern int one;\n")
    return folder


def test_the_library_is_loaded_once_and_is_of_these_sources() -> None:
    library = _library.load_library()
    assert library is _library.load_library()
    assert library.expert_maps_plan is not None
    if _library.SOURCES.is_dir():
        assert library.expert_maps_source_hash() == _library.source_hash(_library.SOURCES).encode()


def test_a_missing_library_is_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXPERT_MAPS_LIBRARY", raising=False)
    monkeypatch.setattr(_library, "LIBRARY", "_absent.so")
    message = r"^the compiled planner \S+_absent\.so is missing: .+ no C compiler worked;.+reference and deepseek\* need none$"
    with pytest.raises(ExpertMapsError, match=message):
        _library.load_library()
    absent = tmp_path / "elsewhere.so"
    monkeypatch.setenv("EXPERT_MAPS_LIBRARY", str(absent))
    with pytest.raises(ExpertMapsError, match=re.escape(f"planner {absent} is missing")):
        _library.load_library()


def test_what_is_no_library_of_this_machine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "other.so"
    path.write_bytes(b"not ELF")
    monkeypatch.setenv("EXPERT_MAPS_LIBRARY", str(path))
    with pytest.raises(ExpertMapsError, match=re.escape(f"planner {path} cannot be loaded: ")):
        _library.load_library()


def test_a_library_of_other_sources_is_refused(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "SOURCES", sources)
    message = r"_planner\.so was built from other sources .+: install again \(pip install -e packages/expert-maps\)$"
    with pytest.raises(ExpertMapsError, match=message):
        _library.load_library()


def test_without_sources_there_is_nothing_to_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As when installed from a wheel, even where a folder of that name happens to be.
    (tmp_path / "native").mkdir()
    monkeypatch.setattr(_library, "SOURCES", tmp_path / "native")
    assert _library.load_library() is not None


def test_a_library_that_says_nothing_of_its_sources_has_no_hash() -> None:
    class Silent:
        def __getattr__(self, name: str) -> object:
            raise AttributeError(name)

    assert _library._hash_in(Silent()) is None  # type: ignore[arg-type]


def test_the_hash_is_of_names_and_contents(sources: Path) -> None:
    first = _library.source_hash(sources)
    assert re.fullmatch("[0-9a-f]{64}", first)
    (sources / "notes.txt").write_text("no source")
    assert _library.source_hash(sources) == first

    seen = {first}
    (sources / "plan.c").write_text("int two;\n")
    seen.add(_library.source_hash(sources))
    (sources / "plan.h").write_text("extern int two;\n")
    seen.add(_library.source_hash(sources))
    (sources / "plan.h").rename(sources / "layer.h")
    seen.add(_library.source_hash(sources))
    (sources / "empty.c").write_text("")
    seen.add(_library.source_hash(sources))
    assert len(seen) == 5


def test_the_hash_does_not_depend_on_the_folder_or_the_order_of_writing(
    sources: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("plan.h", "plan.c"):
        (other / name).write_bytes((sources / name).read_bytes())
    assert _library.source_hash(other) == _library.source_hash(sources)


def test_no_structure_has_the_name_of_another() -> None:
    texts = [path.read_text() for path in sorted(_library.SOURCES.glob("*.[ch]"))]
    names = [name for text in texts for name in re.findall(r"^\} ([A-Z]\w*);", text, flags=re.MULTILINE)]
    assert len(names) > 10
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize(
    ("symbol", "said"), [("", "no interface version"), ("expert_maps_interface", "interface version 7")]
)
def test_a_library_of_another_interface_is_refused(
    symbol: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Other:
        def __getattr__(self, name: str) -> Callable[[], int]:
            if name != symbol:
                raise AttributeError(name)

            def version() -> int:
                return 7

            return version

    path = tmp_path / "other.so"
    path.write_bytes(b"")
    monkeypatch.setenv("EXPERT_MAPS_LIBRARY", str(path))
    monkeypatch.setattr(_library, "SOURCES", tmp_path)  # as when installed from a wheel
    monkeypatch.setattr("ctypes.CDLL", lambda _: Other())
    with pytest.raises(
        ExpertMapsError, match=rf"other\.so has {said}; expected \d+: it is of another release"
    ):
        _library.load_library()
