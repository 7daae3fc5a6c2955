"""Writes points to InfluxDB: the one importer of influxdb_client.

Speaks the 2.x write interface; a point written twice overwrites itself, so whoever is in doubt writes again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

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


class DatabaseUnavailableError(FedMQError):
    """The database does not take points now; the text says why."""


class Database:
    """One connection to InfluxDB, for one thread."""

    def __init__(self, address: DatabaseAddress) -> None:
        self._address = address
        self._client = InfluxDBClient(url=address.url, token=address.token, org=address.organisation, timeout=int(TIMEOUT_SECONDS * 1000))
        self._api = self._client.write_api(write_options=SYNCHRONOUS)

    def write(self, points: Sequence[Point]) -> int:
        """Write points, each to its bucket; return how many the database refuses for ever (each is logged).

        Raises:
            DatabaseUnavailableError: it can't be reached, is overloaded, or will not let us in; write again later.
        """
        buckets: dict[str, list[str]] = {}
        for point in points:
            buckets.setdefault(self._address.bucket_of(point.measurement), []).append(to_line_protocol(point))
        return sum(self._write_lines(bucket, lines) for bucket, lines in buckets.items())

    def close(self) -> None:
        """Let the connection go."""
        self._api.close()  # type: ignore[no-untyped-call]
        self._client.close()  # type: ignore[no-untyped-call]

    def _write_lines(self, bucket: str, lines: list[str]) -> int:
        try:
            self._api.write(bucket=bucket, record=lines)
        except ApiException as error:
            if error.status not in REFUSED_CONTENT:
                advice = ADVICE.get(error.status, "")
                raise DatabaseUnavailableError(
                    f"{self._address.url} answers {error.status} {error.reason}; {advice}".rstrip("; ")
                ) from None
            if len(lines) == 1:
                text = "database=refused bucket=%s point=%r reason=%r"
                logger.warning(text, bucket, lines[0][:200], str(error.body)[:300])
                return 1
        except (HTTPError, OSError) as error:
            raise DatabaseUnavailableError(f"{self._address.url} does not answer: {error}"[:300]) from None
        else:
            return 0
        # One bad line must not keep the others out: halve until it stands alone.
        middle = len(lines) // 2
        return self._write_lines(bucket, lines[:middle]) + self._write_lines(bucket, lines[middle:])


def to_line_protocol(point: Point) -> str:
    """Return the point in InfluxDB's line protocol, time in nanoseconds."""
    value: dict[str, Any] = {"measurement": point.measurement, "tags": point.tags, "fields": point.fields, "time": point.time_ns}
    return str(Row.from_dict(value, WritePrecision.NS).to_line_protocol())  # type: ignore[arg-type]  # its stub says str
