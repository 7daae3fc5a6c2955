"""The monitor: turns what the broker tells about a run into points. Pure: no threads, no clock, no I/O.

`take` for each message, `tick` now and then; both return the points to record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aggregator.broker_figures import BrokerFigures
from aggregator.node_watch import NodeWatch
from aggregator.record import RunRecord
from aggregator.run_life import Life
from aggregator.run_summary import note_of, summary_fields
from federation import topics
from federation.condition import NodeCondition, RunCondition, bare_reason, condition_of_run
from federation.errors import RejectReason, RemoteProtocolError
from federation.messages import MetricsReport, NodeStatus, RunState, parse
from federation.metrics import Point, make_point
from federation.rejections import NO_NODE
from federation.transport import Delivered

SAMPLE_SECONDS = 30.0
"""How often a run says that it lives, and which nodes do: alerts after 5 minutes see ten of these."""

BROKER_SECONDS = 10.0
"""Mosquitto's own `sys_interval`."""

SETTLE_SECONDS = 2.0
"""All of the broker's retained figures have come by then."""

MAX_NODES = 1000
"""Nodes of a run that are measured; each adds some ten series to the database, for ever."""

_REPEATED = ("state", "seen_ms", "note", "rounds", "nodes", "seconds", "seconds_left")
"""Fields of `run_summary` that change while a state lasts."""

MAX_NODES_PLOTTED_TEXT = "more than %d nodes report metrics: the others' points are dropped"


