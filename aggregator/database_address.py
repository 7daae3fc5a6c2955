"""Where a database is, and which of its buckets a measurement goes to."""

from __future__ import annotations

from dataclasses import dataclass

from federation.metric_schema import MEASUREMENTS

HOURLY = "_hourly"
"""How the names of the means of samples end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseAddress:
    """Where the points go. Samples go to the bucket `{bucket}_samples`, which forgets them after a while."""

    url: str
    token: str
    organisation: str = "fedmq"
    bucket: str = "fedmq"

    def bucket_of(self, measurement: str) -> str:
        """Return the bucket of a measurement; hourly means are kept with the rounds."""
        is_kept = measurement.endswith(HOURLY) or MEASUREMENTS[measurement].keep == "rounds"
        return self.bucket if is_kept else f"{self.bucket}_samples"
