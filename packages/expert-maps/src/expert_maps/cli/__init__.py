# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The command line `expert-maps`: one file per subcommand."""

from __future__ import annotations

from expert_maps.cli.app import app, main

__all__ = ["app", "main"]
