"""The alert rules: each a condition over last values, a sentence that says what happened, and the page that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from grafana.source.dashboard import UIDS
from grafana.source.devices import CERTIFICATE_DAYS, FULL_DISK, HOT_CELSIUS
from grafana.source.fields import Json
from grafana.source.queries import ROUNDS, SAMPLES

SPOKEN_SECONDS = 150
"""A run speaks every 30 s: one of whom no point is as young has ended, or its aggregator is silent; other rules leave it alone."""

NODE_SECONDS = 75
"""Nodes' states come every 30 s: an older one is no news."""

DAY_SECONDS = 86_400
HALF_DAY_SECONDS = 21_600
ALERTS_PAGE = "docs/alerts.md"
GOES_ON = "$run < 4"


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """The last value of a query, series by series, under a name."""

    name: str
    query: str
    source: Json
    seconds: int
    """How far back it looks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One rule. Values of several queries are joined by their tags; what has no partner is left out."""

    uid: str
    """Never changed while the title stays: Grafana would not start."""
    title: str
    values: Sequence[Value]
    condition: str
    pending: str
    summary: str
    page: str
    panel: int
    severity: Literal["warning", "critical"] = "warning"
    is_about_errors: bool = False
    """It fires when its query can't be answered; every other rule is quiet then, for it would say what is not so."""

    @property
    def anchor(self) -> str:
        """Where the documents say what to do."""
        return f"{ALERTS_PAGE}#{self.title.lower().replace(' ', '-').replace(chr(39), '')}"

    def to_rule(self) -> Json:
        """Return it as Grafana provisions it."""
        data: list[Json] = []
        for index, value in enumerate(self.values):
            ref = chr(ord("A") + index)
            data += [
                _query(ref, value),
                _expression(value.name, type="reduce", expression=ref, reducer="last", settings={"mode": "dropNN"}),
            ]
        return {
            "uid": f"fedmq-{self.uid}",
            "title": self.title,
            "condition": "condition",
            "data": [*data, _expression("condition", type="math", expression=self.condition)],
            "for": self.pending,
            "noDataState": "OK",
            "execErrState": "Alerting" if self.is_about_errors else "OK",
            "annotations": {
                "summary": self.summary,
                "what_to_do": self.anchor,
                "__dashboardUid__": UIDS[self.page],
                "__panelId__": str(self.panel),
            },
            "labels": {"service": "fedmq", "severity": self.severity},
            "isPaused": False,
        }


def _query(ref: str, value: Value) -> Json:
    model = {
        "refId": ref,
        "datasource": dict(value.source),
        "query": value.query,
        "rawQuery": True,
        "resultFormat": "time_series",
        "intervalMs": 1000,
        "maxDataPoints": 43_200,
    }
    window = {"from": value.seconds, "to": 0}
    return {"refId": ref, "relativeTimeRange": window, "datasourceUid": value.source["uid"], "model": model}


def _expression(ref: str, **model: Any) -> Json:
    source = {"type": "__expr__", "uid": "__expr__"}
    window = {"from": 0, "to": 0}
    return {"refId": ref, "relativeTimeRange": window, "datasourceUid": "__expr__", "model": {"refId": ref, "datasource": source, **model}}


def _last(name: str, selected: str, measurement: str, seconds: int, *, source: Json = SAMPLES, tags: str = '"run"') -> Value:
    query = f'SELECT {selected} AS "v" FROM "{measurement}" WHERE $timeFilter GROUP BY {tags}'
    return Value(name=name, query=query, source=source, seconds=seconds)


def _run(seconds: int = SPOKEN_SECONDS) -> Value:
    return _last("run", 'last("state")', "run_summary", seconds, source=ROUNDS)


def _node(name: str, selected: str, measurement: str, seconds: int) -> Value:
    return _last(name, selected, measurement, seconds, tags='"run", "node"')


def _rise(name: str, measurement: str, field: str, seconds: int) -> Value:
    rises = f'SELECT non_negative_difference("{field}") AS "i" FROM "{measurement}" WHERE $timeFilter GROUP BY "run"'
    query = f'SELECT sum("i") AS "v" FROM ({rises}) WHERE $timeFilter GROUP BY "run"'
    return Value(name=name, query=query, source=SAMPLES, seconds=seconds)


