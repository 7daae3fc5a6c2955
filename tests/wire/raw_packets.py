"""MQTT 5 packets made by hand: what no client library would send, or would take an hour to make."""

from __future__ import annotations

import socket
import ssl
import struct

CONNECT, PUBLISH_QOS_1_RETAINED = 0x10, 0x33
PING, PING_ANSWER = b"\xc0\x00", b"\xd0\x00"
USER_PROPERTY = b"\x26\x00\x01a\x00\x01b"
"""The smallest that says anything: 7 bytes."""


def number(value: int) -> bytes:
    """Return a variable byte integer (MQTT 5, section 1.5.5)."""
    encoded = bytearray()
    while True:
        value, rest = divmod(value, 128)
        encoded.append(rest | (0x80 if value else 0))
        if not value:
            return bytes(encoded)


def text(value: str) -> bytes:
    """Return a UTF-8 string with its length before it."""
    content = value.encode()
    return struct.pack("!H", len(content)) + content


def packet(kind: int, body: bytes) -> bytes:
    """Return a packet with its fixed header."""
    return bytes([kind]) + number(len(body)) + body


def connect(client_id: str, *, user: str | None = None, password: str | None = None) -> bytes:
    """Return a CONNECT with clean start."""
    flags = 0x02 | (0xC0 if user is not None else 0)
    log_in = text(user) + text(password or "") if user is not None else b""
    return packet(CONNECT, text("MQTT") + bytes([5, flags]) + struct.pack("!H", 60) + number(0) + text(client_id) + log_in)


def publish(topic: str, payload: bytes, *, packet_id: int = 1, properties: bytes = b"") -> bytes:
    """Return a retained PUBLISH at QoS 1."""
    body = text(topic) + struct.pack("!H", packet_id) + number(len(properties)) + properties + payload
    return packet(PUBLISH_QOS_1_RETAINED, body)


class RawClient:
    """A connection that sends what it is given."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext | None = None) -> None:
        plain = socket.create_connection((host, port), timeout=15)
        self.socket = context.wrap_socket(plain, server_hostname=host) if context else plain

    def log_in(self, client_id: str, *, user: str | None = None, password: str | None = None) -> None:
        """Connect, and check that the broker said yes."""
        self.socket.sendall(connect(client_id, user=user, password=password))
        header = self.socket.recv(2)
        answer = self.socket.recv(header[1])
        assert header[0] == 0x20, header
        assert answer[1] == 0, answer

    def flush(self) -> None:
        """Wait until the broker has read all that was sent: it answers in order."""
        self.socket.sendall(PING)
        answers = bytearray()
        while PING_ANSWER not in answers[-len(PING_ANSWER) :]:
            answers += self.socket.recv(65_536)

    def close(self) -> None:
        """Cut the link."""
        self.socket.close()
