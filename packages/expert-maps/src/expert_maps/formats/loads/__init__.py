# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Reading expert loads of every system that records them, and writing them.

One file per form, each with the source of its facts; `registry` lists them. A form is recognised by the file's content
and, where the content cannot tell, by its name; what cannot be told is refused with the option that says it. Nothing is
ever unpickled.
"""

from __future__ import annotations

from expert_maps.formats.loads.reading import LoadFile, inspect_load, read_load
from expert_maps.formats.loads.registry import FORM_NAMES
from expert_maps.formats.loads.values import LOAD_KEYS
from expert_maps.formats.loads.writing import export_load, load_keys, read_array, write_load

__all__ = [
    "FORM_NAMES",
    "LOAD_KEYS",
    "LoadFile",
    "export_load",
    "inspect_load",
    "load_keys",
    "read_array",
    "read_load",
    "write_load",
]
