# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The version: the build reads it here."""

from __future__ import annotations

__version__ = "0.1.0"
