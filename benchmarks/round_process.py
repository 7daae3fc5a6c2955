"""One process of the rounds benchmark: the real services, with training and evaluation left out."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from aggregator import events as aggregator_events
from aggregator.database import Database
from aggregator.database_address import DatabaseAddress
from aggregator.forwarder import Forwarder
from aggregator.record import RunRecord
from aggregator.telemetry import Telemetry
from aggregator.wiring import build_service_for
from edge_node import events as node_events
from edge_node.device import DeviceSampler
from edge_node.device_report import DeviceReporter
from edge_node.participant import Participant
from edge_node.service import EdgeNodeService, will_payload
from edge_node.spool import Spool
from edge_node.work import LocalUpdate
from federation import models, topics
from federation.broker_address import BrokerAddress
from federation.codec import layout_of
from federation.learning.algorithms import NodeState
from federation.learning.exchange import capabilities
from federation.learning.sets import Sets, TensorSet
from federation.messages import Evaluation, NodeStatus, RoundPlan
from federation.mqtt import MqttTransport
from federation.params import Params
from federation.process import SYSTEM_CLOCK, Process
from federation.settings import ModelSettings, RunSettings, parse_settings
from federation.signing import Signer, TrustedKeys
from federation.transport import OnEvent, Will

IMAGE_SHAPE = (3, 28, 28)
CLASS_NAMES = tuple(str(index) for index in range(9))

SAMPLE_SECONDS = 2.0
"""Of the devices, with telemetry on."""


def _model_bytes(name: str) -> int:
    settings = ModelSettings.model_validate({"name": name})
    return layout_of(models.signature(settings, IMAGE_SHAPE, len(CLASS_NAMES))).total_bytes


MODELS: Mapping[str, int] = {name: _model_bytes(name) for name in ("simple_cnn", "resnet18")}
"""Model -> its encoded size in bytes."""


class NoTraining:
    """A learner that returns the global model as its update.

    Args:
        seconds: it takes so long over it.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds

    def train(self, plan: RoundPlan, sets: Sets, kept: NodeState, should_stop: Callable[[], bool]) -> LocalUpdate:  # noqa: ARG002
        """Return the global model, read into memory as training would."""
        model = sets["model"].held()
        time.sleep(self._seconds)
        return LocalUpdate(sets=Sets({"model": model}), num_examples=1, loss=0.0, train_seconds=0.0, samples_per_second=0.0)

    def whole_model(self, plan: RoundPlan, sets: Sets, kept: NodeState) -> TensorSet | None:  # noqa: ARG002
        """Return the global model."""
        return sets["model"]


def main() -> int:
    """Run one role to the end of the run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["aggregator", "node"])
    for name in ("name", "model", "folder"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("port", "rounds", "nodes"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--train-seconds", type=float, default=0.0)
    parser.add_argument("--telemetry", choices=["as_ever", "off", "on"], default="as_ever")
    parser.add_argument("--keys", type=Path, help="folder of NAME.key and trusted/NAME.pub: sign and check")
    parser.add_argument("--bare", action="store_true", help="archive nothing, leave every round on the broker")
    options = parser.parse_args()
    rounds = {"min_nodes": options.nodes, "quorum": 1.0}
    settings = parse_settings({"run": "bench", "num_rounds": options.rounds, "model": {"name": options.model}, "rounds": rounds})
    address = BrokerAddress(host="127.0.0.1", port=options.port, username=options.name, password=os.environ["FEDMQ_BENCH_PASSWORD"])
    folder = Path(options.folder)
    signer = Signer(options.keys / f"{options.name}.key") if options.keys else None
    if options.role == "aggregator":
        trusted_keys = TrustedKeys(options.keys / "trusted") if options.keys else None
        return _lead(settings, address, folder, options.telemetry, signer, trusted_keys, keeps_rounds=not options.bare)
    sample_seconds = SAMPLE_SECONDS if options.telemetry == "on" else None
    return _take_part(options.name, address, folder, signer, train_seconds=options.train_seconds, sample_seconds=sample_seconds)


def _lead(
    settings: RunSettings,
    address: BrokerAddress,
    folder: Path,
    telemetry: str,
    signer: Signer | None,
    trusted_keys: TrustedKeys | None,
    *,
    keeps_rounds: bool,
) -> int:
    process = Process()
    transport = MqttTransport(address, client_id="bench-aggregator", on_event=process.put)

    def skip_evaluation(_params: Params) -> Evaluation | None:
        return None

    service = build_service_for(
        settings=settings,
        initial=models.parameters_of(models.build(settings.model, IMAGE_SHAPE, len(CLASS_NAMES), seed=0)),
        image_shape=IMAGE_SHAPE,
        class_names=CLASS_NAMES,
        evaluate_global=skip_evaluation,
        state_dir=folder / "aggregator",
        out_dir=folder / "out",
        is_resuming=False,
        transport=transport,
        background=process.background,
        aside=process.aside,
        clock=SYSTEM_CLOCK,
        keeps_rounds=keeps_rounds,
        signer=signer,
        trusted_keys=trusted_keys,
    )
    service.record.takes_metrics = telemetry == "as_ever"
    measured = _telemetry(service.record, address) if telemetry == "on" else None
    (folder / "ready").touch()
    if measured is not None:
        measured.start()
    transport.start()
    process.run(service, time_passed=aggregator_events.TimePassed())
    process.drain()
    transport.stop(60.0)
    if measured is not None:
        measured.stop(60.0, has_ended=True)
    return 0 if service.stopped and not service.stopped.failed else 1


def _telemetry(record: RunRecord, address: BrokerAddress) -> Telemetry:
    def connect(on_event: OnEvent) -> MqttTransport:
        return MqttTransport(address, client_id="bench-telemetry", on_event=on_event, keeps_session=True, manual_ack=True)

    url = os.environ.get("FEDMQ_BENCH_INFLUX_URL")
    forwarder = Forwarder(record.journal, Database(DatabaseAddress(url=url, token="none"))) if url else None  # noqa: S106 - the bench's own
    return Telemetry(record=record, connect=connect, forwarder=forwarder, clock=SYSTEM_CLOCK)


def _take_part(
    name: str, address: BrokerAddress, folder: Path, signer: Signer | None, *, train_seconds: float, sample_seconds: float | None
) -> int:
    process = Process()
    status = NodeStatus(
        node=name,
        online=True,
        instance=name,
        num_examples=1,
        image_shape=list(IMAGE_SHAPE),
        num_classes=len(CLASS_NAMES),
        capabilities=capabilities(),
    )
    will = Will(topic=str(topics.StatusTopic("bench", name)), payload=will_payload(status))
    transport = MqttTransport(address, client_id=f"bench-{name}", on_event=process.put, will=will)
    service = EdgeNodeService(
        participant=Participant(node=name),
        transport=transport,
        spool=Spool(folder / name, "bench"),
        learner=NoTraining(train_seconds),
        deployer=None,
        status=status,
        run="bench",
        background=process.background,
        clock=SYSTEM_CLOCK,
        signer=signer,
    )
    reporter = None
    if sample_seconds is not None:
        sampler = DeviceSampler(state_dir=folder)
        reporter = DeviceReporter(sampler, transport, run="bench", node=name, clock=SYSTEM_CLOCK, sample_seconds=sample_seconds)
    transport.start()
    if reporter is not None:
        reporter.start()
    process.run(service, time_passed=node_events.TimePassed())
    process.drain()
    if reporter is not None:
        reporter.stop()
    transport.stop(10.0, final=service.offline_status())
    return 0


if __name__ == "__main__":
    sys.exit(main())
