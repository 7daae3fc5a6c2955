"""Where a database is, and which of its buckets a measurement goes to."""

from __future__ import annotations

from dataclasses import dataclass

from federation.metric_schema import MEASUREMENTS


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseAddress:
    """Where the points go. Samples go to the bucket `{bucket}_samples`, which forgets them after a while."""

    url: str
    token: str
    organisation: str = "fedmq"
    bucket: str = "fedmq"

    def bucket_of(self, measurement: str) -> str:
        """Return the bucket of a measurement."""
        return self.bucket if MEASUREMENTS[measurement].keep == "rounds" else f"{self.bucket}_samples"
