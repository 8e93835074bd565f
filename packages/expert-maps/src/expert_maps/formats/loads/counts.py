# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a form makes of its files, before layers and steps are chosen."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from expert_maps.errors import LoadError
from expert_maps.formats.loads.values import check_table, listed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from expert_maps.formats.loads.document import Document
    from expert_maps.formats.loads.options import Files, LoadOptions

    Float64Array = NDArray[np.float64]

By = Literal["expert", "slot", "either"]


@dataclass(frozen=True)
class Counts:
    """Counts, and what is known of their axes.

    Attributes:
        values: float64 [steps, rows, columns].
        by: what a column is: a logical expert, a physical slot, or what the caller says (a slot if a map is given).
        labels: the file's own number of each row, or None where it has none.
        all_layers: whether the rows are all layers of the model, dense ones with zeros.
        ranks: ranks and slots of each, where the file tells them.
        has_said_layers: whether the caller's number of layers was needed to read the file, and fits it.
        details: what else is worth saying in one line.
        warnings: what is suspicious.
    """

    values: Float64Array
    by: By = "either"
    labels: tuple[int, ...] | None = None
    all_layers: bool = False
    ranks: tuple[int, int] | None = None
    has_said_layers: bool = False
    details: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())


class Read(Protocol):
    """How a form reads its files."""

    def __call__(self, documents: Sequence[Document], options: LoadOptions) -> Counts:
        """Return the counts of all files together, or raise a load error."""
        ...


@dataclass(frozen=True)
class Form:
    """One form of load files.

    Attributes:
        name: what ``--format`` takes.
        title: how it is called in a sentence.
        matches: whether a file is of this form for certain.
        read: its reader; refuses files of another form.
    """

    name: str
    title: str
    matches: Callable[[Document], bool]
    read: Read


def combine(parts: Sequence[Counts], files: Files | None, default: Files | None = None) -> Counts:
    """Take several files together as steps, one after another, or as ranks, whose counts are added.

    Args:
        parts: what each file holds.
        files: what the caller says that they are.
        default: what they are by their form; None if it does not tell.

    Raises:
        LoadError: nobody says what they are, or they differ in shape.
    """
    if len(parts) == 1:
        return parts[0]
    what = files or default
    if what is None:
        msg = (
            f"{len(parts)} files; expected --files ranks (counts of the same steps on several ranks, to be added) "
            "or --files steps (one after another); where each has the experts of one rank, it is --format mindie"
        )
        raise LoadError(msg)
    first = parts[0]
    shapes = [part.values.shape if what == "ranks" else part.values.shape[1:] for part in parts]
    if len(set(shapes)) > 1 or len({part.labels for part in parts}) > 1:
        kinds = listed(sorted({str(list(shape)) for shape in shapes}))
        msg = (
            f"the files differ in their layers, experts or steps (shapes {kinds}); expected the same in each"
        )
        raise LoadError(msg)
    if what == "ranks":
        values = np.sum([part.values for part in parts], axis=0)
    else:
        check_table((sum(part.values.shape[0] for part in parts), *first.values.shape[1:]))
        values = np.concatenate([part.values for part in parts])
    said = f"{len(parts)} files, {'added' if what == 'ranks' else 'taken as steps'}"
    warnings = tuple(dict.fromkeys(text for part in parts for text in part.warnings))
    return replace(first, values=values, details=(*first.details, said), warnings=warnings)
