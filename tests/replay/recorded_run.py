"""A finished run of `FederationPair`, recorded once and read by many tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from aggregator.archive import Archive
from aggregator.broker_rounds import BrokerRounds
from federation.signing import TrustedKeys
from federation.topic_filter import matches
from tests.machines.federation_pair import FederationPair
from tests.replay.keys import make_keys

RUN = "pair"


class RecordedRun:
    """Five signed rounds of three nodes, on an in-memory broker and in an archive."""

    num_rounds = 5

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        make_keys(folder, "aggregator", "n0", "n1", "n2")
        self.folder = folder
        self.pair = FederationPair(folder / "pair", num_rounds=self.num_rounds, keys=folder)
        self.pair.start()
        self.pair.run()
        assert self.pair.aggregator_service.stopped is not None
        assert not self.pair.aggregator_service.stopped.failed
        self.retained = dict(self.pair.broker.retained)
        self.archive = Archive(folder / "pair" / "out" / "rounds")
        self.trusted_keys = TrustedKeys(folder / "trusted")

    def broker(self, **changes: bytes | None) -> BrokerRounds:
        """Return the broker's rounds, some topics' payloads changed; None takes one away."""
        retained = {topic: payload for topic, payload in (self.retained | changes).items() if payload is not None}

        def read(filters: Sequence[str], **_bounds: object) -> Iterator[tuple[str, bytes]]:
            for topic, payload in retained.items():
                if any(matches(topic_filter, topic) for topic_filter in filters):
                    yield topic, payload

        return BrokerRounds(RUN, read)
