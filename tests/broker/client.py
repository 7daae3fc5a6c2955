"""A plain paho client for looking at a broker from outside, sharing nothing with FedMQ's own transport."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from fedmq.private_broker import PrivateBroker

WAIT_SECONDS = 30.0
"""Long enough for a busy machine; a test that reaches it has failed."""


class BrokerClient:
    """Publishes and subscribes, each call returning once the broker has answered."""

    def __init__(self, broker: PrivateBroker, user: str | None, password: str | None, *, session: str | None = None) -> None:
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=session or "",
            protocol=MQTTProtocolVersion.MQTTv5,
        )
        self._client.username_pw_set(user, password)
        self._client.on_connect = self._on_connect
        self._client.on_publish = self._on_publish
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._connects: queue.Queue[str] = queue.Queue()
        self._publishes: queue.Queue[tuple[int, bool]] = queue.Queue()
        self._subscribed = threading.Event()
        self._inbox: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._broker = broker
        self._keeps_session = session is not None

    def connect(self) -> str:
        """Connect and return the broker's answer in the words of MQTT 5."""
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 3600 if self._keeps_session else 0
        self._client.connect(self._broker.host, self._broker.port, clean_start=not self._keeps_session, properties=properties)
        self._client.loop_start()
        return self._connects.get(timeout=WAIT_SECONDS)

    def close(self) -> None:
        """Disconnect and end the network thread."""
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, topic: str, payload: bytes, *, retain: bool = True) -> bool:
        """Publish at QoS 1 and return whether the broker accepted it."""
        message_id = self._client.publish(topic, payload, qos=1, retain=retain).mid
        answered_id, accepted = self._publishes.get(timeout=WAIT_SECONDS)
        assert answered_id == message_id
        return accepted

    def subscribe(self, *filters: str) -> None:
        """Subscribe at QoS 1 and wait for the broker's answer."""
        self._subscribed.clear()
        self._client.subscribe([(entry, SubscribeOptions(qos=1)) for entry in filters])
        assert self._subscribed.wait(WAIT_SECONDS)

    def receive_until(self, topic: str) -> dict[str, bytes]:
        """Return every message received so far, in order of arrival, up to and with the one on `topic`."""
        received: dict[str, bytes] = {}
        while topic not in received:
            arrived, payload = self._inbox.get(timeout=WAIT_SECONDS)
            received[arrived] = payload
        return received

    def drain(self) -> list[tuple[str, bytes]]:
        """Return topic and payload of every message received and not yet looked at, in order of arrival."""
        messages = []
        while not self._inbox.empty():
            messages.append(self._inbox.get())
        return messages

    def _on_connect(self, _client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._connects.put(str(reason))

    def _on_publish(self, _client: paho.Client, _data: Any, message_id: int, reason: Any, _properties: Any) -> None:
        self._publishes.put((message_id, not reason.is_failure))

    def _on_subscribe(self, *_arguments: Any) -> None:
        self._subscribed.set()

    def _on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        self._inbox.put((message.topic, bytes(message.payload)))


@contextmanager
def connected(broker: PrivateBroker, user: str, *, session: str | None = None) -> Iterator[BrokerClient]:
    """Yield a client logged in as one of the broker's users."""
    client = BrokerClient(broker, user, broker.passwords[user], session=session)
    try:
        assert client.connect() == "Success"
        yield client
    finally:
        client.close()
