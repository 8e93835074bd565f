# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""YAML as far as a map needs it: mappings, lists, integers and words. Nothing is ever constructed from a tag.

PyYAML only finds the parts of the text, one after the other; values are made here. So what a stranger may write (an
alias that doubles a list thirty times, a date that is none, a tag that names a class) ends at its own line.
"""

from __future__ import annotations

import re
from typing import Any

from expert_maps import limits
from expert_maps.errors import FormatError

MAX_BYTES = 4 * 2**20
"""Bytes of a YAML text: a map of 94 layers of 2,048 slots has 1.2 million."""

MAX_VALUES = 2**20
"""Values of a YAML text."""

_DIRECTIVE = re.compile(rb"^%", re.MULTILINE)
_MOST_DIRECTIVES = 8
_INTEGER = re.compile(r"[-+]?[0-9]{1,19}")
_WORDS: dict[str, bool | None] = {
    "true": True, "True": True, "TRUE": True,
    "false": False, "False": False, "FALSE": False,
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
}  # fmt: skip


def parse_yaml(content: bytes) -> object:
    """Return the one document of a YAML text.

    Args:
        content: UTF-8 text.

    Returns:
        Nested dict and list of int, bool, None and str; what is written without quotes and is no integer, truth value
        or null stays text, dates and decimals too.

    Raises:
        FormatError: not YAML; too large or deep; with an anchor, alias or tag; a key that stands twice or is no word
            or integer; several documents. The message does not name the file, the caller does.
    """
    import yaml

    if len(content) > MAX_BYTES:
        msg = f"the YAML text has {len(content)} bytes; expected at most {MAX_BYTES}"
        raise FormatError(msg)
    directives = len(_DIRECTIVE.findall(content))
    if directives > _MOST_DIRECTIVES:  # PyYAML compares each with all before
        msg = f"the YAML text has {directives} directives (%); expected at most {_MOST_DIRECTIVES}"
        raise FormatError(msg)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return _Builder().build(yaml.parse(content.decode("utf-8-sig"), Loader=loader))
    except UnicodeDecodeError as error:
        msg = f"not UTF-8 text at byte {error.start}; expected a YAML file"
        raise FormatError(msg) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, FormatError):
            raise
        msg = f"not valid YAML: {' '.join(str(error).split())[:200]}"
        raise FormatError(msg) from error


class _Builder:
    """Turns PyYAML's events into values; it owns the containers that are still open."""

    def __init__(self) -> None:
        self.stack: list[Any] = []  # open dicts and lists
        self.keys: list[
            Any
        ] = []  # for each, the key that waits for its value; _NONE for lists and between pairs
        self.count = 0
        self.document: list[object] = []

    def build(self, events: Any) -> object:  # noqa: ANN401 - PyYAML has no types
        for event in events:
            self.take(event, type(event).__name__)
        if len(self.document) != 1:
            msg = f"the YAML text holds {len(self.document)} documents; expected one"
            raise FormatError(msg)
        return self.document[0]

    def take(self, event: Any, kind: str) -> None:  # noqa: ANN401
        where = f"line {event.start_mark.line + 1}" if event.start_mark else "the text"
        if kind == "AliasEvent":
            msg = f"{where}: the alias *{event.anchor}; expected none: write the values out"
            raise FormatError(msg)
        if getattr(event, "anchor", None) is not None:
            msg = f"{where}: the anchor &{event.anchor}; expected none: write the values out"
            raise FormatError(msg)
        if kind in {"ScalarEvent", "SequenceStartEvent", "MappingStartEvent"}:
            if event.tag is not None:
                msg = f"{where}: the tag {event.tag!r}; expected none: a map holds lists and integers"
                raise FormatError(msg)
            self._open(event, kind, where)
        elif kind in {"SequenceEndEvent", "MappingEndEvent"}:
            value = self.stack.pop()
            self.keys.pop()
            self._put(value, where)

    def _open(self, event: Any, kind: str, where: str) -> None:  # noqa: ANN401
        self.count += 1
        if self.count > MAX_VALUES:
            msg = f"{where}: more than {MAX_VALUES} values; expected at most so many"
            raise FormatError(msg)
        if kind == "ScalarEvent":
            self._put(event.value if not event.implicit[0] else _plain(event.value), where)
            return
        if len(self.stack) >= limits.MAX_DEPTH:
            msg = f"{where}: nested deeper than {limits.MAX_DEPTH} levels; expected at most so many"
            raise FormatError(msg)
        if self.stack and isinstance(self.stack[-1], dict) and self.keys[-1] is _NONE:
            msg = f"{where}: a list or mapping as a key; expected a word or an integer"
            raise FormatError(msg)
        self.stack.append([] if kind == "SequenceStartEvent" else {})
        self.keys.append(_NONE)

    def _put(self, value: object, where: str) -> None:
        """Put a finished value where it belongs: into the document, a list, or a mapping as key or as value."""
        if not self.stack:
            self.document.append(value)
            return
        parent = self.stack[-1]
        if isinstance(parent, list):
            parent.append(value)
        elif self.keys[-1] is _NONE:
            if not isinstance(value, (str, int)) or isinstance(value, bool):
                msg = f"{where}: the key {value!r}; expected a word or an integer"
                raise FormatError(msg)
            if value in parent:
                msg = f"{where}: the key {value!r} stands twice in one mapping"
                raise FormatError(msg)
            self.keys[-1] = value
        else:
            parent[self.keys[-1]] = value
            self.keys[-1] = _NONE


_NONE = object()


def _plain(text: str) -> object:
    if _INTEGER.fullmatch(text):
        return int(text)
    return _WORDS.get(text, text)
