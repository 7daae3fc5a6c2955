"""Finding a run: a node that was told none joins whichever is active on its broker."""

from __future__ import annotations

import logging

from federation import topics
from federation.errors import RemoteProtocolError
from federation.messages import RunState, parse
from federation.transport import Connected, Delivered, Refused, Transport, TransportEvent

logger = logging.getLogger("edge_node")


class RunFinder:
    """A service that stops when it has seen a run that waits for nodes or trains."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.wake_at: float | None = None
        self.run: str | None = None
        self.stopped: str | None = None

    def take(self, item: TransportEvent) -> None:
        """Take in one transport event."""
        match item:
            case Connected():
                self._transport.subscribe([topics.state_filter_of_all_runs()])
                logger.info("run=unknown waiting for an active run on the broker")
            case Refused():
                self.stopped = item.reason
            case Delivered():
                self._on_state(item)
            case _:
                logger.warning("broker=disconnected reason=%r", item.reason)

    def _on_state(self, message: Delivered) -> None:
        if not message.payload:
            return
        try:
            state = parse(RunState, message.payload)
        except RemoteProtocolError as error:
            logger.warning("topic=%r dropped reason=%s", message.topic[:120], error.reason)
            return
        if state.phase in {"waiting", "training"}:
            self.run = state.run
            self.stopped = f"found run {state.run}"
