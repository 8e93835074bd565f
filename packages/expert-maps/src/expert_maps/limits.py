# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Every limit on counts and sizes, in one place.

They are far beyond any real model or server, and keep a file that claims more from costing more than about a GiB of
memory or ten seconds. Each is compared in Python integers before anything is allocated, and named in the message.
"""

from __future__ import annotations

MAX_FILE_BYTES = 512 * 2**20
"""Bytes of one file, and of what a compressed one unpacks to."""

MAX_DEPTH = 64
"""How deep objects and lists of a JSON or YAML file are nested."""

MAX_LAYERS = 4096
"""L."""

MAX_EXPERTS = 65536
"""E."""

MAX_RANKS = 65536
"""R."""

MAX_SLOTS = 2**24
"""L · P: slots of all layers."""

MAX_TABLE = 2**27
"""Numbers of one derived table, like L · R · E."""

MAX_COUNTS = 2**25
"""Numbers of one load: steps · L · E."""

MAX_CELLS = 2**23
"""Cells of a CSV file: text takes longer to read than arrays."""

MAX_LISTED = 20
"""Violations that a message lists; the rest are counted."""
