# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A report on a load: one HTML file with figures, tables, the advice and what it rests on."""

from __future__ import annotations

from expert_maps.report.finding import Findings, find
from expert_maps.report.writing import as_html

__all__ = ["Findings", "as_html", "find"]
