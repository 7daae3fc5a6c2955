from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from federation.network_pause import FIRST_BACK_OFF_SECONDS, LONGEST_BACK_OFF_SECONDS, BackOff, Deadline
from federation.outbox import MAX_BYTES_ON_WAY, Outbox, Publish, Window
from federation.subscriptions import SessionMark, Subscriptions


def outbox_of(*topics: str) -> Outbox:
    outbox = Outbox()
    for topic in topics:
        assert outbox.put(Publish(topic=topic, payload=topic.encode(), retain=False))
    return outbox


def drain(outbox: Outbox) -> list[str]:
    topics = []
    while (taken := outbox.take(None)) is not None:
        topics.append(taken[0].topic)
    return topics


def test_what_is_on_its_way_is_pending_until_it_is_done() -> None:
    outbox = outbox_of("a", "b")
    assert outbox.take(None) is not None
    assert outbox.num_pending == 2
    outbox.finish_one()
    assert outbox.num_pending == 1


def test_what_is_on_its_way_is_not_dropped() -> None:
    outbox = outbox_of("r/1/a", "r/1/b", "r/10/a", "r/1")
    assert outbox.take(None) is not None
    assert outbox.drop("r/1/") == 2
    assert outbox.num_pending == 2
    assert drain(outbox) == ["r/10/a"]


def test_a_closed_outbox_takes_nothing_more_and_its_last_word_is_last() -> None:
    outbox = outbox_of("a")
    final = Publish(topic="final", payload=b"", retain=True)
    outbox.close(final)
    assert not outbox.put(Publish(topic="late", payload=b"", retain=False))
    outbox.close(final)
    assert drain(outbox) == ["a", "final"]


@given(st.integers(1, 40), st.lists(st.integers(0, 5 << 20), max_size=60))
def test_a_window_bounds_number_and_bytes(largest: int, sizes: list[int]) -> None:
    """One payload may pass the limit, so that a chunk larger than it still goes."""
    window = Window(largest)
    held: list[int] = []
    for packet_id, num_bytes in enumerate(sizes):
        assert window.is_open is (len(held) < largest and sum(held) < MAX_BYTES_ON_WAY)
        if not window.is_open:
            assert window.remove(packet_id - len(held))
            held.pop(0)
            if not window.is_open:
                return
        window.add(packet_id, num_bytes)
        held.append(num_bytes)
    assert not window.remove(10_000)


def test_the_last_word_about_a_filter_counts() -> None:
    subscriptions = Subscriptions()
    subscriptions.ask(["a", "b"], wanted=True)
    subscriptions.ask(["a"], wanted=False)
    subscriptions.ask(["c"], wanted=True)
    assert subscriptions.take() == [(True, ["b"]), (False, ["a"]), (True, ["c"])]
    assert subscriptions.take() == []


def test_what_was_not_confirmed_is_asked_again_in_order() -> None:
    subscriptions = Subscriptions()
    subscriptions.ask(["a", "b"], wanted=True)
    subscriptions.take()
    subscriptions.sent(1, wanted=True, filters=["a"])
    subscriptions.sent(2, wanted=True, filters=["b"])
    assert subscriptions.confirm(1) == ["a"]
    subscriptions.ask(["c"], wanted=True)
    subscriptions.forget_confirmations()
    assert subscriptions.take() == [(True, ["b", "c"])]
    assert subscriptions.held() == ["a"]
    subscriptions.sent(3, wanted=False, filters=["a"])
    subscriptions.confirm(3)
    assert subscriptions.held() == []


def test_a_wish_that_could_not_be_sent_does_not_overrule_a_newer_one() -> None:
    subscriptions = Subscriptions()
    subscriptions.ask(["a"], wanted=True)
    subscriptions.take()
    subscriptions.ask(["a"], wanted=False)
    subscriptions.sent(None, wanted=True, filters=["a"])
    assert subscriptions.take() == [(False, ["a"])]


def test_a_mark_counts_only_when_the_broker_took_it() -> None:
    refused, taken = SessionMark("node-0"), SessionMark("node-0")
    assert refused.renew() != taken.renew()
    refused.setting(1)
    taken.setting(1)
    assert not taken.confirm_set(2, is_failure=False)
    assert not taken.is_answered
    assert refused.confirm_set(1, is_failure=True)
    assert taken.confirm_set(1, is_failure=False)
    assert (refused.is_answered, refused.is_set) == (True, False)
    assert (taken.is_answered, taken.is_set) == (True, True)


def test_back_off_grows_with_full_jitter_and_starts_again_after_success() -> None:
    back_off = BackOff()
    for round_number in range(200):
        back_off.reset()
        for attempt in range(12):
            longest = min(LONGEST_BACK_OFF_SECONDS, FIRST_BACK_OFF_SECONDS * 2**attempt)
            assert 0.0 <= back_off.next_seconds() <= longest, round_number
    late = [back_off.next_seconds() for _ in range(200)]
    assert max(late) > LONGEST_BACK_OFF_SECONDS / 2
    assert min(late) < LONGEST_BACK_OFF_SECONDS / 2
    assert max(late) <= LONGEST_BACK_OFF_SECONDS


def test_a_deadline_limits_sleeps_once_it_is_set() -> None:
    deadline = Deadline()
    assert (deadline.is_set, deadline.has_passed, deadline.limit(5.0)) == (False, False, 5.0)
    deadline.set(0.0)
    assert (deadline.is_set, deadline.has_passed, deadline.limit(5.0)) == (True, True, 0.0)
    deadline.extend(1000.0)
    assert not deadline.has_passed
    assert deadline.limit(5.0) == 5.0
