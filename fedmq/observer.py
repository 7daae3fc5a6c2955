"""A short look at a broker: connect, read what is retained, leave."""

from __future__ import annotations

import queue
import secrets
import time
from collections.abc import Sequence

from federation.broker_address import BrokerAddress
from federation.errors import TransportError
from federation.mqtt import MqttTransport
from federation.transport import Connected, Delivered, Disconnected, Refused, TransportEvent

QUIET_SECONDS = 0.5
"""Retained messages come in one burst; so long without one and that was all."""


def read_retained(address: BrokerAddress, filters: Sequence[str], *, timeout_seconds: float = 10.0) -> tuple[Connected, dict[str, bytes]]:
    """Return what the broker said of itself, and the retained messages of some topic filters.

    Raises:
        TransportError: the broker can't be reached or refuses us; the text says why.
    """
    inbox: queue.Queue[TransportEvent] = queue.Queue()
    transport = MqttTransport(address, client_id=f"observer-{secrets.token_hex(4)}", on_event=inbox.put, session_expiry_seconds=0)
    transport.start()
    try:
        connected = _wait_until_connected(inbox, time.monotonic() + timeout_seconds)
        messages: dict[str, bytes] = {}
        if not filters:
            return connected, messages
        transport.subscribe(filters)
        wait_seconds = max(QUIET_SECONDS, 0.2 * timeout_seconds)
        while True:
            try:
                event = inbox.get(timeout=wait_seconds)
            except queue.Empty:
                return connected, messages
            if isinstance(event, Delivered) and event.retained:
                messages[event.topic] = event.payload
                wait_seconds = QUIET_SECONDS
    finally:
        transport.stop(1.0)


def _wait_until_connected(inbox: queue.Queue[TransportEvent], give_up_at: float) -> Connected:
    reason = "no answer"
    while (left := give_up_at - time.monotonic()) > 0:
        try:
            event = inbox.get(timeout=left)
        except queue.Empty:
            break
        match event:
            case Connected():
                return event
            case Refused():
                raise TransportError(event.reason)
            case Disconnected():
                raise TransportError(event.reason)
            case Delivered():
                continue
    raise TransportError(f"the broker can't be reached: {reason}")
