"""Runs of any size and state, recorded by the aggregator's own machines on a hand-moved clock.

What a run of the project can't make in a test's time (500 rounds, 50 nodes, 40 days ago), its record and monitor are led
through: the journal is theirs.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from aggregator.monitor import Monitor
from aggregator.record import RunRecord
from federation.messages import Evaluation, LocalMetrics, MetricPoint, MetricsReport, NodeOutcome, NodeStatus, RoundResult, RunState
from federation.metrics import Point
from federation.settings import parse_settings
from federation.transport import Delivered

SECOND = 10**9
DIGEST = "a" * 64
NAMES = ("basophil", "eosinophil", "erythroblast", "immature granulocytes", "lymphocyte", "monocyte", "neutrophil", "platelet")


@dataclass(slots=True, kw_only=True)
class Script:
    """What a run does."""

    run: str
    started_ns: int
    num_rounds: int = 5
    num_done: int | None = None
    """Rounds that end; None for all."""
    num_classes: int = 2
    num_nodes: int = 3
    round_seconds: int = 20
    deadline_seconds: float = 600.0
    sample_seconds: int = 10
    ends: Literal["finished", "stopped", "failed", "silent", "paused", "waiting", "training"] = "finished"
    """How it ends, or what it does when the script is over."""
    lasts_seconds: int = 0
    """How long it goes on after its last round."""
    has_local_classes: bool = True
    seed: int = 1
    dataset: str = "bloodmnist"
    offline: frozenset[str] = frozenset()
    """Nodes that leave after the last round."""
    quiet: frozenset[str] = frozenset()
    """Nodes of whom nothing is heard after the last round."""
    unfit: frozenset[str] = frozenset()
    accuracies: tuple[float, ...] = ()
    """Of the rounds; by default they rise."""


@dataclass(slots=True)
class Recording:
    """A script being played."""

    script: Script
    folder: Path
    now: float = 0.0
    record: RunRecord = field(init=False)
    monitor: Monitor = field(init=False)
    dice: random.Random = field(init=False)
    devices: dict[str, dict[str, float | int]] = field(default_factory=dict)
    """Node -> figures that are other than a healthy one's."""
    has_broker: bool = True
    """Whether the broker tells its figures."""
    num_messages_dropped: int = 0
    telemetry: dict[str, int] = field(default_factory=dict)
    server: dict[str, float] = field(default_factory=dict)
    """The aggregator's own figures that are other than a healthy one's."""
    silent: set[str] = field(default_factory=set)
    """Nodes of whom nothing is heard."""

    def __post_init__(self) -> None:
        script = self.script
        values = {
            "run": script.run,
            "num_rounds": script.num_rounds,
            "data": {"name": script.dataset},
            "rounds": {"min_nodes": script.num_nodes, "deadline_seconds": script.deadline_seconds},
        }
        settings = parse_settings(values)
        names = NAMES if script.num_classes == len(NAMES) else tuple(f"class {index}" for index in range(script.num_classes))
        self.record = RunRecord(out_dir=self.folder, settings=settings, num_nodes=script.num_nodes, class_names=names)
        self.record.open(DIGEST)
        described = {"settings": settings.model_dump(mode="json"), "class_names": list(names)}
        (self.folder / "settings.json").write_text(json.dumps(described), encoding="utf-8")
        self.monitor = Monitor(self.record)
        self.dice = random.Random(script.seed)

    @property
    def nodes(self) -> list[str]:
        """The nodes' names."""
        return [f"pi-{index}" for index in range(self.script.num_nodes)]

    @property
    def now_ns(self) -> int:
        """The moment."""
        return self.script.started_ns + int(self.now * SECOND)

    def begin(self) -> None:
        """Start the aggregator, and let the nodes join."""
        script = self.script
        self.keep(self.monitor.started(self.now, self.now_ns, self.record.begin_life(self.now_ns)))
        for node in self.nodes if script.ends != "waiting" else self.nodes[:1]:
            self.say(f"nodes/{node}/status", self.status(node))

    def train(self, first: int, last: int) -> None:
        """Train some rounds."""
        for number in range(first, last + 1):
            self.state("training", number)
            self.record.note_awaited(self.nodes)
            self.pass_time(self.script.round_seconds)
            self.record.note_evaluating()
            self.keep(self.monitor.tick(self.now, self.now_ns, self._figures))
            self.now += 0.001
            self.record.add_result(self._result(number), self.now_ns)
            self._report_round(number)

    def restart(self, seconds: float) -> None:
        """Let the aggregator be away, and take up the run."""
        self.now += seconds
        settings, names = self.record.settings, self.record.class_names
        self.record = RunRecord(out_dir=self.folder, settings=settings, num_nodes=self.script.num_nodes, class_names=names, is_resumed=True)
        self.record.open(DIGEST)
        self.monitor = Monitor(self.record)
        self.begin()

    def play(self) -> Path:
        """Record the whole run; return its folder."""
        script = self.script
        self.begin()
        num_done = script.num_rounds if script.num_done is None else script.num_done
        self.train(1, num_done)
        self.silent |= script.quiet | script.offline
        for node in sorted(script.offline):
            self.say(f"nodes/{node}/status", NodeStatus(node=node, online=False, instance="i1"))
        self._end(num_done)
        return self.folder

    def _end(self, num_done: int) -> None:
        script = self.script
        match script.ends:
            case "finished":
                self.state("finished", num_done, "all rounds done")
            case "stopped":
                self.state("stopped", num_done, "stopped: by the operator")
            case "failed":
                self.state("stopped", num_done, "5 rounds in a row ended below quorum; check the nodes, then continue with --resume")
            case "paused":
                self.state("paused", num_done, "paused: by the operator")
            case "waiting":
                self.state("waiting", num_done, "waiting for nodes: 1 of at least 3 are fit")
            case "training" | "silent":
                self.state("training", num_done + 1)
                self.record.note_awaited(self.nodes[-1:])
        # Recorded at once: the tick after each message.
        self.now += 0.001
        self.keep(self.monitor.tick(self.now, self.now_ns, self._figures))
        self.pass_time(script.lasts_seconds)

    def state(self, phase: str, number: int, reason: str = "") -> None:
        """Let the aggregator publish the run's state."""
        values = {"run": self.script.run, "num_rounds": self.script.num_rounds, "epoch": 1, "method": "fedavg", "model": {}}
        self.say("state", RunState.model_validate(values | {"phase": phase, "round_number": number, "reason": reason}))

    def say(self, topic: str, message: NodeStatus | RunState | MetricsReport) -> None:
        """Deliver a message of this run to the monitor."""
        delivered = Delivered(topic=f"fedmq/v2/{self.script.run}/{topic}", payload=message.to_payload(), retained=False)
        self.keep(self.monitor.take(delivered, self.now, self.now_ns))

    def keep(self, points: list[Point]) -> None:
        """Record points."""
        self.record.journal.append(points)

    def pass_time(self, seconds: int) -> None:
        """Let the nodes report and the monitor sample for so long."""
        until = self.now + seconds
        while self.now < until:
            step = min(float(self.script.sample_seconds), until - self.now)
            self.now += step
            for node in self.nodes:
                if node not in self.silent:
                    self._report(node, 0, [self._device(node)])
            for name, value in self._broker() if self.has_broker else ():
                self.monitor.take(Delivered(topic=f"$SYS/broker/{name}", payload=value, retained=True), self.now, self.now_ns)
            self.keep(self.monitor.tick(self.now, self.now_ns, self._figures))

    def status(self, node: str) -> NodeStatus:
        """Return what a node says of itself when it joins."""
        problem = "the disk is full" if node in self.script.unfit else ""
        return NodeStatus(node=node, online=True, instance="i1", num_examples=1200, num_cores=4, memory_bytes=4 << 30, problem=problem)

    def _report(self, node: str, number: int, points: list[MetricPoint]) -> None:
        self.say(f"metrics/{node}", MetricsReport(node=node, round_number=number, points=points))

    def _device(self, node: str) -> MetricPoint:
        dice = self.dice
        fields = {
            "cpu": dice.uniform(0.1, 0.9),
            "memory_used": 0.5,
            "memory_used_bytes": 2 << 30,
            "process_memory_bytes": 500 << 20,
            "disk_used": 0.4,
            "disk_free_bytes": 10 << 30,
            "temperature_celsius": dice.uniform(55, 65),
            "throttled": 0,
            "network_sent_bytes": int(self.now * 1e5),
            "network_received_bytes": int(self.now * 1e5),
            "certificate_days": 200.0,
        } | self.devices.get(node, {})
        return MetricPoint(measurement="device", time_ns=self.now_ns + self.nodes.index(node), fields=fields)

    def _broker(self) -> Iterator[tuple[str, bytes]]:
        yield "clients/connected", str(self.script.num_nodes + 2).encode()
        yield "clients/total", str(self.script.num_nodes + 3).encode()
        yield "messages/received", str(int(self.now * 10)).encode()
        yield "messages/sent", str(int(self.now * 12)).encode()
        yield "publish/messages/dropped", str(self.num_messages_dropped).encode()
        yield "store/messages/count", b"100"
        yield "store/messages/bytes", b"100000"
        yield "retained messages/count", b"90"
        yield "bytes/received", str(int(self.now * 1000)).encode()
        yield "bytes/sent", str(int(self.now * 1200)).encode()
        yield "uptime", f"{3600 + int(self.now)} seconds".encode()

    def _figures(self) -> dict[str, dict[str, Any]]:
        telemetry = {"recorded_points": self.record.journal.num_recorded, "rejected_points": 0, "dropped_points": 0, "rejected_payloads": 0}
        telemetry |= {"written_points": self.record.journal.num_recorded, "waiting_bytes": 0}
        return {"telemetry": telemetry | self.telemetry, "run": {"disk_used": 0.3, "process_memory_bytes": 800 << 20} | self.server}

    def _result(self, number: int) -> RoundResult:
        script, classes = self.script, self.script.num_classes
        risen = 0.4 + 0.5 * number / script.num_rounds
        accuracy = script.accuracies[number - 1] if script.accuracies else risen
        matrix = []
        for index in range(classes):
            right = round(100 * min(1.0, accuracy + 0.01 * index / classes))
            row = [0] * classes
            row[index] = right
            row[(index + 1) % classes] += 100 - right
            matrix.append(row)
        recall = [matrix[index][index] / 100 for index in range(classes)]
        scores = {"accuracy": accuracy, "f1_macro": accuracy - 0.02, "f1_weighted": accuracy - 0.01, "loss": 2 * (1 - accuracy)}
        metrics = LocalMetrics(
            loss=1.0,
            download_seconds=1.0,
            train_seconds=10.0,
            samples_per_second=400.0,
            validation_class_accuracy=recall if script.has_local_classes else [],
        )
        return RoundResult(
            run=script.run,
            round_number=number,
            epoch=1,
            previous_result_digest=None,
            method="fedavg",
            aggregated=True,
            global_digest=DIGEST,
            next_global_digest=DIGEST,
            outcomes=[NodeOutcome(node=node, outcome="accepted", num_examples=1200, metrics=metrics) for node in self.nodes],
            evaluation=Evaluation(num_examples=100 * classes, class_accuracy=recall, confusion_matrix=matrix, **scores),
            accepted=script.num_nodes,
            rejected=0,
            discarded=0,
            stragglers=0,
            seconds=float(script.round_seconds),
            phase_seconds={"collect": 15.0, "aggregate": 1.0, "evaluate": 2.0, "download": 1.0, "train": 10.0},
            bytes_up=1_000_000,
            bytes_down=1_000_000,
            diagnostics={"drift": 0.1 * number},
        )

    def _report_round(self, number: int) -> None:
        accuracy = self.record.so_far.accuracy or 0.0
        for index, node in enumerate(self.nodes):
            if node in self.silent:
                continue
            moment = self.now_ns + index
            train = {"loss": 1.0, "download_seconds": 1.0, "train_seconds": 10.0, "samples_per_second": 400.0 + index}
            train |= {"validation_accuracy": accuracy, "validation_loss": 0.5}
            points = [MetricPoint(measurement="train", time_ns=moment, fields=train)]
            points += [self._engine(engine, moment, accuracy) for engine in ("torch", "onnx", "onnx-int8")]
            self._report(node, number, points)
        own = [self._engine(engine, self.now_ns, accuracy) for engine in ("torch", "onnx")]
        self.record.add_own_metrics(own, number)

    def _engine(self, engine: str, time_ns: int, accuracy: float) -> MetricPoint:
        times = {"torch": 3.0, "onnx": 1.0, "onnx-int8": 0.8}
        noise = self.dice.uniform(0.97, 1.03)
        fields: dict[str, float | int] = {
            "num_images": 200,
            "p50_ms": times[engine] * noise,
            "p95_ms": times[engine] * 1.2,
            "p99_ms": times[engine] * 1.4,
            "speedup": 3.0 / times[engine] * noise,
            "model_bytes": 400_000,
            "accuracy": accuracy,
            "is_current": int(engine == "onnx"),
        }
        if engine == "onnx":
            fields |= {"parity": 1, "different_predictions": 0, "convert_seconds": 0.3}
        elif engine == "onnx-int8":
            fields |= {"different_predictions": 2}
        return MetricPoint(measurement="inference", time_ns=time_ns, tags={"engine": engine}, fields=fields)


def play(folder: Path, script: Script) -> Path:
    """Record a run into a new folder; return it."""
    return Recording(script, folder / script.run).play()


def age(out_dir: Path) -> None:
    """Take out of a run's journal what was not recorded before `run_summary`."""
    file = out_dir / "metrics.jsonl"
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        value = json.loads(line)
        if value["measurement"] == "run_summary":
            continue
        value["tags"].pop("label", None)
        if value["measurement"] == "inference" and value["tags"].get("node") == "aggregator":
            del value["tags"]["node"]
        for name in ("images", "taken_for", "taken_for_share", "state"):
            value["fields"].pop(name, None)
        kept.append(json.dumps(value, separators=(",", ":")))
    file.write_text("\n".join(kept) + "\n", encoding="utf-8")
    (out_dir / ".life.json").unlink()
