# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The exceptions of this package; all are ``ValueError``, so callers may catch just that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, overload

from expert_maps.limits import MAX_LISTED

if TYPE_CHECKING:
    from collections.abc import Iterator

ViolationKind = Literal["missing", "out_of_range", "duplicate", "uneven", "contradiction", "count", "golden"]


class ExpertMapsError(ValueError):
    """Bad input: the message names the quantity, its value and what was expected."""


class FormatError(ExpertMapsError):
    """A file cannot be read or written: absent, unreadable, not JSON, or not of the expected schema."""


class LoadError(ExpertMapsError):
    """An expert load has the wrong shape or type, or holds NaN, infinite or negative counts."""


class LayoutError(ExpertMapsError):
    """A layout or plan was asked for with counts for which none exists."""


def printable(text: str, limit: int | None = 60) -> str:
    r"""Return foreign text as a message may show it: on one line, without control characters, and not too long.

    Args:
        text: from a file: a key, the name of an array, a string; it may try to steer a terminal.
        limit: characters of it that are shown; None for all.

    Returns:
        The text; what cannot be printed is written as in Python (``\x1b``), what is too much as an ellipsis.
    """
    shown = text if limit is None or len(text) <= limit else text[: limit - 1] + "…"
    if shown.isprintable():
        return shown
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode("ascii")
        for char in shown
    )


def show_value(value: object) -> str:
    """Return a value as a message may show it: short, and without what a terminal obeys."""
    if isinstance(value, int) and not isinstance(value, bool):
        return show_integer(value)
    if isinstance(value, str):
        return f"'{printable(value)}'"
    if isinstance(value, (dict, list, tuple, range)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)} entries"
    return printable(repr(value))


def show_integer(value: int) -> str:
    """Return an integer as a message may show it: Python refuses to write one of thousands of digits."""
    few = 100
    return str(value) if value.bit_length() <= few else f"an integer of {value.bit_length()} bits"


@dataclass(frozen=True)
class Violation:
    """One broken rule of a placement, with its coordinates; or what is not as it was said to be.

    Attributes:
        kind: which rule of placements: ``missing``, ``out_of_range``, ``duplicate`` or ``uneven``; else ``contradiction``
            (a map file says of its slots what they are not), ``count`` (another number than the caller expects) or
            ``golden`` (another slot than the caller expects).
        message: one line that names layer, rank and slot where they apply.
        layer: MoE layer index, or None where the rule concerns all layers.
        rank: expert-parallel rank, or None (a missing expert is on no rank).
        slot: local slot on that rank, or None.
        expert: logical expert id, or None.
        found: what stands there, or None where nothing does.
        expected: what ought to, or None where several values are right.
    """

    kind: ViolationKind
    message: str
    layer: int | None = None
    rank: int | None = None
    slot: int | None = None
    expert: int | None = None
    found: str | int | None = None
    expected: str | int | None = None

    def to_dict(self) -> dict[str, str | int | None]:
        """Return the attributes by name, for JSON."""
        return dict(vars(self))


class ViolationGroup(Protocol):
    """Violations of one kind, as compact as arrays are."""

    def __len__(self) -> int:
        """Count them."""
        ...

    def __getitem__(self, index: int, /) -> Violation:
        """Make one, from 0 to the count − 1."""
        ...


class Violations(Sequence[Violation]):
    """Every violation of a placement, ordered by kind, layer, rank and slot.

    A broken map may have millions: they are counted, and each is made when it is asked for.
    """

    def __init__(self, groups: Sequence[ViolationGroup]) -> None:
        """Keep the groups, in order; each is of one kind, or all of another sequence of violations."""
        flat: list[ViolationGroup] = []
        for group in groups:
            flat.extend(group._groups if isinstance(group, Violations) else [group])  # noqa: SLF001 - its own class
        self._groups: tuple[ViolationGroup, ...] = tuple(group for group in flat if len(group))

    def named(self, prefix: str) -> Violations:
        """Return the same with some words before each message."""
        return Violations([_Named(group, prefix) for group in self._groups])

    def after(self, group: ViolationGroup) -> Violations:
        """Return the same after some more."""
        return Violations([group, *self._groups])

    def with_first(self, violation: Violation) -> Violations:
        """Return the same with another first one, such as one that says more."""
        return Violations([(violation,), _Rest(self)])

    def count_kinds(self) -> dict[ViolationKind, int]:
        """Count those of each kind, in order; none of them is made but the first of each group."""
        counts: dict[ViolationKind, int] = {}
        for group in self._groups:
            kind = group[0].kind
            counts[kind] = counts.get(kind, 0) + len(group)
        return counts

    def __len__(self) -> int:
        """Count all of them."""
        return sum(map(len, self._groups))

    @overload
    def __getitem__(self, index: int) -> Violation: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Violation, ...]: ...
    def __getitem__(self, index: int | slice) -> Violation | tuple[Violation, ...]:
        """Return one violation, or a tuple of some."""
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        place = index + len(self) if index < 0 else index
        if place >= 0:
            for group in self._groups:
                if place < len(group):
                    return group[place]
                place -= len(group)
        msg = f"violation {index} of {len(self)}"
        raise IndexError(msg)

    def __iter__(self) -> Iterator[Violation]:
        """Make one after the other."""
        for group in self._groups:
            for index in range(len(group)):
                yield group[index]

    def __repr__(self) -> str:
        """Count them; a list of all would flood a log."""
        return f"<{len(self)} violations>"


@dataclass(frozen=True)
class _Named:
    """Violations with some words before each message."""

    group: ViolationGroup
    prefix: str

    def __len__(self) -> int:
        return len(self.group)

    def __getitem__(self, index: int, /) -> Violation:
        one = self.group[index]
        return replace(one, message=self.prefix + one.message)


@dataclass(frozen=True)
class _Rest:
    """All violations but the first."""

    whole: Violations

    def __len__(self) -> int:
        return len(self.whole) - 1

    def __getitem__(self, index: int, /) -> Violation:
        return self.whole[index + 1]


class PlacementError(ExpertMapsError):
    """A placement breaks at least one rule.

    Attributes:
        violations: every broken rule, ordered by kind, layer, rank and slot; its length is their number, and each is
            made when it is asked for.
    """

    violations: Sequence[Violation]

    def __init__(self, violations: Sequence[Violation]) -> None:
        """Keep every violation, and list the first `limits.MAX_LISTED` in the message."""
        self.violations = violations if isinstance(violations, Violations) else tuple(violations)
        count = len(self.violations)
        if count == 1:
            text = f"invalid placement: {self.violations[0].message}"
        else:
            lines = [f"  {violation.message}" for violation in self.violations[:MAX_LISTED]]
            if count > MAX_LISTED:
                lines.append(f"  and {count - MAX_LISTED} more")
            text = f"invalid placement, {count} violations:\n" + "\n".join(lines)
        super().__init__(text)

    @property
    def summary(self) -> str:
        """One line: the first violation, and how many more there are."""
        more = len(self.violations) - 1
        return self.violations[0].message + (f" (and {more} more violations)" if more else "")

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by what was kept; the message alone makes no error."""
        return _restore, (type(self), self.args, dict(self.__dict__))


def _restore(
    kind: type[PlacementError], args: tuple[object, ...], state: dict[str, object]
) -> PlacementError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error
