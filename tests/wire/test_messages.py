from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.errors import MessageError, RejectReason, SettingsError
from federation.messages import (
    MAX_MESSAGE_BYTES,
    Ack,
    Choice,
    GlobalManifest,
    Message,
    NodeStatus,
    RoundPlan,
    RunState,
    UpdateManifest,
    canonical_json,
    parse,
)
from federation.settings import RunSettings
from tests.wire.samples import DIGEST, MESSAGES

each_message = pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)


def fields_of(message: Message) -> dict[str, Any]:
    fields = json.loads(message.to_payload())
    assert isinstance(fields, dict)
    return fields


def reason_of(message_type: type[Message], fields: object) -> RejectReason:
    with pytest.raises(MessageError) as caught:
        parse(message_type, json.dumps(fields).encode())
    return caught.value.reason


@each_message
def test_every_message_round_trips(message: Message) -> None:
    assert parse(type(message), message.to_payload()) == message


@each_message
def test_an_unknown_field_is_refused_but_in_plans_and_states(message: Message) -> None:
    """What nodes read may say more to newer ones; what the aggregator counts may not."""
    if isinstance(message, RoundPlan | RunState):
        assert parse(type(message), json.dumps(fields_of(message) | {"surprise": 1}).encode()) == message
    else:
        assert reason_of(type(message), fields_of(message) | {"surprise": 1}) == RejectReason.INVALID_MESSAGE


@pytest.mark.parametrize("message_type", [RoundPlan, RunState])
def test_a_feature_that_must_be_understood_is_refused_by_name(message_type: type[Message]) -> None:
    message = next(message for message in MESSAGES if isinstance(message, message_type))
    payload = json.dumps(fields_of(message) | {"must_understand": ["secure-sums"]}).encode()
    with pytest.raises(MessageError, match="needs secure-sums, which this version does not know: update") as caught:
        parse(message_type, payload)
    assert caught.value.reason == RejectReason.UNSUPPORTED_VERSION


def test_a_method_nobody_knows_here_does_not_make_a_state_or_plan_unreadable() -> None:
    """A node that lacks it has to read them to say so, and to follow later rounds."""
    plan = next(message for message in MESSAGES if isinstance(message, RoundPlan))
    assert parse(RoundPlan, plan.model_copy(update={"method": Choice(name="clinic:Own", settings={"x": [1, {"y": "z"}]})}).to_payload())
    state = next(message for message in MESSAGES if isinstance(message, RunState))
    settings = RunSettings().model_dump(mode="json") | {"method": {"name": "clinic:Own"}}
    read = parse(RunState, state.model_copy(update={"settings": settings}).to_payload())
    with pytest.raises(SettingsError, match="No module named 'clinic'"):
        read.run_settings()


@each_message
def test_another_version_is_named_as_such(message: Message) -> None:
    assert reason_of(type(message), fields_of(message) | {"version": 1}) == RejectReason.UNSUPPORTED_VERSION


@each_message
def test_every_field_without_default_is_needed(message: Message) -> None:
    fields = fields_of(message)
    required = [name for name, field in type(message).model_fields.items() if field.is_required()]
    assert required
    for name in required:
        assert reason_of(type(message), {key: value for key, value in fields.items() if key != name}) == RejectReason.INVALID_MESSAGE


@each_message
def test_a_field_of_another_type_is_refused(message: Message) -> None:
    fields = fields_of(message)
    # A state's settings are checked by those who need them.
    for name in sorted(fields.keys() - {"settings"}):
        for wrong in ({"x": [1]}, [[["x"]]]):
            assert reason_of(type(message), fields | {name: wrong}) in {RejectReason.INVALID_MESSAGE, RejectReason.UNSUPPORTED_VERSION}


@pytest.mark.parametrize(
    ("message_type", "name", "value"),
    [
        (NodeStatus, "node", "../../etc"),
        (NodeStatus, "node", "UPPER"),
        (NodeStatus, "online", 1),
        (NodeStatus, "num_examples", -1),
        (NodeStatus, "num_examples", 2**63),
        (NodeStatus, "num_examples", "10"),
        (NodeStatus, "problem", "x" * 501),
        (NodeStatus, "software", {"a b": "c"}),
        (RoundPlan, "round_number", 0),
        (RoundPlan, "deadline_seconds", 0.0),
        (RoundPlan, "codec", "pickle"),
        (RoundPlan, "global_bytes", 2**63),
        (RoundPlan, "cohort", ["node-0", "a/b"]),
        (GlobalManifest, "total_bytes", 0),
        (GlobalManifest, "total_bytes", 2**63),
        (GlobalManifest, "chunk_bytes", 1),
        (GlobalManifest, "chunk_bytes", 2**31),
        (GlobalManifest, "chunk_sha256", []),
        (GlobalManifest, "chunk_sha256", [DIGEST.upper()]),
        (GlobalManifest, "sha256", DIGEST[:-1]),
        (UpdateManifest, "num_examples", 0),
        (Ack, "outcome", "maybe"),
        (Ack, "missing", [-1]),
    ],
)
def test_a_value_out_of_bounds_is_refused(message_type: type[Message], name: str, value: object) -> None:
    message = next(message for message in MESSAGES if isinstance(message, message_type))
    assert reason_of(message_type, fields_of(message) | {name: value}) == RejectReason.INVALID_MESSAGE


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_none_is_refused(number: str) -> None:
    plan = next(message for message in MESSAGES if isinstance(message, RoundPlan))
    payload = plan.to_payload().replace(b'"learning_rate":0.001,"method', f'"learning_rate":{number},"method'.encode())
    assert number.encode() in payload
    with pytest.raises(MessageError):
        parse(RoundPlan, payload)


def test_an_oversized_payload_is_refused_unread() -> None:
    with pytest.raises(MessageError) as caught:
        parse(Ack, b" " * (MAX_MESSAGE_BYTES + 1))
    assert caught.value.reason == RejectReason.OVERSIZED


@given(st.binary(max_size=200))
def test_bytes_that_are_no_message_are_refused(payload: bytes) -> None:
    with pytest.raises(MessageError):
        parse(Ack, payload)


def test_canonical_json_does_not_depend_on_order() -> None:
    assert canonical_json({"b": 1, "a": [1, 2]}) == canonical_json({"a": [1, 2], "b": 1}) == b'{"a":[1,2],"b":1}'
