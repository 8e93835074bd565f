# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Fetching by hash, from an index in a folder."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import pytest

from harness.contract.fetching import ContractError, Index, fetch_source, user_index

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = b"a source distribution, of which nothing is read here"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    (folder / "some_thing-1.0rc1.tar.gz").write_bytes(CONTENT)
    (folder / "some_thing-1.0rc1-py3-none-any.whl").write_bytes(b"a wheel is not what is wanted")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(folder)), ("CONFIG_FILE", os.devnull)):
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder


def test_a_source_is_fetched_once_and_found_again_without_an_index(index: Path, tmp_path: Path) -> None:
    path = fetch_source(tmp_path / "kept", "some-thing", "1.0rc1", SHA256)
    assert path.read_bytes() == CONTENT
    (index / "some_thing-1.0rc1.tar.gz").unlink()
    assert fetch_source(tmp_path / "kept", "some-thing", "1.0rc1", SHA256) == path
    path.write_bytes(b"something else")
    with pytest.raises(ContractError, match=r"could not fetch some-thing 1\.0rc1 as source: .*has none"):
        fetch_source(tmp_path / "kept", "some-thing", "1.0rc1", SHA256)


def test_a_source_with_another_hash_is_refused_and_not_kept(index: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ContractError, match=rf"has the sha256 {SHA256}; expected {'0' * 64}, which is pinned"
    ):
        fetch_source(tmp_path / "kept", "some-thing", "1.0rc1", "0" * 64)
    assert not list((tmp_path / "kept").glob("*.tar.gz"))
    # The user's own file is left alone.
    assert (index / "some_thing-1.0rc1.tar.gz").read_bytes() == CONTENT


def test_the_users_index_is_that_of_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://one.example/simple\ntrusted-host =\n  a.example\n  b.example\n"
        "extra-index-url = https://two.example/simple https://three.example/simple\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    found = user_index()
    assert found.index_url == "https://one.example/simple"
    assert found.extra_index_urls[-2:] == ("https://two.example/simple", "https://three.example/simple")
    assert found.trusted_hosts == ("a.example", "b.example")
    assert not found.no_index
    # The environment counts more than a file.
    monkeypatch.setenv("PIP_INDEX_URL", "https://four.example/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "true")
    assert user_index().index_url == "https://four.example/simple"
    assert user_index().no_index
    assert Index().index_url is None
