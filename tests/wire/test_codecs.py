"""Codecs: what comes back, what is lost, what is known beforehand, and what hostile parts can do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.codec import decode, encode
from federation.errors import CodecError, LocalProtocolError, RejectReason, SettingsError
from federation.layout import layout_of
from federation.learning.codecs import CODECS, Codec, build_codec, decode_sets, encode_sets, flatten, unflatten, wire_signature
from federation.learning.sets import Sets, TensorSet
from federation.params import Array, TensorSpec, signature_of
from tests.wire.tensors import draw, normal, tensors

VARIANTS = [(name, {"delta": delta}) for name in sorted(CODECS) for delta in (False, True)]


def variants() -> st.SearchStrategy[Codec]:
    return st.sampled_from(VARIANTS).map(lambda variant: build_codec(*variant))


@given(variants(), tensors)
def test_parts_are_of_the_shapes_and_types_promised_and_come_back_in_shape(codec: Codec, values: Array) -> None:
    sets = Sets({"model": {"w": values}, "control": {"w": values}})
    wire = encode_sets(codec, sets, bases={}, kept={}, purpose="t")
    signature = wire_signature(codec, sets.signatures)
    assert signature_of(wire) == signature
    payload = encode(wire)
    assert len(payload) == layout_of(signature).total_bytes
    back = decode_sets(codec, decode(payload, signature), sets.signatures, bases={})
    assert back.signatures == sets.signatures
    assert back["model"]["w"].dtype == np.float32
    assert np.isfinite(back["model"]["w"]).all()


@given(variants(), tensors, st.integers(0, 5))
def test_encoding_and_decoding_repeat_bit_for_bit(codec: Codec, values: Array, purpose: int) -> None:
    sets = Sets({"model": {"w": values}})
    base = {"model": TensorSet({"w": np.full_like(values, 0.25)})}
    first, second = (encode(encode_sets(codec, sets, bases=base, kept={}, purpose=str(purpose))) for _ in range(2))
    assert first == second
    wire = decode(first, wire_signature(codec, sets.signatures))
    one, other = (decode_sets(codec, wire, sets.signatures, bases=base)["model"]["w"] for _ in range(2))
    assert one.tobytes() == other.tobytes()


@given(tensors)
def test_float32_loses_nothing(values: Array) -> None:
    codec = build_codec("float32", {})
    wire = encode_sets(codec, Sets({"model": {"w": values}}), bases={}, kept={}, purpose="t")
    assert encode(wire) == encode({"w": values})


@given(tensors)
def test_float16_is_within_half_a_unit_in_the_last_place(values: Array) -> None:
    codec = build_codec("float16", {})
    back = codec.decode(codec.encode(values, draw()), values.shape)
    np.testing.assert_allclose(back, values, rtol=2**-11, atol=2**-25)


def test_float16_sends_its_largest_number_rather_than_infinity() -> None:
    codec = build_codec("float16", {})
    values = np.array([1e30, -1e30], np.float32)
    assert list(codec.decode(codec.encode(values, draw()), (2,))) == [65504.0, -65504.0]


@pytest.mark.parametrize("name", sorted(CODECS))
def test_hostile_parts_give_a_refusal_or_finite_or_infinite_numbers_but_no_other_error(name: str) -> None:
    """Parts of the right shapes and types with any bits in them."""
    codec = build_codec(name, {})
    generator = draw()
    signature = wire_signature(codec, {"model": (TensorSpec(name="w", shape=(6, 50)),)})
    num_bytes = layout_of(signature).total_bytes - len(layout_of(signature).header)
    refused = []
    for _ in range(200):
        payload = layout_of(signature).header + generator.bytes(num_bytes)
        try:
            sets = decode_sets(codec, decode(payload, signature), {"model": (TensorSpec(name="w", shape=(6, 50)),)}, bases={})
            assert sets["model"]["w"].shape == (6, 50)
        except CodecError as error:
            refused.append(error.reason)
    assert set(refused) <= {RejectReason.CORRUPT}


@pytest.mark.parametrize("name", sorted(CODECS))
def test_parts_of_another_type_or_shape_are_refused_before_they_are_decoded(name: str) -> None:
    codec = build_codec(name, {})
    model = (TensorSpec(name="w", shape=(3, 40)),)
    signature = wire_signature(codec, {"model": model})
    wire = encode_sets(codec, Sets({"model": {"w": normal(3, 40)}}), bases={}, kept={}, purpose="t")
    first = signature[0].name
    wrong_type = {**wire, first: wire[first].astype(np.float16 if wire[first].dtype != np.float16 else np.float32)}
    wrong_shape = {**wire, first: np.concatenate([wire[first], wire[first]])}
    for changed, reason in ((wrong_type, RejectReason.WRONG_DTYPE), (wrong_shape, RejectReason.WRONG_SHAPE)):
        with pytest.raises(CodecError) as caught:
            decode(encode(changed), signature)
        assert caught.value.reason == reason


def test_names_that_could_be_taken_for_parts_are_refused() -> None:
    codec = build_codec("float16", {})
    for sets in (Sets({"model": {"w#float16": normal(3)}}), Sets({"a:b": {"w": normal(3)}})):
        with pytest.raises(LocalProtocolError):
            encode_sets(codec, sets, bases={}, kept={}, purpose="t")


@pytest.mark.parametrize(
    ("name", "values", "text"),
    [
        ("int4", {}, "there is no codec 'int4'; there are float16, float32"),
        ("float32", {"share": 0.1}, "codec.share: float32 has no such setting"),
        ("float16", {"delta": 1}, "codec.delta: "),
    ],
)
def test_wrong_settings_are_named(name: str, values: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        build_codec(name, values)


def test_sets_lie_flat_in_a_file_and_come_apart_again() -> None:
    sets = Sets({"model": {"a.w": normal(3), "b": normal(2)}, "control": {"a.w": normal(3, seed=1)}})
    flat = flatten(sets)
    assert sorted(flat) == ["a.w", "b", "control:a.w"]
    assert encode(flat) == encode(encode_sets(build_codec("float32", {}), sets, bases={}, kept={}, purpose="t"))
    back = unflatten(flat)
    assert back.signatures == sets.signatures
    assert back["control"]["a.w"].tobytes() == sets["control"]["a.w"].tobytes()
