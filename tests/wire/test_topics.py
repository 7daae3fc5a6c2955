from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation import topics as t
from federation.errors import RejectReason, TopicError
from federation.topic_filter import matches

names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,62}", fullmatch=True)
round_numbers = st.integers(1, 9_999_999_999)
indices = st.integers(0, 9_999_999_999)
all_topics: st.SearchStrategy[t.Topic] = st.one_of(
    st.builds(t.StateTopic, names),
    st.builds(t.ControlTopic, names),
    st.builds(t.AggregatorTopic, names),
    st.builds(t.RejectionsTopic, names),
    st.builds(t.StatusTopic, names, names),
    st.builds(t.PlanTopic, names, round_numbers),
    st.builds(t.GlobalManifestTopic, names, round_numbers),
    st.builds(t.GlobalChunkTopic, names, round_numbers, indices),
    st.builds(t.StrategyManifestTopic, names, round_numbers),
    st.builds(t.StrategyChunkTopic, names, round_numbers, indices),
    st.builds(t.UpdateManifestTopic, names, round_numbers, names),
    st.builds(t.UpdateChunkTopic, names, round_numbers, names, indices),
    st.builds(t.AckTopic, names, round_numbers, names),
    st.builds(t.ResultTopic, names, round_numbers),
    st.builds(t.MetricsTopic, names, names),
)


@given(all_topics)
def test_every_topic_round_trips(topic: t.Topic) -> None:
    assert t.parse_topic(str(topic)) == topic
    assert len(str(topic)) <= t.MAX_TOPIC_CHARACTERS


@given(all_topics)
def test_another_version_is_named_as_such(topic: t.Topic) -> None:
    with pytest.raises(TopicError) as caught:
        t.parse_topic(str(topic).replace("/v2/", "/v1/", 1))
    assert caught.value.reason == RejectReason.UNSUPPORTED_VERSION


@given(all_topics, st.data())
def test_a_topic_with_a_level_more_or_less_is_refused(topic: t.Topic, data: st.DataObject) -> None:
    levels = str(topic).split("/")
    position = data.draw(st.integers(0, len(levels) - 1))
    shorter = levels[:position] + levels[position + 1 :]
    longer = [*levels[: position + 1], "", *levels[position + 1 :]]
    for changed in (shorter, longer):
        with pytest.raises(TopicError):
            t.parse_topic("/".join(changed))


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "fedmq",
        "fedmq/v2",
        "fedmq/v2/run",
        "fedmq/v2/Run/state",
        "fedmq/v2/../state",
        "fedmq/v2/run/state/",
        "fedmq/v2/run/rounds/0/plan",
        "fedmq/v2/run/rounds/01/plan",
        "fedmq/v2/run/rounds/-1/plan",
        "fedmq/v2/run/rounds/1e3/plan",
        "fedmq/v2/run/rounds/٣/plan",
        "fedmq/v2/run/rounds/99999999999/plan",
        "fedmq/v2/run/rounds/1/updates/a b/manifest",
        "fedmq/v2/run/rounds/1/global/chunks/x",
        "fedmq/v2/run/nodes/+/status",
        "fedmq/v2/" + "a" * 64 + "/state",
        "fedmq/v2/run/" + "x" * 10_000,
        "$SYS/broker/uptime",
    ],
)
def test_what_is_not_in_the_protocol_is_refused(topic: str) -> None:
    with pytest.raises(TopicError) as caught:
        t.parse_topic(topic)
    assert caught.value.reason == RejectReason.UNKNOWN_TOPIC


def test_a_node_follows_its_round_and_no_other_nodes_acks() -> None:
    filters = t.node_round_filters("run", 3, "node-0")
    followed = {
        topic: any(matches(topic_filter, str(topic)) for topic_filter in filters)
        for topic in (
            t.PlanTopic("run", 3),
            t.GlobalChunkTopic("run", 3, 17),
            t.GlobalManifestTopic("run", 3),
            t.AckTopic("run", 3, "node-0"),
            t.AckTopic("run", 3, "node-1"),
            t.PlanTopic("run", 4),
            t.UpdateChunkTopic("run", 3, "node-0", 1),
        )
    }
    assert list(followed.values()) == [True, True, True, True, False, False, False]


def test_the_aggregator_follows_every_update_of_its_round() -> None:
    filters = t.update_filters("run", 3)
    for topic in (t.UpdateChunkTopic("run", 3, "node-9", 0), t.UpdateManifestTopic("run", 3, "node-9")):
        assert any(matches(topic_filter, str(topic)) for topic_filter in filters)
    assert not any(matches(topic_filter, str(t.UpdateManifestTopic("run", 30, "node-9"))) for topic_filter in filters)


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/+", "a/b/c", False),
        ("a/+/c", "a//c", True),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("a/#", "ab", False),
        ("#", "a/b", True),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
    ],
)
def test_filters_match_as_the_standard_says(topic_filter: str, topic: str, *, expected: bool) -> None:
    """MQTT 5, section 4.7."""
    assert matches(topic_filter, topic) is expected
