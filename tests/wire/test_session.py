"""Whose session it is: a link that is cut at any moment never looks like a twin, and a twin always does."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from federation.broker_address import NO_SUBSCRIPTION_EXISTED
from federation.mqtt_session import Session


class Link:
    """Paho and the broker behind it: takes SUBSCRIBE and UNSUBSCRIBE packets, which a cut link may lose, like their answers."""

    def __init__(self) -> None:
        self.held: set[str] | None = None
        """What the broker's session holds; None while there is none."""
        self._packets: list[tuple[int, bool, list[str]]] = []
        self._last_id = 0

    def subscribe(self, wanted: Sequence[tuple[str, object]]) -> tuple[int, int]:
        """Take a SUBSCRIBE."""
        return self._send([name for name, _ in wanted], is_subscribe=True)

    def unsubscribe(self, names: Sequence[str]) -> tuple[int, int]:
        """Take an UNSUBSCRIBE."""
        return self._send(list(names), is_subscribe=False)

    def _send(self, names: list[str], *, is_subscribe: bool) -> tuple[int, int]:
        self._last_id += 1
        self._packets.append((self._last_id, is_subscribe, names))
        return 0, self._last_id

    def connect(self, session: Session, *, num_taken: int, num_answered: int) -> bool:
        """Connect, carry so many packets and so many of their answers, and cut; return False when a twin was seen."""
        is_clean = session.must_start_clean
        is_present = self.held is not None and not is_clean
        if not is_present:
            self.held = set()
        self._packets.clear()
        session.open(session_present=is_present)
        session.send_wishes()
        is_ours = True
        for index, (packet_id, is_subscribe, names) in enumerate(self._packets[:num_taken]):
            reasons = self._take(names, is_subscribe=is_subscribe)
            if index >= num_answered:
                continue
            if is_subscribe:
                session.confirm_subscribe(packet_id, reasons)
            else:
                is_ours &= session.confirm_unsubscribe(packet_id, reasons)
        session.lose_link()
        return is_ours

    def _take(self, names: list[str], *, is_subscribe: bool) -> list[Any]:
        assert self.held is not None
        reasons = []
        for name in names:
            value = 1 if is_subscribe else 0 if name in self.held else NO_SUBSCRIPTION_EXISTED
            reasons.append(SimpleNamespace(value=value, is_failure=False))
        self.held = self.held | {*names} if is_subscribe else self.held - {*names}
        return reasons


ALL = 10
"""More packets than a connection begins with."""
CUTS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.booleans()), max_size=12)
"""Of each connection: packets that the broker took, those it answered, and whether it then lost the session."""


def opened() -> tuple[Link, Session]:
    link = Link()
    session = Session(cast("Any", link), client_id="node-0", outlives_process=False)
    session.ask(["state"], wanted=True)
    return link, session


@given(cuts=CUTS)
def test_cut_at_any_moment_is_no_twin(cuts: list[tuple[int, int, bool]]) -> None:
    link, session = opened()
    for num_taken, num_answered, is_lost in cuts:
        assert link.connect(session, num_taken=num_taken, num_answered=num_answered)
        if is_lost:
            link.held = None
    assert link.connect(session, num_taken=ALL, num_answered=ALL)
    assert link.held is not None
    assert len(link.held - {"state"}) == 1, "a session gathers no marks"


@given(cuts=CUTS)
def test_twin_that_began_the_session_anew_is_seen(cuts: list[tuple[int, int, bool]]) -> None:
    link, session = opened()
    for num_taken, num_answered, _ in cuts:
        link.connect(session, num_taken=num_taken, num_answered=num_answered)
    link.connect(session, num_taken=ALL, num_answered=ALL)
    link.held = {"of the twin"}
    assert not link.connect(session, num_taken=ALL, num_answered=ALL)
