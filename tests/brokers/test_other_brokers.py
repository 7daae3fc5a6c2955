"""FedMQ over MQTT 5 brokers: the same run, the same digest, and all of it read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.brokers.trial import try_broker, undisturbed_digest


@pytest.mark.slow
@pytest.mark.parametrize(
    "broker", [pytest.param("own_mosquitto", marks=pytest.mark.mosquitto), pytest.param("own_ejabberd", marks=pytest.mark.ejabberd)]
)
def test_a_disturbed_run_ends_with_the_same_model_and_is_read_back_whole(
    broker: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The aggregator is killed in one round, the broker in another; `rounds`, `replay` and `recover` then find every round."""
    expected = undisturbed_digest(tmp_path / "simulated")
    assert try_broker(request.getfixturevalue(broker), tmp_path / "run", expected).faults == []
