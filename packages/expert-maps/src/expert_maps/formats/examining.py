# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""All that is wrong with a map file, where reading it ends at the first: rules that are broken, and contradictions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from expert_maps.errors import ExpertMapsError, FormatError
from expert_maps.files import describe
from expert_maps.formats.contents import read_content
from expert_maps.formats.contradictions import Listing, contradiction
from expert_maps.formats.mapfile import RanksUnsaidError
from expert_maps.formats.placements import READERS
from expert_maps.formats.recognising import check_form, form_of, kinds_in, name_kinds, recognise

if TYPE_CHECKING:
    from expert_maps.errors import Violations
    from expert_maps.files import AnyPath
    from expert_maps.formats.contents import Content
    from expert_maps.formats.mapfile import Asked, Form, MapFile


@dataclass(frozen=True)
class Examined:
    """What is right and wrong with a map.

    Attributes:
        found: the map as it stands in the file; None where its slots cannot be told to ranks.
        violations: all that is wrong.
        breaks_rules: whether its slots are no valid placement; what follows from them may not be asked then.
    """

    found: MapFile | None
    violations: Violations
    breaks_rules: bool


def examine_map(path: AnyPath, asked: Asked, form: str | None = None) -> Examined:
    """Read a map as `expert_maps.inspect_map`, and list what that would refuse.

    Args:
        path: the file.
        asked: what is said of it.
        form: its format, where the content leaves it open.

    Raises:
        FormatError: it cannot be read as a map at all, or not without what it does not say.
    """
    check_form(form)
    content = read_content(path, as_yaml=form == "tensorrt-llm")
    try:
        kinds = kinds_in(content)
        maps = [kind for kind in kinds if kind != "a load"]
        if len(kinds) == 1 or not maps:
            return _examine(content, asked, recognise(content, form))
        forms = tuple(dict.fromkeys(form_of(kind, content) for kind in maps))
        return _examine_each(content, asked, forms, name_kinds(kinds))
    except ExpertMapsError as error:
        msg = f"{describe(path)}: {error}"
        raise (RanksUnsaidError if isinstance(error, RanksUnsaidError) else FormatError)(msg) from error


def _examine(content: Content, asked: Asked, form: Form) -> Examined:
    listing, found = Listing(), None
    try:
        found = READERS[form](content, replace(asked, listing=listing))
    except RanksUnsaidError:
        raise
    except ExpertMapsError as error:
        if not listing.violations:
            raise
        listing.add((contradiction(f"the rest of the file is not checked: {error}"),))
    return Examined(found, listing.violations, listing.breaks_rules)


def _examine_each(content: Content, asked: Asked, forms: tuple[Form, ...], text: str) -> Examined:
    """Examine what each of several forms says in one file, and whether they say the same."""
    listing = Listing()
    listing.add((contradiction(text),))
    examined: list[tuple[Form, Examined]] = []
    for form in forms:
        try:
            one = _examine(content, asked, form)
        except RanksUnsaidError:
            raise
        except ExpertMapsError as error:
            listing.add((contradiction(f"as {form}: {error}"),))
            continue
        listing.add(one.violations.named(f"as {form}: "))
        examined.append((form, one))
    if not examined:
        raise FormatError(text)
    first, kept = examined[0]
    for form, one in examined[1:]:
        if one.found is not None and kept.found is not None and one.found.placement != kept.found.placement:
            listing.add((contradiction(f"as {form}: other slots than as {first}"),))
    # That each form does not know the keys of the others is said already.
    found = None if kept.found is None else replace(kept.found, warnings=())
    return Examined(found, listing.violations, kept.breaks_rules)
