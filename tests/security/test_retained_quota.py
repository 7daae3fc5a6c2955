"""The books of what nodes leave on the broker: honest rounds are never touched, everything else is found."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aggregator.retained_quota import MAX_PRESENCE_TOPICS, PRESENCE_BYTES, UNPLANNED_BYTES, RetainedQuota
from federation.messages import Choice, RoundPlan
from federation.settings import ModelSettings, TrainingSettings

RUN = "fedmq/v2/demo"
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
            method=Choice(name="fedavg"),
            codec=Choice(name="float32"),
            num_nodes=2,
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
    quota.note_own(f"{RUN}/rounds/1/plan", plan(1))
    quota.note(f"{RUN}/nodes/pi-1/status", 800)
    assert quota.sweep() == []
    assert not quota.is_urgent


def test_a_round_nobody_planned_is_cleared_once() -> None:
    quota = RetainedQuota()
    quota.note_own(f"{RUN}/rounds/1/plan", plan(1))
    for topic in update_topics(7):
        quota.note(topic, 1000)
    (excess,) = quota.sweep()
    assert excess.node == "pi-1"
    assert sorted(excess.topics) == sorted(update_topics(7))
    assert "no round 7 of run 'demo' was planned" in excess.reason
    assert quota.sweep() == []


def test_more_than_a_model_in_a_planned_round_is_cleared_and_neighbours_are_not() -> None:
    quota = RetainedQuota()
    quota.note_own(f"{RUN}/rounds/1/plan", plan(1))
    for index in range(10):
        quota.note(f"{RUN}/rounds/1/updates/greedy/chunks/{index}", 262_144)
    for topic in update_topics(1):
        quota.note(topic, 131_072)
    (excess,) = quota.sweep()
    assert excess.node == "greedy"
    assert len(excess.topics) == 10


def test_a_plan_taken_back_takes_the_updates_with_it() -> None:
    quota = RetainedQuota()
    quota.note_own(f"{RUN}/rounds/1/plan", plan(1))
    quota.note(update_topics(1)[0], 1000)
    quota.note_own(f"{RUN}/rounds/1/plan", b"")
    assert [excess.topics for excess in quota.sweep()] == [(update_topics(1)[0],)]


def test_topics_outside_the_protocol_go_at_once_and_are_only_counted() -> None:
    quota = RetainedQuota()
    assert quota.note(f"{RUN}/rounds/1/updates/pi-1/diary/monday", 10)
    assert quota.note("fedmq/v2/UPPER/metrics/pi-2", 10)
    assert quota.note(f"fedmq/v2/{'x' * 60_000}/nodes/pi-1/status", 10)
    assert not quota.note("fedmq/v2/UPPER/metrics/pi-2", 0)
    found = {excess.node: excess for excess in quota.sweep()}
    assert {node: (excess.num_topics, excess.topics) for node, excess in found.items()} == {"pi-1": (2, ()), "pi-2": (1, ())}
    assert found["pi-1"].num_bytes > 120_000
    assert quota.sweep() == []


def test_presence_without_end_is_cleared() -> None:
    quota = RetainedQuota()
    for index in range(9):
        quota.note(f"fedmq/v2/run-{index}/nodes/pi-3/status", PRESENCE_BYTES // 8)
    assert quota.is_urgent
    assert [len(excess.topics) for excess in quota.sweep()] == [9]
    assert not quota.is_urgent


def test_statuses_in_invented_runs_go_and_those_in_runs_that_are_led_stay() -> None:
    quota = RetainedQuota()
    quota.note_own(f"{RUN}/state", b"{}")
    quota.note(f"{RUN}/nodes/pi-1/status", 800)
    for index in range(MAX_PRESENCE_TOPICS):
        quota.note(f"fedmq/v2/run-{index}/nodes/pi-1/status", 800)
    (excess,) = quota.sweep()
    assert len(excess.topics) == MAX_PRESENCE_TOPICS
    assert f"{RUN}/nodes/pi-1/status" not in excess.topics


def test_properties_and_topics_count_at_what_they_cost() -> None:
    quota = RetainedQuota()
    quota.note_own(f"{RUN}/rounds/1/plan", plan(1))
    quota.note(f"{RUN}/rounds/1/updates/pi-1/chunks/0", 1, 3_800_000)
    assert quota.is_urgent
    (excess,) = quota.sweep()
    assert excess.num_bytes > 3_800_000


def test_beyond_its_due_a_node_is_not_waited_for() -> None:
    """Empty messages by the ten thousand in a planned round: the books must not grow until the next sweep."""
    quota = RetainedQuota()
    quota.note_own(f"{RUN}/rounds/1/plan", plan(1))
    index = 0
    while not quota.is_urgent:
        quota.note(f"{RUN}/rounds/1/updates/pi-1/chunks/{index}", 1)
        index += 1
    assert index < 2_000
    assert [excess.num_topics for excess in quota.sweep()] == [index]


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
        quota.note_own(f"{RUN}/{topic}/plan", topic.encode("utf-8", "replace"))
    quota.sweep()
    assert quota.sweep() == []
