"""Hourly means of samples, as the database's own task makes them (influxdb/first-start.sh): for what it never saw in time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TypeAlias

from aggregator.database_address import HOURLY
from federation.metrics import Point

MEASUREMENTS_MEANT = ("device", "broker")
HOUR_NS = 3_600 * 10**9

Key: TypeAlias = tuple[str, int, tuple[tuple[str, str], ...]]
"""Measurement, end of the hour, tags."""


class HourlyMeans:
    """Sums of samples by hour."""

    def __init__(self) -> None:
        self._sums: dict[Key, dict[str, list[float]]] = defaultdict(dict)

    def add(self, point: Point) -> None:
        """Take in a point; others than samples of devices and the broker are left out."""
        if point.measurement not in MEASUREMENTS_MEANT:
            return
        # The task stamps a mean with the end of its hour.
        end_ns = (point.time_ns // HOUR_NS + 1) * HOUR_NS
        sums = self._sums[point.measurement, end_ns, tuple(sorted(point.tags.items()))]
        for name, value in point.fields.items():
            if isinstance(value, (int, float)):
                total = sums.setdefault(name, [0.0, 0])
                total[0] += value
                total[1] += 1

    def points(self) -> Iterator[Point]:
        """Yield the means, all of them real numbers."""
        for (measurement, end_ns, tags), sums in self._sums.items():
            means = {name: total / count for name, (total, count) in sums.items()}
            yield Point(measurement=f"{measurement}{HOURLY}", tags=dict(tags), fields=means, time_ns=end_ns)
