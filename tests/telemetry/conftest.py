"""What the telemetry tests share: a real database, and a run's record to fill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmq.private_broker import PrivateBroker
from tests.requirements import require
from tests.telemetry.influx import InfluxServer
from tests.telemetry.run_fixture import MeasuredRun, measure


@pytest.fixture(scope="session")
def influx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InfluxServer]:
    """A real InfluxDB that all tests of a session share: create a database of your own (`bucket`)."""
    server = InfluxServer(tmp_path_factory.mktemp("influx"), require("database"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_influx(tmp_path: Path) -> Iterator[InfluxServer]:
    """A real InfluxDB for one test alone, which may stop and start it."""
    server = InfluxServer(tmp_path / "influx", require("database"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def bucket(influx: InfluxServer, run_name: str) -> str:
    """A bucket that no other test uses, and its samples beside it."""
    influx.create(run_name, f"{run_name}_samples")
    return run_name


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeasuredRun]:
    """A finished run of three node processes, whole in a real InfluxDB; made once, read by many tests."""
    influxd, mosquitto = require("database"), require("mosquitto")
    folder = tmp_path_factory.mktemp("measured")
    server = InfluxServer(folder / "influx", influxd)
    server.start()
    try:
        with PrivateBroker(folder / "broker", nodes=("node-0", "node-1", "node-2"), program=mosquitto) as broker:
            yield measure(folder, server, broker)
    finally:
        server.stop()
