"""A site with three honest nodes, its guard, and a fourth that is enrolled like them and is nobody's friend."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import tomli_w

from fedmq.private_broker import PrivateBroker
from tests.end_to_end.processes import clean_environment
from tests.faults.federation import AGGREGATOR, NODES, PARTS, Part
from tests.faults.shipped import ShippedFederation, ShippedPart
from tests.faults.starter import Starter
from tests.hostile.site_broker import SiteBroker
from tests.requirements import require

MALLORY = "mallory"
GUARD = "guard"
NUM_ROUNDS = 6
"""The first without the hostile node, which comes when the others are there, and five with it."""

ROUNDS: Mapping[str, object] = {"min_nodes": 3, "quorum": 1.0, "grace_seconds": 2.0, "deadline_seconds": 20.0}
"""The default quorum; a deadline that a silent node may use up in several rounds without the test's taking an hour."""

TRAINING: Mapping[str, object] = {"local_epochs": 4, "learning_rate": 0.05, "device": "cpu"}
"""Brings digits above 90 % in so many rounds, so that what a poisoned update costs is seen."""


class HostileFederation(ShippedFederation):
    """Aggregator, guard and three honest nodes around a site's broker.

    Args:
        folder: everything of this federation.
        starter: starts the modules.
    """

    broker: SiteBroker

    def __init__(self, folder: Path, *, starter: Starter) -> None:
        super().__init__(folder, starter=starter, influx=None, num_rounds=NUM_ROUNDS, rounds=ROUNDS)
        self.parts[GUARD] = ShippedPart(name=GUARD)
        self.module_of[GUARD] = "aggregator.guard"
        settings = self.read_run_file() | {"training": TRAINING}
        self.run_file.write_text(tomli_w.dumps(settings), encoding="utf-8")

    def make_broker(self) -> PrivateBroker:
        """Return a site's broker; its bundles and secrets hold every key."""
        broker = SiteBroker(self.folder / "broker", nodes=(*NODES, MALLORY), program=require("mosquitto"))
        (self.folder / "trusted").symlink_to(broker.trusted_keys)
        return broker

    def __enter__(self) -> Self:
        """Start the broker."""
        super().__enter__()
        self.proxies[GUARD] = self.proxies[AGGREGATOR]
        return self

    def environment(self, part: Part) -> dict[str, str]:
        """Return what Compose gives a service."""
        secrets = self.broker.site.folder / "secrets"
        shared = {
            "FEDMQ_STATE_DIR": str(self.folder / part.name),
            "FEDMQ_CACHE_DIR": str(self.folder / "cache"),
            "FEDMQ_RUN_FILE": str(self.run_file),
            "FEDMQ_TRUSTED_KEYS": str(self.folder / "trusted"),
        }
        if part.name in NODES:
            bundle = self.broker.bundles[part.name]
            own = {
                "FEDMQ_NODE": part.name,
                "FEDMQ_PARTITION_INDEX": str(NODES.index(part.name)),
                "FEDMQ_CORES": "1",
                "FEDMQ_BROKER_HOST": "localhost",
                "FEDMQ_BROKER_PORT": str(self.broker.fleet_port),
                "FEDMQ_TLS_CA": str(bundle / "ca.crt"),
                "FEDMQ_TLS_CERTIFICATE": str(bundle / "node.crt"),
                "FEDMQ_TLS_KEY": str(bundle / "node.key"),
                "FEDMQ_SIGNING_KEY": str(bundle / "signing.key"),
            }
            return clean_environment(**shared, **own)
        user = part.name if part.name in self.broker.passwords else AGGREGATOR
        inner = {
            "FEDMQ_BROKER_HOST": self.broker.host,
            "FEDMQ_BROKER_PORT": str(self.broker.port),
            "FEDMQ_BROKER_USERNAME": user,
            "FEDMQ_BROKER_PASSWORD_FILE": str(secrets / f"{user}_password"),
        }
        if part.name == GUARD:
            return clean_environment(**inner, FEDMQ_STATE_DIR=shared["FEDMQ_STATE_DIR"])
        own = {
            "FEDMQ_OUT_DIR": str(self.folder / "out"),
            "FEDMQ_RESUME": "1",
            "FEDMQ_SIGNING_KEY": str(secrets / "aggregator_signing.key"),
        }
        return clean_environment(**shared, **inner, **own)

    def start_all(self) -> None:
        """Start the guard and then everyone else."""
        self.start([GUARD, *PARTS])
