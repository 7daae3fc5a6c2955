"""The real transport: MQTT 5 over paho, on one network thread of our own.

Only that thread touches paho; every method leaves its wish in a queue and wakes it. paho's own thread is not
used: it holds every queued payload, reconnects without jitter and leaves re-sending subscriptions to callbacks.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from federation.broker_address import IDENTITY_TAKEN, REFUSALS, SESSION_TAKEN_OVER, BrokerAddress, TlsFiles, explain_unreachable
from federation.mqtt_client import LastError, connect, make_client, say_goodbye, unfitness_of
from federation.mqtt_session import Session
from federation.network_pause import BackOff, Deadline, LinkSelector, WakeUp
from federation.outbox import Outbox, Publish, Window
from federation.transport import Connected, Delivered, Disconnected, OnEvent, Payload, Refused, TransportEvent, Will

__all__ = ["BrokerAddress", "MqttTransport", "TlsFiles"]

logger = logging.getLogger(__name__)

IDLE_SECONDS = 1.0
"""Longest sleep of the network thread; keep-alive and time-outs are looked after that often."""

GOODBYE_SECONDS = 1.0
"""What a DISCONNECT may take beyond the time-out of `stop`."""


class MqttTransport:
    """One client of an MQTT 5 broker. Implements `federation.transport.Transport`.

    Args:
        address: the broker.
        client_id: our identity; a second client with it ends this one (`Refused`).
        on_event: takes each event, on the network thread. It may block: the broker then waits, and drops us
            when that lasts longer than 1.5 times the keep-alive.
        will: what the broker publishes, retained, when we vanish.
        session_expiry_seconds: how long the broker keeps our subscriptions and queues for us after a lost link.
        window: publishes on their way at once; fewer when the broker's Receive Maximum says so.
        keep_alive_seconds: silence after which either side looks for the other.
        keeps_session: the broker goes on queueing for `session_expiry_seconds` after `stop` or the end of this
            process, and the next one with this identity receives it.
        manual_ack: the broker forgets a message only when `acknowledge` says so, not when `on_event` has returned.

    Raises:
        TransportError: the TLS files can't be used.
    """

    def __init__(
        self,
        address: BrokerAddress,
        *,
        client_id: str,
        on_event: OnEvent,
        will: Will | None = None,
        session_expiry_seconds: int = 3600,
        window: int = 32,
        keep_alive_seconds: int = 30,
        keeps_session: bool = False,
        manual_ack: bool = False,
    ) -> None:
        self._address = address
        self._client_id = client_id
        self._on_event = on_event
        self._largest_window = window
        self._window = Window(window)
        self._max_packet_bytes: int | None = None
        self._outbox = Outbox()
        self._is_connected = False
        self._is_refused = False
        self._is_leaving = False
        self._lost_because = ""
        self._was_let_in = self._is_connecting = False
        self._back_off = BackOff()
        self._deadline = Deadline()
        self._thread: threading.Thread | None = None
        self._keeps_session = keeps_session
        self._manual_ack = manual_ack
        self._connection = 0
        self._receipts: deque[tuple[int, int]] = deque()
        self._client = make_client(address, client_id=client_id, will=will, manual_ack=manual_ack)
        self._open_link = partial(
            connect, self._client, address, keep_alive_seconds=keep_alive_seconds, session_expiry_seconds=session_expiry_seconds
        )
        self._session = Session(self._client, client_id=client_id, outlives_process=keeps_session)
        client = self._client
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_publish, client.on_message = self._on_publish, self._on_message
        client.on_subscribe, client.on_unsubscribe = self._on_subscribe, self._on_unsubscribe
        self._paho_errors = LastError(self._client)
        self._wake_up = WakeUp()

    @property
    def num_pending(self) -> int:
        """Publishes not yet acknowledged by the broker."""
        return self._outbox.num_pending

    def start(self) -> None:
        """Connect in the background, and again whenever the link breaks."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"mqtt-{self._client_id}", daemon=True)
            self._thread.start()

    def subscribe(self, filters: Sequence[str]) -> None:
        """Ask for the messages of topic filters, QoS 1; while not connected, as soon as we are."""
        self._session.ask(filters, wanted=True)
        self._wake_up.send()

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Ask for no more of them."""
        self._session.ask(filters, wanted=False)
        self._wake_up.send()

    def publish(self, topic: str, payload: Payload, *, retain: bool = False) -> None:
        """Queue a message; messages leave in the order of these calls."""
        if not self._outbox.put(Publish(topic=topic, payload=payload, retain=retain)):
            logger.warning("event=publish_after_stop client_id=%s topic=%s", self._client_id, topic)
        self._wake_up.send()

    def drop_pending(self, prefix: str) -> None:
        """Forget publishes under a topic prefix that have not been handed to the broker yet."""
        self._outbox.drop(prefix)

    def acknowledge(self, message: Delivered) -> None:
        """Let the broker forget a message (`manual_ack`); one of an earlier connection comes again instead."""
        if message.receipt is not None:
            self._receipts.append(message.receipt)
            self._wake_up.send()

    def forget_session(self) -> None:
        """Let `stop` end the session after all."""
        self._keeps_session = False

    def stop(self, timeout_seconds: float, *, final: tuple[str, bytes] | None = None) -> None:
        """Send what is pending and then `final` (retained), say goodbye, and end; events cease at once.

        When the time-out comes first the link is cut without goodbye, so that the will speaks in `final`'s place.
        """
        self._outbox.close(Publish(topic=final[0], payload=final[1], retain=True) if final else None)
        self._deadline.set(timeout_seconds)
        self._wake_up.send()
        if self._thread is None:
            self._wake_up.close()
        elif self._thread is not threading.current_thread():
            self._thread.join(timeout_seconds + 2 * GOODBYE_SECONDS)
            if self._thread.is_alive():
                logger.error("event=stop_timed_out client_id=%s; on_event has not returned", self._client_id)

    # --- the network thread -------------------------------------------------------------------

    def _run(self) -> None:
        while not self._is_refused and not self._has_ended():
            self._was_let_in, self._is_connecting = False, False
            reason = self._connect() or self._serve()
            self._is_connected = False
            self._session.lose_link(is_unanswered=self._is_connecting and not self._was_let_in)
            if self._is_refused or self._has_ended():
                break
            self._emit(Disconnected(reason=reason))
            seconds = self._back_off.next_seconds()
            logger.warning("event=disconnected client_id=%s retry_seconds=%.1f reason=%r", self._client_id, seconds, reason)
            self._pause(seconds)
        self._wake_up.close()

    def _connect(self) -> str | None:
        """Open the link and send CONNECT; return why that failed, or None."""
        self._paho_errors.text = ""
        try:
            self._open_link(clean_start=self._session.must_start_clean)
        except (OSError, ValueError) as error:
            return explain_unreachable(self._address, error)
        return None

    def _serve(self) -> str:
        """Carry packets until the link is gone; return why it went."""
        self._lost_because, self._is_connecting = "the link was lost", True
        try:
            self._carry_packets()
        except Exception:  # bytes that paho can't digest must end the link, not this thread
            logger.exception("event=link_failed client_id=%s", self._client_id)
        reason = self._lost_because
        if self._address.tls is not None and not self._was_let_in:
            # TLS 1.3 checks our certificate after its handshake, and the alert that says so is often lost.
            reason = "the broker ended TLS: it may not accept our certificate (none, expired, revoked, of another authority)"
        return f"{reason} ({self._paho_errors.text})" if self._paho_errors.text else reason

    def _carry_packets(self) -> None:
        if (link := self._client.socket()) is None:
            return
        client = self._client
        with LinkSelector(link, self._wake_up) as selector:
            while True:
                self._hand_over()
                self._leave_if_due()
                if client.socket() is None:
                    return
                can_read, can_write = selector.wait(self._deadline.limit(IDLE_SECONDS), wants_write=client.want_write())
                if can_read:
                    client.loop_read()
                if can_write:
                    client.loop_write()
                client.loop_misc()

    def _hand_over(self) -> None:
        """Give paho the subscriptions asked for, and publishes as far as the window is open."""
        if not self._is_connected:
            return
        while self._receipts:
            connection, received_id = self._receipts.popleft()
            if connection == self._connection:  # in another one the same number is another message
                self._client.ack(received_id, 1)
        self._session.send_wishes()
        while self._window.is_open and (taken := self._outbox.take(self._max_packet_bytes)) is not None:
            publish, payload = taken
            # A link that breaks in here costs nothing: paho keeps what it was given and sends it after CONNACK.
            info = self._client.publish(publish.topic, payload, qos=1, retain=publish.retain)
            self._window.add(info.mid, len(payload))

    def _leave_if_due(self) -> None:
        if not self._deadline.is_set:
            return
        if self._is_connected and not self._is_leaving and self._outbox.num_pending == 0:
            self._is_leaving = True
            self._deadline.extend(GOODBYE_SECONDS)
            say_goodbye(self._client, ends_session=not self._keeps_session)
        elif self._has_ended() and (not self._is_leaving or self._deadline.has_passed):
            link: Any = self._client.socket()
            with suppress(OSError, AttributeError):
                link.shutdown(socket.SHUT_RDWR)

    def _has_ended(self) -> bool:
        return self._deadline.is_set and (self._outbox.num_pending == 0 or self._deadline.has_passed)

    def _pause(self, seconds: float) -> None:
        pause = Deadline()
        pause.set(seconds)
        while not self._has_ended() and not pause.has_passed:
            self._wake_up.sleep(self._deadline.limit(pause.limit(IDLE_SECONDS)))

    def _emit(self, event: TransportEvent) -> None:
        if self._deadline.is_set:
            return
        try:
            self._on_event(event)
        except Exception:  # an exception in a callback would end the network thread
            logger.exception("event=on_event_failed client_id=%s kind=%s", self._client_id, type(event).__name__)

    # --- paho's callbacks, on the network thread ------------------------------------------------

    def _on_connect(self, _client: Client, _data: Any, flags: ConnectFlags, reason: ReasonCode, properties: Properties | None) -> None:
        self._was_let_in = True
        if reason.is_failure:
            self._lost_because = f"the broker refused us: {reason}"
            if reason.value in REFUSALS:
                self._refuse(REFUSALS[reason.value])
            return
        if (unfitness := unfitness_of(properties)) is not None:
            self._refuse(unfitness)
            return
        self._window.largest = min(self._largest_window, getattr(properties, "ReceiveMaximum", self._largest_window))
        self._is_connected = True
        self._connection += 1
        session_present = self._session.open(session_present=flags.session_present)
        self._back_off.reset()
        self._max_packet_bytes = getattr(properties, "MaximumPacketSize", None)
        logger.info("event=connected client_id=%s broker=%r session_present=%s", self._client_id, self._address, session_present)
        self._emit(Connected(session_present=session_present, max_packet_bytes=self._max_packet_bytes))

    def _on_disconnect(self, _client: Client, _data: Any, flags: DisconnectFlags, reason: ReasonCode, _: object) -> None:
        if flags.is_disconnect_packet_from_server:
            self._lost_because = f"the broker closed the link: {reason}"
            if reason.value == SESSION_TAKEN_OVER:
                self._refuse(IDENTITY_TAKEN, identity_taken=True)

    def _refuse(self, text: str, *, identity_taken: bool = False) -> None:
        logger.error("event=refused client_id=%s broker=%r reason=%r", self._client_id, self._address, text)
        self._is_refused = True
        self._is_connected = False
        self._emit(Refused(reason=text, identity_taken=identity_taken))

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            logger.warning("event=topic_undecodable client_id=%s", self._client_id)
            return
        receipt = (self._connection, message.mid) if self._manual_ack and message.qos else None
        num_property_bytes = self._client.num_property_bytes
        self._emit(
            Delivered(
                topic=topic,
                payload=bytes(message.payload),
                retained=message.retain,
                receipt=receipt,
                num_property_bytes=num_property_bytes,
            )
        )

    def _on_publish(self, _client: Client, _data: Any, packet_id: int, reason: ReasonCode, _: object) -> None:
        if self._window.remove(packet_id):
            self._outbox.finish_one()
        if reason.is_failure:
            logger.error("event=publish_refused client_id=%s packet_id=%d reason=%r", self._client_id, packet_id, str(reason))

    def _on_subscribe(self, _client: Client, _data: Any, packet_id: int, reasons: list[ReasonCode], _: object) -> None:
        for topic_filter, reason in self._session.confirm_subscribe(packet_id, reasons):
            logger.error("event=subscribe_refused client_id=%s filter=%s reason=%r", self._client_id, topic_filter, reason)

    def _on_unsubscribe(self, _client: Client, _data: Any, packet_id: int, reasons: list[ReasonCode], _: object) -> None:
        if not self._session.confirm_unsubscribe(packet_id, reasons) and not self._is_refused:
            self._refuse(IDENTITY_TAKEN, identity_taken=True)
            say_goodbye(self._client, ends_session=False)
