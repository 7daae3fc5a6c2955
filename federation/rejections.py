"""Counting what was refused: every payload in the counters, ever fewer of them in the log."""

from __future__ import annotations

import logging

from federation.errors import RemoteProtocolError


class Rejections:
    """Counts refused payloads by reason.

    The 1st, 2nd, 4th, 8th ... of each reason is logged: a node gone mad must not fill the disk with its log.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self.counts: dict[str, int] = {}

    def add(self, topic: str, error: RemoteProtocolError) -> None:
        """Count one refused payload."""
        count = self.counts.get(error.reason, 0) + 1
        self.counts[error.reason] = count
        if count & (count - 1) == 0:
            text = "topic=%r dropped reason=%s count=%d detail=%r"
            self._logger.warning(text, topic[:120], error.reason, count, str(error)[:200])
