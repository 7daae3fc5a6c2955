"""The books of what nodes leave on the broker: honest rounds are never touched, everything else is found."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aggregator.retained_quota import PRESENCE_BYTES, UNPLANNED_BYTES, RetainedQuota
from federation.messages import RoundPlan
from federation.settings import ModelSettings, TrainingSettings

RUN = "fedmq/v1/demo"
GLOBAL_BYTES = 394_640


def plan(round_number: int) -> bytes:
    return (
        RoundPlan(
            run="demo",
            round_number=round_number,
            epoch=1,
            cohort=["pi-1"],
            deadline_seconds=60.0,
            seed=0,
            model=ModelSettings(),
            training=TrainingSettings(),
            learning_rate=0.001,
            global_digest="0" * 64,
            global_bytes=GLOBAL_BYTES,
        )
        .model_dump_json()
        .encode()
    )


def update_topics(round_number: int, node: str = "pi-1") -> list[str]:
    prefix = f"{RUN}/rounds/{round_number}/updates/{node}"
    return [f"{prefix}/chunks/0", f"{prefix}/chunks/1", f"{prefix}/manifest"]


def test_an_honest_round_is_left_alone_also_when_the_plan_is_read_late() -> None:
    quota = RetainedQuota()
    for topic, size in zip(update_topics(1), (262_144, 132_496, 2_000), strict=True):
        quota.note(topic, size)
    quota.note_plan(f"{RUN}/rounds/1/plan", plan(1))
    quota.note(f"{RUN}/nodes/pi-1/status", 800)
    assert quota.sweep() == []
    assert not quota.is_urgent


def test_a_round_nobody_planned_is_cleared_once() -> None:
    quota = RetainedQuota()
    quota.note_plan(f"{RUN}/rounds/1/plan", plan(1))
    for topic in update_topics(7):
        quota.note(topic, 1000)
    (excess,) = quota.sweep()
    assert excess.node == "pi-1"
    assert sorted(excess.topics) == sorted(update_topics(7))
    assert "no round 7 of run 'demo' was planned" in excess.reason
    assert quota.sweep() == []


def test_more_than_a_model_in_a_planned_round_is_cleared_and_neighbours_are_not() -> None:
    quota = RetainedQuota()
    quota.note_plan(f"{RUN}/rounds/1/plan", plan(1))
    for index in range(10):
        quota.note(f"{RUN}/rounds/1/updates/greedy/chunks/{index}", 262_144)
    for topic in update_topics(1):
        quota.note(topic, 131_072)
    (excess,) = quota.sweep()
    assert excess.node == "greedy"
    assert len(excess.topics) == 10


def test_a_plan_taken_back_takes_the_updates_with_it() -> None:
    quota = RetainedQuota()
    quota.note_plan(f"{RUN}/rounds/1/plan", plan(1))
    quota.note(update_topics(1)[0], 1000)
    quota.note_plan(f"{RUN}/rounds/1/plan", b"")
    assert [excess.topics for excess in quota.sweep()] == [(update_topics(1)[0],)]


def test_topics_outside_the_protocol_and_presence_without_end_are_cleared() -> None:
    quota = RetainedQuota()
    quota.note(f"{RUN}/rounds/1/updates/pi-1/diary/monday", 10)
    quota.note("fedmq/v1/UPPER/metrics/pi-2", 10)
    for index in range(9):
        quota.note(f"fedmq/v1/run-{index}/nodes/pi-3/status", PRESENCE_BYTES // 8)
    assert {excess.node: len(excess.topics) for excess in quota.sweep()} == {"pi-1": 1, "pi-2": 1, "pi-3": 9}


def test_what_was_cleared_is_no_longer_counted() -> None:
    quota = RetainedQuota()
    for topic in update_topics(7):
        quota.note(topic, 1000)
        quota.note(topic, 0)
    assert quota.sweep() == []


def test_a_flood_is_urgent_before_its_sweep_is_due() -> None:
    quota = RetainedQuota()
    for index in range(UNPLANNED_BYTES // 1_000_000 + 1):
        quota.note(f"{RUN}/rounds/9/updates/pi-1/chunks/{index}", 1_000_000)
    assert quota.is_urgent
    quota.sweep()
    assert not quota.is_urgent


@given(st.lists(st.tuples(st.text(max_size=60), st.integers(0, 10**7)), max_size=40))
def test_no_topic_breaks_the_books(messages: list[tuple[str, int]]) -> None:
    quota = RetainedQuota()
    for topic, size in messages:
        quota.note(f"{RUN}/{topic}", size)
        quota.note_plan(f"{RUN}/{topic}/plan", topic.encode("utf-8", "replace"))
    quota.sweep()
    assert quota.sweep() == []
