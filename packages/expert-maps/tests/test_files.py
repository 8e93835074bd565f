# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest

from expert_maps import FormatError, files


def test_a_bare_name_goes_into_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files.write_text("map.json", "{}")
    assert (tmp_path / "map.json").read_text() == "{}"
    assert [path.name for path in tmp_path.iterdir()] == ["map.json"]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "map.json"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(FormatError, match="cannot be written: No space left on device"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folders_folders_and_devices_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    for name, message in (
        ("no/such/map.json", "there is no folder"),
        (".", "is a folder"),
        ("file/map.json", "there is no folder|Not a directory"),
        ("x" * 300, "cannot be written"),
        ("loop", "cannot be written"),
    ):
        with pytest.raises(FormatError, match=message):
            files.write_text(tmp_path / name, "{}")
    with pytest.raises(FormatError, match="not a regular file"):
        files.write_text("/dev/null", "{}")
    with pytest.raises(FormatError, match="is empty"):
        files.write_text("", "{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(FormatError, match="Permission denied"):
        files.write_text(tmp_path / "map.json", "{}")


def test_a_folder_that_takes_no_files_is_refused() -> None:
    # As root too, unlike a folder without write permission.
    if not Path("/proc/self").is_dir():
        pytest.skip("no /proc on this system")
    with pytest.raises(FormatError, match="cannot be written"):
        files.write_text("/proc/self/map.json", "{}")


def test_links_and_modes_are_kept(tmp_path: Path) -> None:
    target = tmp_path / "target.json"
    target.write_text("old")
    target.chmod(0o640)
    (tmp_path / "link.json").symlink_to(target)
    files.write_text(tmp_path / "link.json", "new")
    assert (tmp_path / "link.json").is_symlink()
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o640


def test_a_new_file_has_the_usual_mode(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / "map.json", "{}")
    finally:
        os.umask(before)
    assert (tmp_path / "map.json").stat().st_mode & 0o777 == 0o640
