"""Which subscriptions were asked for, which are confirmed, and whether the session that holds them is still ours."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Sequence
from itertools import groupby
from threading import Lock

NUM_REMEMBERED_MARKS = 32
"""Connections back: a broker that was killed comes back with an older snapshot, and in it an older mark."""


BROKERS_OWN = "$SYS/"
"""What a broker tells of itself under topics that no standard names (MQTT 5, section 4.7.2): some have others, some cut the link
of whoever asks for them."""

MAX_ASKED = 3
"""How often the broker's own topics are asked for when the link breaks before an answer comes."""


class Subscriptions:
    """Wishes in order: the last word about a filter counts. `ask` may be called from any thread.

    The broker's own topics (`$SYS/`) go in packets of their own after all others, and are done without where asking for them ends the link.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._asked: dict[str, bool] = {}
        self._unconfirmed: dict[int, dict[str, bool]] = {}
        self._held: dict[str, None] = {}
        self._num_unanswered: dict[str, int] = {}

    def ask(self, filters: Sequence[str], *, wanted: bool) -> None:
        """Ask to subscribe to filters, or to unsubscribe from them."""
        with self._lock:
            for topic_filter in filters:
                self._asked.pop(topic_filter, None)
                if self._num_unanswered.get(topic_filter, 0) < MAX_ASKED:
                    self._asked[topic_filter] = wanted

    def take(self) -> list[tuple[bool, list[str]]]:
        """Return what to send now, in order, grouped by kind."""
        with self._lock:
            asked, self._asked = self._asked, {}
        ordered = sorted(asked.items(), key=lambda item: item[0].startswith(BROKERS_OWN))
        grouped = groupby(ordered, key=lambda item: (item[1], item[0].startswith(BROKERS_OWN)))
        return [(wanted, [name for name, _ in group]) for (wanted, _), group in grouped]

    def sent(self, packet_id: int | None, *, wanted: bool, filters: Sequence[str]) -> None:
        """Remember what a packet asked for until it is confirmed; None: it could not be sent."""
        if packet_id is None:
            with self._lock:
                self._asked = dict.fromkeys(filters, wanted) | self._asked
        else:
            self._unconfirmed[packet_id] = dict.fromkeys(filters, wanted)

    def confirm(self, packet_id: int) -> list[str]:
        """Return the filters of a confirmed packet, in the order of its reason codes."""
        filters = self._unconfirmed.pop(packet_id, {})
        for topic_filter, wanted in filters.items():
            self._num_unanswered.pop(topic_filter, None)
            if wanted:
                self._held[topic_filter] = None
            else:
                self._held.pop(topic_filter, None)
        return list(filters)

    def held(self) -> list[str]:
        """Return the filters confirmed in this session and not unsubscribed from."""
        return list(self._held)

    def forget_session(self) -> None:
        """Forget what a lost session held."""
        self._held.clear()

    def forget_confirmations(self) -> None:
        """Ask again for what no answer came to: the link is gone, and perhaps the packet."""
        with self._lock:
            for filters in reversed(list(self._unconfirmed.values())):
                for topic_filter in filters:
                    if topic_filter.startswith(BROKERS_OWN):
                        self._num_unanswered[topic_filter] = self._num_unanswered.get(topic_filter, 0) + 1
                again = {name: wanted for name, wanted in filters.items() if self._num_unanswered.get(name, 0) < MAX_ASKED}
                self._asked = again | self._asked
            self._unconfirmed.clear()


class SessionMark:
    """Tells whether a session is still the one this process began.

    A broker should say so when another client takes an identity over (DISCONNECT 0x8E), but Mosquitto does
    only from 2.0.15 on: before, each of the two just loses its link and throws the other out again, for good.
    So a process marks its session with a subscription that nobody else knows and nobody publishes to. The
    other process's clean start removes it, and unsubscribing then answers "no subscription existed". A
    process starts clean until its mark is confirmed; so of two, one finds its mark gone, however they race.

    Each connection sets a mark of its own before it looks for the earlier ones: wherever the link is cut, one is held.
    """

    def __init__(self, client_id: str) -> None:
        self._prefix = f"fedmq-session/{client_id}/"
        self._filters: deque[str] = deque(maxlen=NUM_REMEMBERED_MARKS)
        self._subscribe_id: int | None = None
        self._check_id: int | None = None
        self._is_set = False
        self._is_answered = False

    @property
    def is_set(self) -> bool:
        """True when the broker has confirmed the mark; where it refuses such subscriptions it never is."""
        return self._is_set

    @property
    def is_answered(self) -> bool:
        """True when the broker has answered, either way. Until then each connection must start clean."""
        return self._is_answered

    def renew(self) -> tuple[str, list[str]]:
        """Return the mark to set now, and then those of which one must be there; none before the session's first is confirmed."""
        earlier = list(self._filters) if self._is_set else []
        topic_filter = f"{self._prefix}{secrets.token_hex(8)}"
        self._filters.append(topic_filter)
        return topic_filter, earlier

    def forget_session(self) -> None:
        """Forget the marks of a session that is lost; the next one has none until it is confirmed."""
        self._filters.clear()
        self._is_set = self._is_answered = False

    def setting(self, packet_id: int | None) -> None:
        """Remember the SUBSCRIBE that sets the mark."""
        self._subscribe_id = packet_id

    def checking(self, packet_id: int | None) -> None:
        """Remember the UNSUBSCRIBE that looks for the earlier marks."""
        self._check_id = packet_id

    def confirm_set(self, packet_id: int, *, is_failure: bool) -> bool:
        """Take a SUBACK; True when it was the mark's."""
        if packet_id != self._subscribe_id:
            return False
        self._is_set = not is_failure
        self._is_answered = True
        return True

    def confirm_check(self, packet_id: int) -> bool:
        """Take an UNSUBACK; True when it answers the check."""
        return packet_id == self._check_id
