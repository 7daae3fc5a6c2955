"""The paho client as FedMQ sets it up: its options, properties and packets, in one place."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from federation.broker_address import BrokerAddress
from federation.transport import Will

MAX_INCOMING_PACKET_BYTES = 8 << 20
"""We tell the broker to send nothing larger: four times the largest JSON message, 32 default chunks."""

CONNECT_SECONDS = 10.0
"""For the TCP connection, and for the TLS handshake."""


class LeanClient(Client):
    """Steps over the properties of messages: nothing here needs them, and paho's reading of them takes time by the square of their number.

    A message of 700 KB of user properties, which any node may publish, held the network thread for a minute; one of 4 MB, for hours.
    """

    num_property_bytes = 0
    """Of the message being handled."""

    def _handle_publish(self) -> Any:
        incoming: Any = self._in_packet
        packet = incoming["packet"]
        has_packet_id = incoming["command"] & 0x06
        start = 2 + int.from_bytes(packet[:2]) + (2 if has_packet_id else 0)
        num_bytes, end = _variable_byte_integer(packet, start)
        self.num_property_bytes = num_bytes
        if num_bytes and end + num_bytes <= len(packet):
            incoming["packet"] = packet[:start] + b"\0" + packet[end + num_bytes :]
        return super()._handle_publish()


def _variable_byte_integer(packet: bytes | bytearray, start: int) -> tuple[int, int]:
    """Return a number of one to four bytes (MQTT 5, section 1.5.5) and where it ends; 0 of a packet that is cut short."""
    value = 0
    for place, byte in enumerate(packet[start : start + 4]):
        value += (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, start + place + 1
    return 0, start


MAX_STATED_PACKET_BYTES = 268_435_455
"""Largest Maximum Packet Size that paho 2.2.0 reads; MQTT 5 (section 3.2.2.3.6) allows any four-byte number, and brokers without a
limit of their own state such ones. No packet can be larger than this anyway (section 2.1.4)."""


def _read_any_packet_size() -> None:
    """Have paho read a Maximum Packet Size above its own bound as that bound; it calls such a CONNACK malformed, for ever."""
    set_property = Properties.__setattr__

    def set_bounded(properties: Properties, name: str, value: Any) -> None:
        is_above = name.replace(" ", "") == "MaximumPacketSize" and value > MAX_STATED_PACKET_BYTES
        set_property(properties, name, MAX_STATED_PACKET_BYTES if is_above else value)  # type: ignore[no-untyped-call]

    Properties.__setattr__ = set_bounded  # type: ignore[method-assign]


_read_any_packet_size()


def unfitness_of(properties: Properties | None) -> str | None:
    """Return why a broker can't carry FedMQ, by what its CONNACK says of it (MQTT 5, section 3.2.2.3); None where it can.

    What it does not state it has.
    """
    if getattr(properties, "RetainAvailable", 1) == 0:
        return (
            "the broker keeps no retained messages (Retain Available 0), and rounds are made of them: turn them on, or use another broker"
        )
    if getattr(properties, "MaximumQoS", 2) == 0:
        return "the broker acknowledges nothing (Maximum QoS 0): FedMQ needs QoS 1, turn it on or use another broker"
    if getattr(properties, "WildcardSubscriptionAvailable", 1) == 0:
        return "the broker takes no topic filters with wildcards (Wildcard Subscription Available 0): turn them on, or use another broker"
    return None


def make_client(address: BrokerAddress, *, client_id: str, will: Will | None, manual_ack: bool = False) -> LeanClient:
    """Return a client that is not connected yet and has no callbacks.

    Args:
        address: user name, password and TLS files; `connect` takes the rest.
        client_id: its identity.
        will: what the broker publishes, retained, when it vanishes.
        manual_ack: messages are acknowledged by `Client.ack`, not when `on_message` has returned.

    Raises:
        TransportError: the TLS files can't be used.
    """
    client = LeanClient(CallbackAPIVersion.VERSION2, client_id, protocol=MQTTProtocolVersion.MQTTv5, manual_ack=manual_ack)
    client.suppress_exceptions = True
    client.connect_timeout = CONNECT_SECONDS
    client.max_inflight_messages_set(0)  # the window is ours
    if address.username is not None:
        client.username_pw_set(address.username, address.password)
    if address.tls is not None:
        client.tls_set_context(address.tls.make_context())
    if will is not None:
        client.will_set(will.topic, will.payload, qos=1, retain=True)
    client.on_socket_open = _set_no_delay
    return client


def connect(client: Client, address: BrokerAddress, *, clean_start: bool, keep_alive_seconds: int, session_expiry_seconds: int) -> None:
    """Open the link and send CONNECT; publishes that were not acknowledged follow CONNACK by themselves.

    Raises:
        OSError: the broker can't be reached, or TLS fails.
        ValueError: the host name is none.
    """
    wishes = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    wishes.SessionExpiryInterval = session_expiry_seconds
    wishes.MaximumPacketSize = MAX_INCOMING_PACKET_BYTES
    client.connect_async(address.host, address.port, keep_alive_seconds, clean_start=clean_start, properties=wishes)
    client.reconnect()


def subscribe(client: Client, filters: Sequence[str], *, retained_again: bool = True) -> int | None:
    """Send SUBSCRIBE at QoS 1 and return its packet identifier; None without a link.

    Args:
        client: the client.
        filters: topic filters.
        retained_again: deliver what is retained also for subscriptions that the session has already.
    """
    handling = SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE if retained_again else SubscribeOptions.RETAIN_SEND_IF_NEW_SUB
    options = SubscribeOptions(qos=1, retainHandling=handling)
    return client.subscribe([(topic_filter, options) for topic_filter in filters])[1]


def unsubscribe(client: Client, filters: Sequence[str]) -> int | None:
    """Send UNSUBSCRIBE and return its packet identifier; None without a link."""
    return client.unsubscribe(list(filters))[1]


def say_goodbye(client: Client, *, ends_session: bool) -> None:
    """Send DISCONNECT, which drops the will.

    Args:
        client: the client.
        ends_session: also let the broker forget the session.
    """
    properties = Properties(PacketTypes.DISCONNECT)  # type: ignore[no-untyped-call]
    if ends_session:
        properties.SessionExpiryInterval = 0
    client.disconnect(ReasonCode(PacketTypes.DISCONNECT, identifier=0), properties)


class LastError(logging.Handler):
    """Keeps the last error that paho logs and does not report otherwise: a TLS alert, a reset."""

    def __init__(self, client: Client) -> None:
        super().__init__(logging.ERROR)
        self.text = ""
        log = logging.Logger("paho", logging.ERROR)
        log.addHandler(self)
        client.enable_logger(log)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record's text."""
        self.text = record.getMessage()


def _set_no_delay(_client: Client, _userdata: Any, link: Any) -> None:
    # Without it Nagle's algorithm meets delayed ACKs: 45 ms instead of 7 for a 394 KB model.
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
