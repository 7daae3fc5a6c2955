"""One process of a fault test: the real services over the real transport, with arithmetic in place of learning.

The arithmetic depends on (global model, node, round) alone, and takes a set time; so the final digest is known to
be the same whatever happens on the way, and a process starts in half a second. tests/faults/shipped.py is the federation
of `python -m aggregator` and `python -m edge_node`.
"""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from aggregator import events as aggregator_events
from aggregator.assembly import build_service_for
from edge_node import events as node_events
from edge_node.participant import Participant
from edge_node.service import EdgeNodeService, will_payload
from edge_node.spool import Spool
from edge_node.work import LocalUpdate
from federation import topics
from federation.broker_address import BrokerAddress
from federation.clock import Clock
from federation.learning.algorithms import NodeState
from federation.learning.exchange import capabilities
from federation.learning.sets import Sets, TensorSet
from federation.messages import Evaluation, NodeStatus, RoundPlan
from federation.mqtt import MqttTransport
from federation.params import Params
from federation.process import Process, set_up_logging
from federation.settings import load_run_file
from federation.signing import Signer, TrustedKeys
from federation.transport import OnEvent, Transport, Will

IMAGE_SHAPE = (1, 8, 8)
CLASS_NAMES = ("a", "b")
SIDE = 400
"""Of the weight matrix by default: 640 KB, ten chunks."""

KEEP_ALIVE_SECONDS = 2
"""By default; short, so that a frozen process is noticed within a test."""


class ArithmeticLearner:
    """Mixes the global model with noise of (node, round)."""

    def __init__(self, node: str, seconds: float) -> None:
        self._node = node
        self._seconds = seconds

    def train(self, plan: RoundPlan, sets: Sets, kept: NodeState, should_stop: Callable[[], bool]) -> LocalUpdate:  # noqa: ARG002
        """Return the mixture, after the set time."""
        time.sleep(self._seconds)
        noise = np.random.default_rng([plan.seed, plan.round_number, *self._node.encode()])
        model = sets["model"]
        trained = {name: (0.9 * model[name] + 0.1 * noise.standard_normal(model[name].shape)).astype(np.float32) for name in sorted(model)}
        return LocalUpdate(
            sets=Sets({"model": trained}),
            num_examples=10 + self._node.encode()[-1],
            loss=1.0,
            train_seconds=self._seconds,
            samples_per_second=1.0,
        )

    def whole_model(self, plan: RoundPlan, sets: Sets, kept: NodeState) -> TensorSet | None:  # noqa: ARG002
        """Return the global model."""
        return sets["model"]


def main() -> int:
    """Run one role to the end of the run, or of its luck; return the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["aggregator", "node"])
    for name in ("name", "folder", "run-file", "keys"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--train-seconds", type=float, default=0.1)
    parser.add_argument("--side", type=int, default=SIDE)
    parser.add_argument("--clock-offset-seconds", type=float, default=0.0)
    parser.add_argument("--keep-alive-seconds", type=int, default=KEEP_ALIVE_SECONDS)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    set_up_logging("INFO")
    return _lead(options) if options.role == "aggregator" else _take_part(options)


def _lead(options: argparse.Namespace) -> int:
    settings = load_run_file(Path(options.run_file))
    folder, keys = Path(options.folder), Path(options.keys)
    process = Process()
    transport = _connect(options, f"{settings.run}-aggregator-{secrets.token_hex(4)}", process.put, will=None)
    initial = np.random.default_rng(settings.seed)
    service = build_service_for(
        settings=settings,
        initial={
            "bias": initial.standard_normal(7).astype(np.float32),
            "weight": initial.standard_normal((options.side, options.side)).astype(np.float32),
        },
        image_shape=IMAGE_SHAPE,
        class_names=CLASS_NAMES,
        evaluate_global=_score,
        state_dir=folder / "aggregator",
        out_dir=folder / "out",
        is_resuming=options.resume,
        transport=transport,
        background=process.background,
        aside=process.aside,
        clock=_clock(options),
        signer=Signer(keys / "aggregator.key"),
        trusted_keys=TrustedKeys(keys / "trusted"),
    )
    transport.start()
    process.run(service, time_passed=aggregator_events.TimePassed())
    process.drain()
    transport.stop(60.0)
    if service.stopped is None:
        return 3
    logging.getLogger("faults").info("stopped reason=%r", service.stopped.reason)
    return 1 if service.stopped.failed else 0


def _take_part(options: argparse.Namespace) -> int:
    settings = load_run_file(Path(options.run_file))
    run, node = settings.run, options.name
    process = Process()
    status = NodeStatus(
        node=node,
        online=True,
        instance=secrets.token_hex(8),
        num_examples=200,
        image_shape=list(IMAGE_SHAPE),
        num_classes=len(CLASS_NAMES),
        capabilities=capabilities(),
    )
    will = Will(topic=str(topics.StatusTopic(run, node)), payload=will_payload(status))
    transport = _connect(options, f"{run}-{node}", process.put, will=will)
    service = EdgeNodeService(
        participant=Participant(node=node),
        transport=transport,
        spool=Spool(Path(options.folder) / node, run),
        learner=ArithmeticLearner(node, options.train_seconds),
        deployer=None,
        status=status,
        run=run,
        background=process.background,
        clock=_clock(options),
        signer=Signer(Path(options.keys) / f"{node}.key"),
    )
    transport.start()
    process.run(service, time_passed=node_events.TimePassed())
    process.drain()
    transport.stop(10.0, final=service.offline_status())
    return 0 if service.stopped is None or isinstance(service.stopped, node_events.Stop) else 1


def _connect(options: argparse.Namespace, client_id: str, on_event: OnEvent, *, will: Will | None) -> Transport:
    address = BrokerAddress(host="127.0.0.1", port=options.port, username=options.name, password=os.environ["FEDMQ_FAULT_PASSWORD"])

    return MqttTransport(address, client_id=client_id, on_event=on_event, will=will, keep_alive_seconds=options.keep_alive_seconds)


def _clock(options: argparse.Namespace) -> Clock:
    offset_ns = int(options.clock_offset_seconds * 1e9)
    return Clock(monotonic=time.monotonic, time_ns=lambda: time.time_ns() + offset_ns)


def _score(params: Params) -> Evaluation:
    facts: dict[str, Any] = {"num_examples": 2, "class_accuracy": [0.5, 0.5], "confusion_matrix": [[1, 0], [1, 0]]}
    scores = {"accuracy": 0.5, "f1_macro": 0.5, "f1_weighted": 0.5, "loss": float(np.abs(params["bias"]).sum())}
    return Evaluation.model_validate(facts | scores)


if __name__ == "__main__":
    sys.exit(main())
