# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The plugin's metrics on a server beside vllm-ascend: scraped, and held against what its slots say."""

from __future__ import annotations

import urllib.request
from typing import TYPE_CHECKING

from vllm_ascend_moe.core.metric_table import METRICS, PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SECONDS = 60.0


def scrape(url: str) -> dict[str, float]:
    """Return the sum of each of the plugin's samples over its labels, by name.

    Args:
        url: of the server, without a slash at the end.
    """
    from prometheus_client.parser import text_string_to_metric_families

    # No proxy of the environment's stands in front of loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/metrics", timeout=_SECONDS) as answer:
        text = answer.read().decode()
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith(PREFIX):
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def problems(metrics: Mapping[str, float], *, moves: bool, moved: int) -> Iterator[str]:
    """Say what does not fit together, or to what was served.

    Args:
        metrics: as `scrape` returned them, at the end.
        moves: whether experts must have moved.
        moved: slots that hold another expert at the end than at the start.
    """
    absent = sorted(
        {name for metric in METRICS for name in metric.samples if not metric.waits} - set(metrics)
    )
    if absent:
        yield f"/metrics shows no {', '.join(absent)}; expected every metric of the plugin's"
        return
    plans, rearranged, skipped, slots, size = (
        metrics[f"{PREFIX}{name}"]
        for name in (
            "planning_seconds_count",
            "rearrangements_total",
            "rearrangements_skipped_total",
            "moved_slots_total",
            "moved_bytes_total",
        )
    )
    if moves != (rearranged > 0) or (slots > 0) != (size > 0):
        yield (
            f"/metrics counts {rearranged:g} rearrangements, {slots:g} slots and {size:g} bytes; expected "
            f"{'some' if moves else 'none'} of each"
        )
    if slots < moved:
        yield f"/metrics counts {slots:g} moved slots; expected {moved} at least, which hold another expert"
    # One may be planned, and the one before it be moving, as this is read.
    if not 0 <= plans - rearranged - skipped <= 2:  # noqa: PLR2004 - see above
        yield f"/metrics counts {plans:g} plans; expected {rearranged:g} that moved experts and {skipped:g} that did not"
    balance = metrics.get(f"{PREFIX}balancedness", 0.0)
    if plans and not 0 < balance <= 1:
        yield f"/metrics shows a balancedness of {balance:g} after {plans:g} plans; expected one above 0, of 1 at most"


__all__ = ["problems", "scrape"]
