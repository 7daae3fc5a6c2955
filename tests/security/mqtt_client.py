"""A plain paho client for the tests of the broker's rules: what a stranger with these files could do."""

from __future__ import annotations

import ssl
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

WAIT_SECONDS = 15.0


def unpack(bundle: Path, folder: Path) -> Path:
    """Unpack a node's bundle as its device would; return the folder of its files."""
    with tarfile.open(bundle) as archive:
        archive.extractall(folder, filter="data")
    return folder / bundle.stem


class Client:
    """Connects once, never again, and keeps what it saw."""

    def __init__(self, client_id: str = "") -> None:
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=mqtt.MQTTv5, reconnect_on_failure=False)
        self.connected: str | None = None
        self.disconnected: str | None = None
        self.messages: list[tuple[str, bytes]] = []
        self._published: dict[int, str] = {}
        self._subscribed: dict[int, list[str]] = {}
        self._changed = threading.Condition()
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = self._on_disconnect
        self.client.on_message = self._on_message
        self.client.on_publish = self._on_publish
        self.client.on_subscribe = self._on_subscribe

    def with_certificate(self, *, ca: Path, certificate: Path | None = None, key: Path | None = None) -> Self:
        """Use TLS, with a certificate of our own or without."""
        self.client.tls_set(
            str(ca), str(certificate) if certificate else None, str(key) if key else None, tls_version=ssl.PROTOCOL_TLS_CLIENT
        )
        return self

    def with_bundle(self, folder: Path) -> Self:
        """Use the files of an unpacked bundle."""
        return self.with_certificate(ca=folder / "ca.crt", certificate=folder / "node.crt", key=folder / "node.key")

    def with_password(self, user: str, password: str) -> Self:
        """Log in by name."""
        self.client.username_pw_set(user, password)
        return self

    def connect(self, host: str, port: int) -> Self:
        """Connect; afterwards `connected` is the CONNACK's reason, or None where there was none."""
        try:
            self.client.connect(host, port, keepalive=30)
        except OSError as error:
            self.disconnected = str(error)
            return self
        self.client.loop_start()
        self._wait(lambda: self.connected is not None or self.disconnected is not None)
        return self

    def publish(self, topic: str, payload: bytes, *, retain: bool = True) -> str:
        """Publish with QoS 1 and return the PUBACK's reason, or `none` where the link was cut instead."""
        message_id = self.client.publish(topic, payload, qos=1, retain=retain).mid
        self._wait(lambda: message_id in self._published or self.disconnected is not None)
        return self._published.get(message_id, "none")

    def subscribe(self, topic_filter: str) -> list[str]:
        """Subscribe with QoS 1 and return the reasons of the SUBACK."""
        _, message_id = self.client.subscribe(topic_filter, qos=1)
        self._wait(lambda: message_id in self._subscribed or self.disconnected is not None)
        return self._subscribed.get(message_id or 0, ["none"])

    def wait_disconnected(self) -> bool:
        """Return whether the link was cut in time."""
        return self._wait(lambda: self.disconnected is not None)

    def wait_messages(self, count: int) -> bool:
        """Return whether so many messages came in time."""
        return self._wait(lambda: len(self.messages) >= count)

    def close(self) -> None:
        """Say goodbye."""
        self.client.disconnect()
        self.client.loop_stop()

    def _wait(self, condition: Callable[[], bool]) -> bool:
        with self._changed:
            return self._changed.wait_for(condition, WAIT_SECONDS)

    def _note(self, change: Callable[[], Any]) -> None:
        with self._changed:
            change()
            self._changed.notify_all()

    def _on_connect(self, _client: Any, _user: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._note(lambda: setattr(self, "connected", str(reason)))

    def _on_disconnect(self, _client: Any, _user: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._note(lambda: setattr(self, "disconnected", str(reason)))

    def _on_message(self, _client: Any, _user: Any, message: mqtt.MQTTMessage) -> None:
        self._note(lambda: self.messages.append((message.topic, bytes(message.payload))))

    def _on_publish(self, _client: Any, _user: Any, message_id: int, reason: Any, _properties: Any) -> None:
        self._note(lambda: self._published.update({message_id: str(reason)}))

    def _on_subscribe(self, _client: Any, _user: Any, message_id: int, reasons: Any, _properties: Any) -> None:
        self._note(lambda: self._subscribed.update({message_id: [str(reason) for reason in reasons]}))


def settle() -> None:
    """Give the broker time to deliver what it should not."""
    time.sleep(0.5)


def eventually(condition: Callable[[], bool], *, wait_seconds: float = WAIT_SECONDS) -> bool:
    """Return whether something that no callback tells us of came true in time."""
    give_up = time.monotonic() + wait_seconds
    while not condition():
        if time.monotonic() > give_up:
            return False
        settle()
    return True