class Monitor:
    """One run as the broker shows it.

    Args:
        record: the run's folder; its settings, and its counts of what was refused.
    """

    def __init__(self, record: RunRecord) -> None:
        self._record = record
        self._nodes = NodeWatch()
        self._is_connected = True
        self._life: Life | None = None
        self._told: tuple[RunCondition, int, str] | None = None
        self._reporting: set[str] = set()
        self._broker = BrokerFigures()
        self._state: RunState | None = None
        self._round_since: float | None = None
        self._next_sample = 0.0
        self._next_broker = 0.0

    @property
    def has_ended(self) -> bool:
        """Whether the run has."""
        return self.condition.has_ended

    @property
    def condition(self) -> RunCondition:
        """What state the run is in; waiting until its aggregator says another."""
        so_far = self._record.so_far
        return condition_of_run(self._state, is_evaluating=so_far.is_evaluating) if self._state else RunCondition.WAITING

    @property
    def num_online(self) -> int:
        """How many nodes are connected."""
        return self._nodes.num_online

    def take(self, message: Delivered, now: float, now_ns: int) -> list[Point]:
        """Take in one message; return its points.

        Args:
            message: as delivered.
            now: seconds of the monotonic clock, which intervals are measured with: the other one may be set.
            now_ns: nanoseconds since 1970, which points are stamped with.

        Raises:
            RemoteProtocolError: it is not what the topic promises.
        """
        topic, payload = message.topic, message.payload
        if topic.startswith("$SYS/"):
            self._broker.take(topic, payload)
            return []
        if not payload:
            return []  # a retained message was cleared
        parsed = topics.parse_topic(topic)
        match parsed:
            case topics.MetricsTopic():
                report = parse(MetricsReport, payload)
                if report.node != parsed.node:
                    raise RemoteProtocolError(f"metrics of {report.node!r} from {parsed.node!r}", reason=RejectReason.INVALID_MESSAGE)
                self._admit(parsed.node)
                self._nodes.take_report(parsed.node, now)
                return self._record.checked_points(parsed.node, report, now_ns=now_ns)
            case topics.StatusTopic():
                status = parse(NodeStatus, payload)
                if status.node != parsed.node:
                    raise RemoteProtocolError(f"status of {status.node!r} from {parsed.node!r}", reason=RejectReason.INVALID_MESSAGE)
                self._admit(parsed.node)
                return self._on_status(status, now, now_ns, is_old=message.retained)
            case topics.StateTopic():
                return self._on_state(parse(RunState, payload), now, now_ns, is_old=message.retained)
        raise RemoteProtocolError(f"nobody asked for {topic!r}", reason=RejectReason.UNKNOWN_TOPIC)

    def tick(self, now: float, now_ns: int, figures: Callable[[], Mapping[str, Any]]) -> list[Point]:
        """Return the samples that are due.

        Args:
            now: as for `take`.
            now_ns: likewise.
            figures: returns `run` and `telemetry` fields that only the process knows, by measurement.
        """
        points: list[Point] = []
        if now >= self._next_broker:
            self._next_broker = now + BROKER_SECONDS
            points += self._broker_points(now_ns)
        if now >= self._next_sample:
            self._next_sample = now + SAMPLE_SECONDS
            points += self.samples(now, now_ns, figures)
        if self._is_connected:
            points += [self._node_point(status, condition, now_ns) for status, condition in self._nodes.changed(now)]
        return points + self._summary_points(now_ns, is_due=False)

    def samples(self, now: float, now_ns: int, figures: Callable[[], Mapping[str, Any]]) -> list[Point]:
        """Return what is said of nodes, run and telemetry every so often; arguments as for `tick`."""
        known = figures()
        points = self._broker_points(now_ns) + self._summary_points(now_ns, is_due=True)
        if self._is_connected:
            # Of a broker that is gone nobody knows who is online: no point says more than an old one.
            points += [self._node_point(status, condition, now_ns) for status, condition in self._nodes.conditions(now)]
        points.append(self._point("telemetry", {}, known["telemetry"], now_ns))
        points += self._rejection_points(now_ns)
        if not self.has_ended:
            points.append(self._point("run", {}, {**self._run_fields(now), **known["run"]}, now_ns))
        return points

    def started(self, now: float, now_ns: int, life: Life | None) -> list[Point]:
        """Return the event that this aggregator has started; from now on samples are taken.

        Args:
            now: as for `take`.
            now_ns: likewise.
            life: of the run, which begins or goes on; None where the run's folder could not say, then no summary is made.
        """
        self._next_broker = now + SETTLE_SECONDS
        self._life = None if life is None or life.is_over else life
        return [
            self._event("aggregator_started", "aggregator", "the aggregator started", now_ns),
            *self._summary_points(now_ns, is_due=True),
        ]

    def linked(self, now: float, *, is_connected: bool) -> None:
        """Take in that the broker is there, or gone: what nobody could hear makes no node silent."""
        self._is_connected = is_connected
        self._nodes.forgive(now)

    def _summary_points(self, now_ns: int, *, is_due: bool) -> list[Point]:
        """Return the run as one row, where that has changed or is due; nothing once its end was told."""
        if self._life is None or (self._told is not None and self._told[0].has_ended):
            return []
        condition, so_far = self.condition, self._record.so_far
        missing = self._record.settings.rounds.min_nodes - self._nodes.num_fit
        reason = bare_reason(self._state) if self._state else ""
        note = note_of(condition, reason=reason, rounds=so_far, num_missing=missing)
        # Each node's update changes what a training run waits for; the samples say so soon enough.
        key = (condition, so_far.num_done, note if condition is RunCondition.WAITING else "")
        if key == self._told and not is_due:
            return []
        fields = summary_fields(
            condition,
            facts=self._record.facts,
            rounds=so_far,
            note=note,
            started_ms=self._life.started_ms,
            now_ms=now_ns // 10**6,
            nodes=(self.num_online, max(len(self._nodes), self._record.settings.rounds.min_nodes)),
        )
        if self._told is None and self._life.is_new:
            fields["life"] = self._life.number
        elif key == self._told:
            fields = {name: fields[name] for name in _REPEATED}
        self._told = key
        return [self._point("run_summary", {}, fields, now_ns)]

    def _rejection_points(self, now_ns: int) -> list[Point]:
        points = []
        for entry in self._record.rejections.entries:
            node = {} if entry.node == NO_NODE else {"node": entry.node}
            points.append(self._point("rejection", {**node, "reason": entry.reason}, {"count": entry.count}, now_ns))
        return points

    def _broker_points(self, now_ns: int) -> list[Point]:
        fields = self._broker.sample()
        return [self._point("broker", {}, fields, now_ns)] if fields else []

    def _on_status(self, status: NodeStatus, now: float, now_ns: int, *, is_old: bool) -> list[Point]:
        before = self._nodes.status(status.node)
        if before and before.online and not status.online and before.instance != status.instance:
            return []  # the will of a process that a newer one of the same node has replaced
        self._nodes.take_status(status, now)
        points = [self._node_point(status, condition, now_ns) for status, condition in self._nodes.changed(now)]
        was_online = before is not None and before.online
        if status.online and not was_online and not is_old:
            points.append(self._event("node_joined", status.node, f"{status.node} joined", now_ns))
        if was_online and not status.online:
            points.append(self._event("node_lost", status.node, f"{status.node} is gone", now_ns))
        return points

    def _on_state(self, state: RunState, now: float, now_ns: int, *, is_old: bool) -> list[Point]:
        before, self._state = self._state, state
        is_new_round = state.phase == "training" and (
            before is None or before.phase != "training" or before.round_number != state.round_number
        )
        if before is None or is_new_round:
            self._round_since = now
        if is_new_round and not is_old:
            opened = self._event("round_opened", "aggregator", f"round {state.round_number} of {state.num_rounds} opened", now_ns)
            return [opened, self._point("run", {}, self._run_fields(now), now_ns)]
        if self.has_ended and not is_old and (before is None or before.phase != state.phase):
            text = f"run {state.phase}" + (f": {state.reason}" if state.reason else "")
            return [self._event("run_ended", "aggregator", text, now_ns)]
        return []

    def _run_fields(self, now: float) -> dict[str, Any]:
        seconds = None if self._round_since is None else now - self._round_since
        deadline_seconds = self._record.settings.rounds.deadline_seconds
        return {
            "round_number": self._state.round_number if self._state else 0,
            "num_rounds": self._record.settings.num_rounds,
            "nodes_online": self.num_online,
            "seconds_since_round": seconds,
            "deadlines_since_round": None if seconds is None else seconds / deadline_seconds,
        }

    def _admit(self, node: str) -> None:
        if node not in self._reporting:
            if len(self._reporting) >= MAX_NODES:
                raise RemoteProtocolError(MAX_NODES_PLOTTED_TEXT % MAX_NODES, reason=RejectReason.UNKNOWN_NODE)
            self._reporting.add(node)

    def _node_point(self, status: NodeStatus, condition: NodeCondition, now_ns: int) -> Point:
        return self._point("node", {"node": status.node}, _node_fields(status, condition), now_ns)

    def _event(self, kind: str, node: str, text: str, now_ns: int) -> Point:
        round_number = self._state.round_number if self._state else 0
        return self._point("event", {"kind": kind, "node": node}, {"round_number": round_number, "text": text}, now_ns)

    def _point(self, measurement: str, tags: Mapping[str, str], fields: Mapping[str, Any], now_ns: int) -> Point:
        return make_point(measurement, {**self._record.tags, **tags}, fields, now_ns)


def _node_fields(status: NodeStatus, condition: NodeCondition) -> dict[str, int]:
    described = {name: getattr(status, name) or None for name in ("num_examples", "num_cores", "memory_bytes")}
    known = {name: value for name, value in described.items() if value is not None}
    return {"state": int(condition), "online": int(status.online), "fit": int(status.online and not status.problem), **known}
