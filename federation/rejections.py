"""The boundary at which a message that can't be handled stops: named, counted, and the process goes on."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock

from federation import topics
from federation.errors import RejectReason, RemoteProtocolError

MAX_KEPT = 100
"""Pairs of node and reason that are told apart: the newest ones; `Rejections.counts` misses none."""

NO_NODE = "-"
"""Stands for the sender of a topic that names none."""

MAX_TOPIC_CHARACTERS = 120
MAX_DETAIL_CHARACTERS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """What one node has sent in vain, for one reason."""

    node: str
    reason: RejectReason
    count: int
    topic: str
    """Of the newest."""
    detail: str
    """Likewise."""


class Rejections:
    """Counts refused payloads by node and reason. Any thread may call any method.

    The 1st, 2nd, 4th, 8th ... of each reason is logged: a node gone mad must not fill the disk with its log.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._lock = Lock()
        self._entries: OrderedDict[tuple[str, RejectReason], Rejected] = OrderedDict()
        self.counts: dict[str, int] = {}
        """By reason, of all nodes."""

    @property
    def num_total(self) -> int:
        """How many were refused."""
        with self._lock:
            return sum(self.counts.values())

    @property
    def entries(self) -> list[Rejected]:
        """What was refused, by node and reason, the newest last."""
        with self._lock:
            return list(self._entries.values())

    def add(self, topic: str, error: Exception) -> None:
        """Count one payload that could not be handled, and log it.

        An error that is no `RemoteProtocolError` is a fault of our own code, which the payload has found: `unhandled`, with its traceback.
        """
        reason = error.reason if isinstance(error, RemoteProtocolError) else RejectReason.UNHANDLED
        node = sender_of(topic)
        detail = (str(error) if isinstance(error, RemoteProtocolError) else f"{type(error).__name__}: {error}")[:MAX_DETAIL_CHARACTERS]
        with self._lock:
            count = self.counts[reason] = self.counts.get(reason, 0) + 1
            former = self._entries.pop((node, reason), None)
            self._entries[node, reason] = Rejected(
                node=node, reason=reason, count=former.count + 1 if former else 1, topic=topic[:MAX_TOPIC_CHARACTERS], detail=detail
            )
            while len(self._entries) > MAX_KEPT:
                self._entries.popitem(last=False)
        if count & (count - 1) == 0:
            text = "node=%s topic=%r dropped reason=%s count=%d detail=%r"
            is_bug = reason is RejectReason.UNHANDLED
            level = logging.ERROR if is_bug else logging.WARNING
            self._logger.log(level, text, node, topic[:MAX_TOPIC_CHARACTERS], reason, count, detail, exc_info=error if is_bug else None)


def sender_of(topic: str) -> str:
    """Return the node that the access list lets write a topic of the protocol; `-` for all others."""
    try:
        parsed = topics.parse_topic(topic)
    except RemoteProtocolError:
        return NO_NODE
    match parsed:
        case topics.StatusTopic() | topics.MetricsTopic() | topics.UpdateManifestTopic() | topics.UpdateChunkTopic():
            return parsed.node
        case _:
            return NO_NODE
