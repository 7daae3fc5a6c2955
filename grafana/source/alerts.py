"""The alert rules: each says what happened and what to look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from grafana.source.panels import ROUNDS, SAMPLES, Json

WINDOW_SECONDS = 120
"""What is sampled every 30 s is looked back on for so long: a run that has ended soon says nothing, and alerts nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One rule: the query's last value of each series, compared with a threshold."""

    uid: str
    title: str
    summary: str
    query: str
    comparison: Literal["lt", "gt"]
    threshold: float
    pending: str = "0s"
    source: Json
    window_seconds: int = WINDOW_SECONDS
    severity: Literal["warning", "critical"] = "warning"

    def to_rule(self) -> Json:
        """Return it as Grafana provisions it."""
        time_range = {"from": self.window_seconds, "to": 0}
        query = {
            "refId": "A",
            "relativeTimeRange": time_range,
            "datasourceUid": self.source["uid"],
            "model": {
                "refId": "A",
                "datasource": dict(self.source),
                "query": self.query,
                "rawQuery": True,
                "resultFormat": "time_series",
                "intervalMs": 1000,
                "maxDataPoints": 43_200,
            },
        }
        last = _expression("B", {"type": "reduce", "expression": "A", "reducer": "last", "settings": {"mode": "dropNN"}})
        evaluator = {"type": self.comparison, "params": [self.threshold]}
        compared = _expression("C", {"type": "threshold", "expression": "B", "conditions": [{"evaluator": evaluator}]})
        return {
            "uid": self.uid,
            "title": self.title,
            "condition": "C",
            "data": [query, last, compared],
            "for": self.pending,
            "noDataState": "OK",
            "execErrState": "Error",
            "annotations": {"summary": self.summary},
            "labels": {"service": "fedmq", "severity": self.severity},
            "isPaused": False,
        }


def _expression(ref_id: str, model: Json) -> Json:
    expression = {"type": "__expr__", "uid": "__expr__"}
    return {
        "refId": ref_id,
        "relativeTimeRange": {"from": 0, "to": 0},
        "datasourceUid": "__expr__",
        "model": {"refId": ref_id, "datasource": expression, **model},
    }


ALERTS = (
    Alert(
        uid="fedmq-node-offline",
        title="Node offline",
        summary="Node {{ $labels.node }} of run {{ $labels.run }} has been offline for 5 minutes: look at its power, network and log.",
        query='SELECT "online" FROM "node" WHERE $timeFilter GROUP BY "run", "node"',
        comparison="lt",
        threshold=1,
        pending="5m",
        source=SAMPLES,
    ),
    Alert(
        uid="fedmq-no-round",
        title="No round for twice the deadline",
        summary="Run {{ $labels.run }} opened no round for twice its deadline: `fedmq status` shows what it waits for.",
        query='SELECT "deadlines_since_round" FROM "run" WHERE $timeFilter GROUP BY "run"',
        comparison="gt",
        threshold=2,
        source=SAMPLES,
        severity="critical",
    ),
    Alert(
        uid="fedmq-accuracy-fell",
        title="Accuracy fell by 5 points in one round",
        summary="The global model of run {{ $labels.run }} lost 5 points of accuracy in its last round: see Federation.",
        query='SELECT "accuracy_change" FROM "round" WHERE $timeFilter GROUP BY "run"',
        comparison="lt",
        threshold=-0.05,
        source=ROUNDS,
        window_seconds=3600,
    ),
    Alert(
        uid="fedmq-messages-dropped",
        title="Broker drops messages",
        summary="The broker dropped messages: a client is slower than its queue. Raise max_queued_messages, or find the slow client.",
        query='SELECT sum("increase") AS "dropped" FROM (SELECT non_negative_difference("messages_dropped") AS "increase" FROM "broker" '
        'WHERE $timeFilter GROUP BY "run") WHERE $timeFilter GROUP BY "run"',
        comparison="gt",
        threshold=0,
        source=SAMPLES,
        window_seconds=600,
    ),
    Alert(
        uid="fedmq-disk-node",
        title="Node's disk nearly full",
        summary="The disk of node {{ $labels.node }} is more than 90 % full: it sits rounds out once an update does not fit.",
        query='SELECT "disk_used" FROM "device" WHERE $timeFilter GROUP BY "run", "node"',
        comparison="gt",
        threshold=0.9,
        source=SAMPLES,
    ),
    Alert(
        uid="fedmq-disk-server",
        title="Server's disk nearly full",
        summary="The disk of run {{ $labels.run }}'s folder is more than 90 % full: make room before points and checkpoints are lost.",
        query='SELECT "disk_used" FROM "run" WHERE $timeFilter GROUP BY "run"',
        comparison="gt",
        threshold=0.9,
        source=SAMPLES,
        severity="critical",
    ),
    Alert(
        uid="fedmq-certificate",
        title="Certificate expires within 14 days",
        summary="The certificate of node {{ $labels.node }} expires within 14 days: run `fedmq node renew {{ $labels.node }}`.",
        query='SELECT "certificate_days" FROM "device" WHERE $timeFilter GROUP BY "node"',
        comparison="lt",
        threshold=14,
        source=SAMPLES,
    ),
)


def rules_file() -> Json:
    """Return the whole provisioning file."""
    group = {"orgId": 1, "name": "fedmq", "folder": "FedMQ", "interval": "1m", "rules": [alert.to_rule() for alert in ALERTS]}
    return {"apiVersion": 1, "groups": [group]}
