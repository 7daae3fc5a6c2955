"""The aggregator's settings, read from the environment once, by `__main__`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import StringConstraints, model_validator

from aggregator.database_address import DatabaseAddress
from federation.environment import BrokerEnvironment


class AggregatorConfig(BrokerEnvironment):
    """Everything the aggregator process is told from outside; what it trains stands in the run file."""

    run_file: Path
    data_dir: Path | None = None
    cache_dir: Path = Path("~/.cache/fedmq").expanduser()
    state_dir: Path
    out_dir: Path
    resume: bool = False
    hold: bool = False
    """Where a supervisor would start the process again for ever: one that can't begin stays, unhealthy, until it is told to end."""
    influx_url: Annotated[str, StringConstraints(pattern=r"^https?://[^/\s]+")] | None = None
    influx_token_file: Path | None = None
    influx_org: str = "fedmq"
    influx_bucket: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = "fedmq"

    @model_validator(mode="after")
    def _database_has_token(self) -> AggregatorConfig:
        if self.influx_url and not (self.influx_token_file and self.influx_token_file.is_file()):
            raise ValueError(
                "set FEDMQ_INFLUX_TOKEN_FILE to the file of InfluxDB's token (`fedmq init` makes it), or unset FEDMQ_INFLUX_URL"
            )
        return self

    @property
    def database(self) -> DatabaseAddress | None:
        """Where points are written to, or None for metrics.jsonl alone."""
        if self.influx_url is None or self.influx_token_file is None:
            return None
        token = self.influx_token_file.read_text(encoding="utf-8").strip()
        return DatabaseAddress(url=self.influx_url, token=token, organisation=self.influx_org, bucket=self.influx_bucket)
