# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Every limit on counts and sizes, in one place.

They are far beyond any real model or server, and keep a file that claims more from costing more than about a GiB of
memory or ten seconds. Each is compared in Python integers before anything is allocated, and named in the message.
"""

from __future__ import annotations

# Files.

MAX_FILE_BYTES = 512 * 2**20
"""Bytes of one file, and of what a compressed one unpacks to."""

MAX_JSON_BYTES = 256 * 2**20
"""Bytes of one JSON text: it is held as bytes, as text, and once more as what it says."""

MAX_CSV_BYTES = 128 * 2**20
"""Bytes that the text of a CSV file takes; one character beyond 16 bits makes all of them take four."""

MAX_JSON_MEMORY = 960 * 2**20
"""Bytes that reading a JSON text may take by an upper bound: its lists and objects cost up to thirty times their text."""

MAX_JSON_LISTS = 2**22
"""Lists and objects of one JSON text: a map of 94 layers on 2,048 ranks has 0.4 million."""

MAX_DEPTH = 64
"""How deep objects and lists of a JSON or YAML file are nested."""

MAX_DIGITS = 1000
"""Digits of one integer in a text; past thousands of them, Python's own conversion takes the square of their number."""

MAX_ARRAYS = 2**16
"""Arrays of one ``.npz`` or safetensors file."""

MAX_HEADER_BYTES = 16 * 2**20
"""Bytes of a safetensors header; about 200 for each tensor."""

MAX_PICKLE_BYTES = 2**21
"""Bytes of what a ``.pt`` file holds beside the numbers of its tensors; each byte may be a step of torch's reader."""

MAX_PICKLE_VALUES = 2**20
"""Values of a ``.pt`` file, a tensor being one."""

MAX_TENSORS = 2**14
"""Entries of a ``.pt`` file, one for each tensor and a few more; torch takes a quarter of a millisecond for each."""

# Counts.

MAX_LAYERS = 4096
"""L."""

MAX_EXPERTS = 65536
"""E."""

MAX_RANKS = 65536
"""R."""

MAX_SLOTS = 2**23
"""L · P: slots of all layers; and so L · E and L · R."""

MAX_TABLE = 2**27
"""Numbers of one derived table, like L · R · E: 94 layers of 512 experts on 2,048 ranks are 98.6 million."""

MAX_COPIES = 2**25
"""Numbers of a table in a file that follows from its map, like L · E · X; both are held to be compared."""

MAX_LOAD_NUMBERS = 50_000_000
"""Numbers of one load, steps · L · E: 1000 steps of 94 layers of 512 experts are 48.1 million."""

MAX_STEPS = 2**20
"""Steps of a load."""

MAX_ROWS = 2**16
"""Rows of a routing table, its period in tokens."""

MAX_CELLS = 2**22
"""Cells of a CSV file: text takes longer to read than arrays. MindIE's file of a rank has 0.5 million in 1000 steps."""

MAX_LINES = 800_000
"""Lines of a CSV file: 8,500 steps of 94 layers."""

# Messages.

MAX_LISTED = 20
"""Violations that a message lists; the rest are counted."""
