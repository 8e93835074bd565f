# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Wheels and source distributions: fetched from the user's package index by hash, never built or installed."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# Any Linux on x86-64 that a wheel may be for; pip takes no older platform for granted.
_PLATFORMS = tuple(f"manylinux_2_{minor}_x86_64" for minor in (17, 24, 27, 28, 31, 34, 35, 39))
_TIMEOUT_S = 900
_CHUNK = 2**20


class ContractError(RuntimeError):
    """The contract could not be checked, which is a failure."""


def fetch_pinned(folder: Path, project: str, version: str, sha256: str, *, python: str = "3.11") -> Path:
    """Download one version's wheel for a Python on x86-64 Linux.

    Args:
        folder: where this version is kept; a wheel with this hash that is there is not fetched again.
        project: its name in the index.
        version: of it.
        sha256: what the index must give.
        python: the version that the wheel is for.

    Returns:
        The wheel's path.

    Raises:
        ContractError: it could not be fetched.
    """
    kept = _kept(folder, "*.whl", sha256)
    if kept is not None:
        return kept
    pinned = folder / "requirement.txt"
    pinned.write_text(f"{project}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
    return _download(folder, project, ["--require-hashes", "-r", str(pinned)], python)


def fetch_newest(folder: Path, project: str, *, python: str = "3.11") -> Path:
    """Download the newest version's wheel, whatever its hash: its contents must not be run.

    Raises:
        ContractError: it could not be fetched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.whl"):
        stale.unlink()
    return _download(folder, project, [project], python)


def fetch_source(folder: Path, project: str, version: str, sha256: str) -> Path:
    """Download one version's source distribution; nothing of it is run, which pip would do for its metadata.

    Args:
        folder: where this version is kept; an archive with this hash that is there is not fetched again.
        project: its name in the index.
        version: of it.
        sha256: what the index must give.

    Returns:
        The archive's path.

    Raises:
        ContractError: it could not be fetched, or is another file than the pinned one.
    """
    kept = _kept(folder, "*.tar.gz", sha256)
    if kept is not None:
        return kept
    # Only those who fetch sources need it.
    from unearth.errors import UnpackError, URLError

    try:
        path = _find_source(folder, project, version)
    except (OSError, ValueError, UnpackError, URLError) as error:
        msg = f"could not fetch {project} {version} as source: {type(error).__name__}: {error}; nothing was checked"
        raise ContractError(msg) from error
    found = sha256_of(path)
    if found != sha256:
        path.unlink()
        msg = f"{path.name} has the sha256 {found}; expected {sha256}, which is pinned"
        raise ContractError(msg)
    return path


def sha256_of(path: Path) -> str:
    """Return a file's hash."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@dataclass(frozen=True)
class Index:
    """Where the user's pip looks for packages; empty where only the public index counts.

    Attributes:
        index_url: in place of the public index.
        extra_index_urls: beside it.
        find_links: pages or folders with archives.
        trusted_hosts: whose certificates are not looked at.
        cert: a file of certificates to trust.
        no_index: whether only ``find_links`` count.
    """

    index_url: str | None = None
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    trusted_hosts: tuple[str, ...] = ()
    cert: str | None = None
    no_index: bool = False


def user_index() -> Index:
    """Read pip's configuration, files and environment, as pip does."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)  # noqa: S603 - no shell, this interpreter
    found: dict[str, tuple[str, ...]] = {}
    # What comes later counts: an environment variable more than a file, a command's section more than global.
    for section in ("global.", "download.", ":env:."):
        for line in done.stdout.splitlines():
            name, equals, value = line.partition("=")
            if equals and name.startswith(section):
                # pip shows a string as Python does; a value of several lines is a list.
                text = value.strip().strip("'\"").replace("\\n", " ")
                found[name.removeprefix(section)] = tuple(shlex.split(text))
    only = {name: (found.get(name) or (None,))[-1] for name in ("index-url", "cert", "no-index")}
    return Index(
        index_url=only["index-url"],
        extra_index_urls=found.get("extra-index-url", ()),
        find_links=found.get("find-links", ()),
        trusted_hosts=found.get("trusted-host", ()),
        cert=only["cert"],
        no_index=(only["no-index"] or "0").lower() in {"1", "true", "yes", "on"},
    )


def _find_source(folder: Path, project: str, version: str) -> Path:
    from unearth import PackageFinder

    index = user_index()
    if index.cert is not None:
        # The finder's own client reads it from there.
        os.environ.setdefault("SSL_CERT_FILE", index.cert)
    indexes = [] if index.index_url is None else [index.index_url]
    finder = PackageFinder(
        index_urls=indexes,  # the finder knows the public one by itself
        trusted_hosts=index.trusted_hosts,
        ignore_compatibility=True,
        no_binary=[project],
    )
    if index.no_index:
        finder.sources.clear()
    else:
        for url in index.extra_index_urls:
            finder.add_index_url(url)
    for place in index.find_links:
        finder.add_find_links(place)
    match = finder.find_best_match(f"{project}=={version}", allow_prereleases=True).best
    if match is None:
        msg = "the package index has none"
        raise ValueError(msg)
    found = Path(finder.download(match.link, folder))
    # One that lies in a folder of the user's is handed out where it is.
    return found if found.parent == folder else Path(shutil.copy(found, folder))


def _kept(folder: Path, pattern: str, sha256: str) -> Path | None:
    """Return the file that was fetched before; anything else of its kind is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(pattern):
        if sha256_of(path) == sha256:
            return path
        path.unlink()
    return None


def _download(folder: Path, project: str, what: list[str], python: str) -> Path:
    name = project.replace("-", "_")
    platforms = [option for platform in _PLATFORMS for option in ("--platform", platform)]
    only = ["--no-deps", "--only-binary", ":all:", "--python-version", python, *platforms]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *only, "-d", str(folder), *what]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)  # noqa: S603 - no shell, this interpreter
    except subprocess.TimeoutExpired as error:
        msg = (
            f"could not fetch {name} ({folder.name}): pip took more than {_TIMEOUT_S} s; nothing was checked"
        )
        raise ContractError(msg) from error
    found = sorted(folder.glob(f"{name}-*.whl"))
    if done.returncode or len(found) != 1:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        msg = f"could not fetch {name} ({folder.name}): {'; '.join(lines) or 'no wheel came'}; nothing was checked"
        raise ContractError(msg)
    return found[0]


__all__ = [
    "ContractError",
    "Index",
    "fetch_newest",
    "fetch_pinned",
    "fetch_source",
    "sha256_of",
    "user_index",
]
