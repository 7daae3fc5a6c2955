"""Writes points to InfluxDB: the one importer of influxdb_client.

Speaks the 2.x write interface; a point written twice overwrites itself, so whoever is in doubt writes again.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from influxdb_client.client.influxdb_client import InfluxDBClient
from influxdb_client.client.write.point import Point as Row
from influxdb_client.client.write_api import SYNCHRONOUS
from influxdb_client.domain.write_precision import WritePrecision
from influxdb_client.rest import ApiException
from urllib3.exceptions import HTTPError

from aggregator.database_address import DatabaseAddress
from federation.errors import FedMQError
from federation.metrics import Point

logger = logging.getLogger("aggregator")

TIMEOUT_SECONDS = 10.0
"""Of one write: a batch takes some 100 ms; longer, and the database counts as down."""

REFUSED_CONTENT = (400, 413, 422)
"""Statuses that sending the same again does not cure."""

ADVICE = {
    401: "check FEDMQ_INFLUX_TOKEN_FILE",
    403: "the token may not write there: check FEDMQ_INFLUX_TOKEN_FILE",
    404: "no such organisation or bucket: check FEDMQ_INFLUX_ORG and FEDMQ_INFLUX_BUCKET",
}


Refusals: TypeAlias = Mapping[str, int]
"""Reason -> how many points the database refuses for ever."""

TOO_OLD = "older than the bucket keeps"
OTHER_KIND = "a field of another kind than the bucket has"
UNREADABLE = "not a point"
LIMIT = "over a limit of the database"
OTHER = "for another reason"

_REASONS = (("retention", TOO_OLD), ("type conflict", OTHER_KIND), ("unable to parse", UNREADABLE), ("max-", LIMIT))
_PARTIAL = "partial write"
_DROPPED = re.compile(r"dropped[= ](\d+)")


class DatabaseUnavailableError(FedMQError):
    """The database does not take points now; the text says why."""


class Database:
    """One connection to InfluxDB, for one thread."""

    def __init__(self, address: DatabaseAddress) -> None:
        self._address = address
        self.num_requests = 0
        self._client = InfluxDBClient(url=address.url, token=address.token, org=address.organisation, timeout=int(TIMEOUT_SECONDS * 1000))
        self._api = self._client.write_api(write_options=SYNCHRONOUS)

    def write(self, points: Sequence[Point]) -> Refusals:
        """Write points, each to its bucket, one request a bucket; return what the database refuses for ever (it is logged).

        Raises:
            DatabaseUnavailableError: it can't be reached, is overloaded, or will not let us in; write again later.
        """
        buckets: dict[str, list[str]] = {}
        for point in points:
            buckets.setdefault(self._address.bucket_of(point.measurement), []).append(to_line_protocol(point))
        refused: Counter[str] = Counter()
        for bucket, lines in buckets.items():
            refused.update(self._write_lines(bucket, lines))
        return refused

    def close(self) -> None:
        """Let the connection go."""
        self._api.close()  # type: ignore[no-untyped-call]
        self._client.close()  # type: ignore[no-untyped-call]

    def _write_lines(self, bucket: str, lines: list[str]) -> Counter[str]:
        self.num_requests += 1
        try:
            self._api.write(bucket=bucket, record=lines)
        except ApiException as error:
            if error.status not in REFUSED_CONTENT:
                advice = ADVICE.get(error.status, "")
                raise DatabaseUnavailableError(
                    f"{self._address.url} answers {error.status} {error.reason}; {advice}".rstrip("; ")
                ) from None
            body = str(error.body)
            if _PARTIAL in body:
                # It has kept the rest: this is the whole answer, and to write the good ones again would be in vain.
                refused = refusals_of(body)
                logger.warning("database=refused bucket=%s points=%d reason=%r", bucket, refused.total(), body[:300])
                return refused
            if len(lines) == 1:
                logger.warning("database=refused bucket=%s point=%r reason=%r", bucket, lines[0][:200], body[:300])
                return Counter({_reason_of(body): 1})
        except (HTTPError, OSError) as error:
            raise DatabaseUnavailableError(f"{self._address.url} does not answer: {error}"[:300]) from None
        else:
            return Counter()
        # One bad line must not keep the others out: halve until it stands alone.
        middle = len(lines) // 2
        return self._write_lines(bucket, lines[:middle]) + self._write_lines(bucket, lines[middle:])


def refusals_of(body: str) -> Counter[str]:
    """Return what InfluxDB's answer to a partial write says: how many points it dropped, and why."""
    dropped = _DROPPED.search(body)
    count = max(int(dropped[1]) if dropped else 0, body.count("unable to parse"), 0 if dropped else 1)
    return Counter({_reason_of(body): count}) if count else Counter()


def _reason_of(body: str) -> str:
    return next((reason for sign, reason in _REASONS if sign in body), OTHER)


def to_line_protocol(point: Point) -> str:
    """Return the point in InfluxDB's line protocol, time in nanoseconds."""
    value: dict[str, Any] = {"measurement": point.measurement, "tags": point.tags, "fields": point.fields, "time": point.time_ns}
    return str(Row.from_dict(value, WritePrecision.NS).to_line_protocol())  # type: ignore[arg-type]  # its stub says str
