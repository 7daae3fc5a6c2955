"""What the broker holds for one client: its subscriptions, and proof that they are still this client's."""

from __future__ import annotations

from collections.abc import Sequence

from paho.mqtt.client import Client
from paho.mqtt.reasoncodes import ReasonCode

from federation.broker_address import NO_SUBSCRIPTION_EXISTED
from federation.mqtt_client import subscribe, unsubscribe
from federation.subscriptions import SessionMark, Subscriptions


class Session:
    """Keeps the session of a client as its owner wishes. `ask` may be called from any thread, the rest from the network's.

    Args:
        client: the client whose session it is.
        client_id: its identity.
        outlives_process: a next process with this identity continues the session.
    """

    def __init__(self, client: Client, *, client_id: str, outlives_process: bool) -> None:
        self._client = client
        self._outlives_process = outlives_process
        self._subscriptions = Subscriptions()
        self._mark = SessionMark(client_id)
        self._is_present = False
        self._is_greeted = False
        self._is_in_doubt = False

    @property
    def must_start_clean(self) -> bool:
        """True until the session is known to be this process's: what a machine has forgotten must not come to it."""
        return not (self._outlives_process or self._mark.is_answered)

    def ask(self, filters: Sequence[str], *, wanted: bool) -> None:
        """Wish to subscribe to filters, or to unsubscribe from them."""
        self._subscriptions.ask(filters, wanted=wanted)

    def open(self, *, session_present: bool) -> bool:
        """Take the broker's word on a new connection, on which `send_wishes` acts; return whether the session can be ours.

        After a CONNECT whose answer got lost it can't be told from one that this CONNECT began anew.
        """
        self._is_present = session_present and not (self._is_in_doubt and not self._outlives_process)
        self._is_in_doubt = False
        self._is_greeted = False
        return self._is_present

    def send_wishes(self) -> None:
        """Send what was asked for, on a new connection after making sure of the session."""
        if not self._is_greeted:
            self._is_greeted = True
            self._greet()
        for wanted, filters in self._subscriptions.take():
            packet_id = subscribe(self._client, filters) if wanted else unsubscribe(self._client, filters)
            self._subscriptions.sent(packet_id, wanted=wanted, filters=filters)

    def confirm_subscribe(self, packet_id: int, reasons: Sequence[ReasonCode]) -> list[tuple[str, str]]:
        """Take a SUBACK; return the filters that were refused, each with the reason."""
        if self._mark.confirm_set(packet_id, is_failure=reasons[0].is_failure):
            return []
        answers = zip(self._subscriptions.confirm(packet_id), reasons, strict=False)
        return [(topic_filter, str(reason)) for topic_filter, reason in answers if reason.is_failure]

    def confirm_unsubscribe(self, packet_id: int, reasons: Sequence[ReasonCode]) -> bool:
        """Take an UNSUBACK; False when it shows that another client has begun this session anew."""
        if self._mark.confirm_check(packet_id):
            return any(reason.value != NO_SUBSCRIPTION_EXISTED for reason in reasons)
        self._subscriptions.confirm(packet_id)
        return True

    def lose_link(self, *, is_unanswered: bool = False) -> None:
        """Wish again for what was not confirmed; `is_unanswered`: the broker may have taken a CONNECT and its CONNACK got lost."""
        self._is_in_doubt |= is_unanswered
        self._subscriptions.forget_confirmations()

    def _greet(self) -> None:
        if self._is_present:
            # A broker that was killed comes back with its last snapshot: newer subscriptions are missing from it.
            if held := self._subscriptions.held():
                self._subscriptions.sent(subscribe(self._client, held, retained_again=False), wanted=True, filters=held)
        else:
            self._subscriptions.forget_session()
            self._mark.forget_session()
        if not self._outlives_process:  # such a session would gather the marks of every process
            mark, earlier = self._mark.renew()
            packet_id = subscribe(self._client, [mark])
            self._mark.setting(packet_id)
            self._mark.checking(unsubscribe(self._client, earlier) if earlier and packet_id is not None else None)
