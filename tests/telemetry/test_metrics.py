"""Points are checked against one table, and nothing a node sends gets round it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.errors import MessageError
from federation.messages import MetricPoint
from federation.metric_schema import MEASUREMENTS
from federation.metrics import make_point, parse_line, point_of_node

NOW = 1_700_000_000 * 10**9
TAGS = {"run": "r", "strategy": "fedavg"}
NODE_TAGS = TAGS | {"node": "node-0"}


def sent(**changes: Any) -> MetricPoint:
    """Return a point as a node sends it."""
    values: dict[str, Any] = {"measurement": "train", "time_ns": NOW, "tags": {}, "fields": {"loss": 1.5}}
    return MetricPoint.model_validate(values | changes)


def test_numbers_get_the_kind_of_their_field() -> None:
    point = make_point("round", TAGS, {"round_number": 3.0, "loss": 2, "accuracy": None}, NOW)
    assert point.fields == {"round_number": 3, "loss": 2.0}
    assert isinstance(point.fields["round_number"], int)
    assert isinstance(point.fields["loss"], float)


@pytest.mark.parametrize(
    ("measurement", "tags", "fields"),
    [
        ("weather", TAGS, {"value": 1.0}),
        ("round", TAGS | {"colour": "red"}, {"loss": 1.0}),
        ("round", TAGS | {"node": "node-0"}, {"loss": 1.0}),
        ("inference", NODE_TAGS | {"engine": "abacus"}, {"p50_ms": 1.0}),
        ("round", TAGS | {"run": "Not A Name"}, {"loss": 1.0}),
        ("round", TAGS, {"colour": 1.0}),
        ("round", TAGS, {"loss": float("nan")}),
        ("round", TAGS, {"loss": float("inf")}),
        ("round", TAGS, {"round_number": 1.5}),
        ("round", TAGS, {"bytes_up": 2**63}),
        ("round", TAGS, {"loss": 10**400}),
        ("round", TAGS, {"bytes_up": 10**400}),
        ("round", TAGS, {"loss": -(10**5000)}),
        ("round", TAGS, {"loss": "low"}),
        ("event", TAGS | {"kind": "round_opened", "node": "aggregator"}, {"text": 5}),
        ("round", TAGS, {}),
    ],
)
def test_what_the_table_does_not_allow_is_refused(measurement: str, tags: dict[str, str], fields: dict[str, Any]) -> None:
    with pytest.raises(MessageError):
        make_point(measurement, tags, fields, NOW)


def test_the_senders_identity_wins_over_its_payload() -> None:
    point = point_of_node(sent(tags={"node": "node-9", "run": "other"}), tags=NODE_TAGS, round_number=4, now_ns=NOW)
    assert point.tags == NODE_TAGS
    assert point.fields == {"loss": 1.5, "round_number": 4}


@pytest.mark.parametrize("time_ns", [0, NOW - 15 * 86_400 * 10**9, NOW + 2 * 3600 * 10**9])
def test_a_clock_that_is_off_is_named(time_ns: int) -> None:
    with pytest.raises(MessageError, match="clock"):
        point_of_node(sent(time_ns=time_ns), tags=NODE_TAGS, round_number=0, now_ns=NOW)


@pytest.mark.parametrize("measurement", [name for name, entry in MEASUREMENTS.items() if entry.sender == "aggregator"])
def test_a_node_can_not_speak_for_the_aggregator(measurement: str) -> None:
    # Past the message's own list of measurements: this check must hold by itself.
    point = MetricPoint.model_construct(measurement=measurement, time_ns=NOW, tags={}, fields={"value": 1.0})
    with pytest.raises(MessageError, match="do not send"):
        point_of_node(point, tags=NODE_TAGS, round_number=0, now_ns=NOW)


@given(
    loss=st.floats(allow_nan=False, allow_infinity=False),
    number=st.integers(0, 10**9),
    time_ns=st.integers(0, 2**63 - 1),
)
def test_a_line_reads_back_as_the_point(loss: float, number: int, time_ns: int) -> None:
    point = make_point("round", TAGS, {"loss": loss, "round_number": number}, time_ns)
    assert parse_line(point.to_line()) == point


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_other_line_is_a_named_error(line: bytes) -> None:
    with pytest.raises(MessageError):
        parse_line(line)


@pytest.mark.parametrize("line", ["[]", "1", '{"measurement":1}', '{"measurement":"round","tags":[],"fields":{},"time_ns":1}'])
def test_json_that_is_no_point_is_a_named_error(line: str) -> None:
    with pytest.raises(MessageError):
        parse_line(line)


def test_nodes_may_send_exactly_what_the_message_lists() -> None:
    listed = set(MetricPoint.model_fields["measurement"].annotation.__args__)  # type: ignore[union-attr]
    assert listed == {name for name, entry in MEASUREMENTS.items() if entry.sender == "node"}
