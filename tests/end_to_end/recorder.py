"""Everything a broker carries, seen from outside with a plain paho client: topic, payload, retained or not."""

from __future__ import annotations

import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.subscribeoptions import SubscribeOptions

from fedmq.private_broker import OBSERVER, PrivateBroker

WAIT_SECONDS = 30.0

OPEN_ACCESS = """user aggregator
topic readwrite #
topic read $SYS/#

user observer
topic read #

pattern readwrite #
"""
"""Grants everything, so that a message outside the protocol is carried and seen instead of silently denied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One message as it was published."""

    topic: str
    payload: bytes
    retain: bool


def open_access(broker: PrivateBroker) -> None:
    """Let every user of a running broker write and read everything."""
    process_id = broker.process_id
    assert process_id is not None
    (broker.folder / "acl").write_text(OPEN_ACCESS)
    os.kill(process_id, signal.SIGHUP)


class Recorder:
    """Subscribes to `#` and keeps what comes, in order."""

    def __init__(self, broker: PrivateBroker) -> None:
        self._lock = threading.Lock()
        self._seen: list[Seen] = []
        self._subscribed = threading.Event()
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=f"recorder-{secrets.token_hex(4)}", protocol=MQTTProtocolVersion.MQTTv5
        )
        self._client.username_pw_set(OBSERVER, broker.passwords[OBSERVER])
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._on_message
        self._client.connect(broker.host, broker.port)
        self._client.loop_start()
        assert self._subscribed.wait(WAIT_SECONDS)

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()

    def seen(self) -> list[Seen]:
        """Return what has come so far."""
        with self._lock:
            return list(self._seen)

    def _on_connect(self, *_arguments: Any) -> None:
        # Retain as published: the broker tells which messages it keeps, also to those who were there before.
        self._client.subscribe([("#", SubscribeOptions(qos=1, retainAsPublished=True))])

    def _on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        with self._lock:
            self._seen.append(Seen(topic=message.topic, payload=bytes(message.payload), retain=message.retain))


@contextmanager
def recording(broker: PrivateBroker) -> Iterator[Recorder]:
    """Yield a recorder that listens already."""
    recorder = Recorder(broker)
    try:
        yield recorder
    finally:
        recorder.close()
