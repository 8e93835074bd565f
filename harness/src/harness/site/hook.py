# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""mkdocs' hook: the repository's own pages are the site's, in the folders where they are, so that their links hold.

The reference is generated: `harness.site.reference`.
A link to a file that is no page stays as words, since the site has no copy of it; one to nothing is an error.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mkdocs.exceptions import PluginError  # type: ignore[import-not-found] # installed by `nox -s docs`
from mkdocs.structure.files import File  # type: ignore[import-not-found]

from harness.site.reference import pages

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[4]
_PAGES = (
    "*.md",
    "docs/**/*.md",
    "accuracy/**/*.md",
    "harness/**/*.md",
    "packages/*/README.md",
    "packages/*/docs/*.md",
)
_PICTURES = (
    "docs/**/*.svg",
    "harness/bench/*.svg",
    "harness/bench/records/*/*.svg",
    "accuracy/results/*/*.png",
)
# Of images too; not of other sites, nor within a page.
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?![a-z]+:|#)([^)\s#]+)(#[^)]*)?\)")


def repository_files() -> Iterator[str]:
    """Yield the pages and pictures of the repository, by their paths in it."""
    for pattern in (*_PAGES, *_PICTURES):
        for path in sorted(ROOT.glob(pattern)):
            inside = path.relative_to(ROOT)
            if inside.parts[0] != "build" and not any(part.startswith(".") for part in inside.parts):
                yield inside.as_posix()


def on_files(files: Any, config: Any) -> Any:  # noqa: ANN401 - mkdocs has no types
    """Put the repository's pages in the place of those that mkdocs has found in one folder."""
    for file in list(files):
        if not file.src_uri.startswith("assets/"):
            files.remove(file)
    for name in repository_files():
        # The README is where a reader starts.
        target = "index.md" if name == "README.md" else name
        files.append(File.generated(config, target, abs_src_path=str(ROOT / name)))
    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, files: Any, **_: Any) -> str:  # noqa: ANN401 - as above
    """Leave the words of links to what is no page, and point the others at the README's name here.

    Raises:
        PluginError: a link leads to nothing.
    """
    here = PurePosixPath("README.md" if page.file.src_uri == "index.md" else page.file.src_uri)
    known = {file.src_uri for file in files}

    def linked(match: re.Match[str]) -> str:
        picture, words, target, anchor = match.groups()
        path = os.path.normpath(here.parent / target).replace(os.sep, "/")
        if (ROOT / path).is_dir() and f"{path}/README.md" in known:
            path = f"{path}/README.md"
        name = "index.md" if path == "README.md" else path
        if name in known:
            start = "." if page.file.src_uri == "index.md" else str(here.parent)
            relative = os.path.relpath(name, start).replace(os.sep, "/")
            return f"{picture}[{words}]({relative}{anchor or ''})"
        if (ROOT / path).exists():
            return str(words)
        msg = f"{page.file.src_uri} links to {target}, which is not in the repository"
        raise PluginError(msg)

    # Not in code.
    parts = re.split(r"(```.*?```)", markdown, flags=re.DOTALL)
    return "".join(part if index % 2 else _LINK.sub(linked, part) for index, part in enumerate(parts))


def on_post_build(config: Any) -> None:  # noqa: ANN401 - as above
    """Write llms.txt: what is where, for programs that read."""
    lines = [f"# {config.site_name}", "", f"> {config.site_description}", ""]

    for entry in config.nav:
        ((title, target),) = entry.items()
        if not isinstance(target, list):
            lines.append(_entry(title, target))
            continue
        lines.extend(("", f"## {title}", ""))
        lines.extend(_entry(*next(iter(below.items()))) for below in target)
    Path(config.site_dir, "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _entry(title: str, target: str) -> str:
    return f"- [{title}]({target.removesuffix('.md')}.html)"
