"""FedMQ over an MQTT 5 broker that is no Mosquitto: the same run, the same digest, and all of it read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.brokers.ejabberd import EjabberdBroker
from tests.brokers.trial import try_broker, undisturbed_digest


@pytest.mark.slow
def test_a_disturbed_run_ends_with_the_same_model_and_is_read_back_whole(own_ejabberd: EjabberdBroker, tmp_path: Path) -> None:
    """The aggregator is killed in one round, the broker in another; `rounds`, `replay` and `recover` then find every round.

    `scripts/brokers` tries Mosquitto the same way.
    """
    expected = undisturbed_digest(tmp_path / "simulated")
    assert try_broker(own_ejabberd, tmp_path / "run", expected).faults == []