def _heard(measurement: str, field: str, seconds: int, source: Json) -> Value:
    """Return how many points of the last two minutes there are, 0 of those that were heard in the window and are silent now."""
    counts = f'SELECT count("{field}") AS "c" FROM "{measurement}" WHERE $timeFilter GROUP BY time(1m), "run" fill(0)'
    # `last` straight over a count with fill(0) gives nothing; over one more level it does.
    means = f'SELECT moving_average("c", 2) AS "n" FROM ({counts}) GROUP BY "run"'
    query = f'SELECT last("n") AS "n" FROM ({means}) WHERE $timeFilter GROUP BY "run"'
    return Value(name="heard", query=query, source=source, seconds=seconds)


NODE_STATE = _node("node", 'last("state")', "node", NODE_SECONDS)
NODE_OF_RUN = "Node {{ $labels.node }} of run {{ $labels.run }}"

ALERTS: Sequence[Alert] = (
    Alert(
        uid="node-offline",
        title="Node offline",
        values=(NODE_STATE, _run()),
        condition=f"$node == 0 && {GOES_ON}",
        pending="2m",
        summary=f"{NODE_OF_RUN} is offline: look at its power, network and log.",
        page="devices",
        panel=5,
    ),
    Alert(
        uid="node-silent",
        title="Node silent",
        values=(NODE_STATE, _run()),
        condition=f"$node == 1 && {GOES_ON}",
        pending="1m",
        summary=f"{NODE_OF_RUN} is connected but sends nothing: it hangs, or its network is half open.",
        page="devices",
        panel=5,
    ),
    Alert(
        uid="node-unfit",
        title="Node unfit",
        values=(NODE_STATE, _run()),
        condition=f"$node == 2 && {GOES_ON}",
        pending="5m",
        summary=f"{NODE_OF_RUN} is online but unfit: `fedmq status` shows why.",
        page="devices",
        panel=5,
    ),
    Alert(
        uid="aggregator-silent",
        title="Aggregator silent",
        values=(_run(DAY_SECONDS), _heard("run_summary", "state", DAY_SECONDS, ROUNDS)),
        condition=f"{GOES_ON} && $heard == 0",
        pending="1m",
        severity="critical",
        summary="Run {{ $labels.run }} has not ended, but its aggregator sends nothing: is it up, and does it reach the database?",
        page="server",
        panel=1,
    ),
    Alert(
        uid="run-waits",
        title="Run waits for nodes",
        values=(_run(),),
        condition="$run == 1",
        pending="5m",
        summary="Run {{ $labels.run }} waits for nodes: fewer are online than a round needs.",
        page="federation",
        panel=6,
    ),
    Alert(
        uid="no-round",
        title="No round for twice the deadline",
        values=(_last("late", 'last("deadlines_since_round")', "run", SPOKEN_SECONDS), _run()),
        condition=f"$late > 2 && $run > 1 && {GOES_ON}",
        pending="0s",
        severity="critical",
        summary="Run {{ $labels.run }} opened no round for twice its deadline: `fedmq status` shows what it waits for.",
        page="federation",
        panel=6,
    ),
    Alert(
        uid="accuracy-fell",
        title="Accuracy 5 points below the best round",
        values=(
            _last("best", 'max("accuracy")', "round", DAY_SECONDS, source=ROUNDS),
            _last("now", 'last("accuracy")', "round", DAY_SECONDS, source=ROUNDS),
            _run(),
        ),
        condition=f"$best - $now > 0.05 && {GOES_ON}",
        pending="0s",
        summary="The global model of run {{ $labels.run }} is more than 5 points below its best round of the last day.",
        page="federation",
        panel=7,
    ),
    Alert(
        uid="messages-dropped",
        title="Broker drops messages",
        values=(_rise("dropped", "broker", "messages_dropped", 300),),
        condition="$dropped > 0",
        pending="0s",
        summary="The broker of run {{ $labels.run }} dropped {{ $values.dropped }} messages in 5 minutes: a client "
        "is slower than its queue.",
        page="server",
        panel=3,
    ),
    Alert(
        uid="broker-silent",
        title="Broker silent",
        values=(_heard("broker", "uptime_seconds", HALF_DAY_SECONDS, SAMPLES), _run(NODE_SECONDS)),
        condition=f"$heard == 0 && {GOES_ON}",
        pending="1m",
        severity="critical",
        summary="The broker of run {{ $labels.run }} says nothing of itself: is it up?",
        page="server",
        panel=2,
    ),
    Alert(
        uid="disk-node",
        title="Node's disk nearly full",
        values=(_node("full", 'last("disk_used")', "device", 600),),
        condition=f"$full > {FULL_DISK}",
        pending="0s",
        summary=f"The disk of {NODE_OF_RUN[0].lower()}{NODE_OF_RUN[1:]} is {{{{ humanizePercentage $values.full.Value "
        f"}}}} full: it sits rounds "
        "out once an update does not fit.",
        page="devices",
        panel=5,
    ),
    Alert(
        uid="disk-server",
        title="Server's disk nearly full",
        values=(_last("full", 'last("disk_used")', "run", 600),),
        condition=f"$full > {FULL_DISK}",
        pending="0s",
        severity="critical",
        summary="The disk of run {{ $labels.run }}'s folder is {{ humanizePercentage $values.full.Value }} full: "
        "make room before points and "
        "checkpoints are lost.",
        page="server",
        panel=6,
    ),
    Alert(
        uid="node-slowed",
        title="Node slowed down",
        values=(_node("slow", 'mean("throttled")', "device", 120),),
        condition="$slow > 0.5",
        pending="1m",
        summary=f"{NODE_OF_RUN} is slowed by heat or low voltage: look at its fan and power supply.",
        page="devices",
        panel=4,
    ),
    Alert(
        uid="node-hot",
        title="Node hot",
        values=(_node("hot", 'mean("temperature_celsius")', "device", 120),),
        condition=f"$hot > {HOT_CELSIUS}",
        pending="1m",
        summary='The processor of node {{ $labels.node }} of run {{ $labels.run }} is at {{ printf "%.0f" '
        "$values.hot.Value }} °C: a Raspberry Pi "
        "slows down from 80 °C.",
        page="devices",
        panel=4,
    ),
    Alert(
        uid="certificate",
        title="Certificate expires within 14 days",
        values=(_node("days", 'last("certificate_days")', "device", 600),),
        condition=f"$days < {CERTIFICATE_DAYS}",
        pending="0s",
        summary='The certificate of node {{ $labels.node }} expires in {{ printf "%.0f" $values.days.Value }} days: run `fedmq node renew '
        "{{ $labels.node }}`.",
        page="devices",
        panel=4,
    ),
    Alert(
        uid="telemetry-waits",
        title="Telemetry waits for the database",
        values=(_last("waiting", 'min("waiting_bytes")', "telemetry", 120),),
        condition="$waiting > 500000",
        pending="1m",
        summary="{{ humanize1024 $values.waiting.Value }}B of points of run {{ $labels.run }} wait for the database: "
        "it is slow, or was away.",
        page="server",
        panel=4,
    ),
    Alert(
        uid="points-lost",
        title="Points lost",
        values=(_rise("lost", "telemetry", "dropped_points", 600),),
        condition="$lost > 0",
        pending="0s",
        severity="critical",
        summary="{{ $values.lost }} points of run {{ $labels.run }} were dropped: its metrics.jsonl is full.",
        page="server",
        panel=5,
    ),
    Alert(
        uid="database",
        title="Database does not answer",
        values=(
            Value(name="answer", query='SELECT last("state") AS "v" FROM "run_summary" WHERE $timeFilter', source=ROUNDS, seconds=300),
        ),
        condition="$answer > 100",
        pending="1m",
        severity="critical",
        summary="Grafana gets no answer from InfluxDB: no other rule can fire until it is back.",
        page="server",
        panel=1,
        is_about_errors=True,
    ),
)


def rules_file() -> Json:
    """Return the whole provisioning file."""
    group = {"orgId": 1, "name": "fedmq", "folder": "FedMQ", "interval": "30s", "rules": [alert.to_rule() for alert in ALERTS]}
    return {"apiVersion": 1, "groups": [group]}
