# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Files for those who watch a server: a Grafana dashboard and Prometheus' alert rules over the plugin's metrics."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent
DASHBOARD = _HERE / "grafana_dashboard.json"
ALERTS = _HERE / "alerts.yaml"

__all__ = ["ALERTS", "DASHBOARD"]
