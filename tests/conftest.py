"""Fixtures that every room's tests share. A test that uses one also gets the marker of what it needs."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmq.private_broker import PrivateBroker
from tests.brokers.ejabberd import EjabberdBroker
from tests.requirements import require

NODES = ("node-0", "node-1", "node-2")
"""The nodes that may log in to the brokers below."""

MARKER_OF_FIXTURE = {
    "data_dir": "data",
    "mosquitto": "mosquitto",
    "own_mosquitto": "mosquitto",
    "ejabberd": "ejabberd",
    "own_ejabberd": "ejabberd",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the fixtures they use, so that `-m "not mosquitto"` leaves none behind."""
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if fixture in MARKER_OF_FIXTURE:
                item.add_marker(MARKER_OF_FIXTURE[fixture])


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of `.npz` image sets."""
    return require("data")


@pytest.fixture(scope="session")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateBroker]:
    """A real broker that all tests of a session share: its host, port and passwords (user -> password).

    Use a run name of your own (`run_name`), and leave it running; to break a broker, take `own_mosquitto`.
    """
    with PrivateBroker(tmp_path_factory.mktemp("broker"), nodes=NODES, program=require("mosquitto")) as broker:
        yield broker


@pytest.fixture
def own_mosquitto(tmp_path: Path) -> Iterator[PrivateBroker]:
    """A real broker for one test alone, which may stop, kill and restart it."""
    with PrivateBroker(tmp_path / "broker", nodes=NODES, program=require("mosquitto")) as broker:
        yield broker


@pytest.fixture(scope="session")
def ejabberd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EjabberdBroker]:
    """A second kind of MQTT 5 broker, shared as `mosquitto` is."""
    with EjabberdBroker(tmp_path_factory.mktemp("ejabberd"), program=require("ejabberd")) as broker:
        yield broker


@pytest.fixture
def own_ejabberd(tmp_path: Path) -> Iterator[EjabberdBroker]:
    """One for one test alone, which may stop, kill and restart it."""
    with EjabberdBroker(tmp_path / "ejabberd", program=require("ejabberd")) as broker:
        yield broker


@pytest.fixture
def run_name() -> str:
    """A run name that no other test uses, so that tests can share a broker."""
    return f"test-{secrets.token_hex(6)}"
