"""int8: how near, how fair, how repeatable."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from federation.codec import encode
from federation.learning.codecs import build_codec, decode_sets, encode_sets
from federation.learning.sets import Sets, TensorSet
from federation.params import Array
from tests.wire.tensors import draw, normal, num_bytes_of_simple_cnn, tensors


def test_an_update_of_the_thesis_network_takes_a_quarter() -> None:
    assert num_bytes_of_simple_cnn("float32") / num_bytes_of_simple_cnn("int8") >= 3.9


def test_rounding_by_chance_depends_on_round_node_and_tensor_alone() -> None:
    codec, sets = build_codec("int8", {}), Sets({"model": {"v": normal(50), "w": normal(50)}})
    one, same, other = (encode_sets(codec, sets, bases={}, kept={}, purpose=purpose) for purpose in ("1/a", "1/a", "1/b"))
    assert encode(one) == encode(same) != encode(other)
    alone = encode_sets(codec, Sets({"model": {"w": normal(50)}}), bases={}, kept={}, purpose="1/a")
    assert alone["w#int8"].tobytes() == one["w#int8"].tobytes()


@given(tensors, st.integers(0, 100))
def test_int8_is_within_one_step_of_its_channel(values: Array, seed: int) -> None:
    codec = build_codec("int8", {})
    back = codec.decode(codec.encode(values, draw(seed)), values.shape)
    rows = values.reshape(values.shape[0] if values.ndim > 1 else 1, -1)
    steps = np.abs(rows).max(axis=1, keepdims=True) / 127
    assert (np.abs(back.reshape(rows.shape) - rows) <= steps * 1.0001 + 1e-30).all()


def test_int8_by_hand() -> None:
    codec = build_codec("int8", {})
    values = np.array([[127.0, -64.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    parts = codec.encode(values, draw())
    assert parts["#int8"].tolist() == [[127, -64, 0], [0, 0, 0]]
    assert parts["#scale"].tolist() == [1.0, 0.0]
    assert codec.decode(parts, values.shape).tolist() == values.tolist()


def test_int8_is_right_on_average() -> None:
    """0.3 of a step is rounded up three times in ten: the mean of 4,000 roundings is within 4 standard errors of it."""
    codec = build_codec("int8", {})
    values = np.array([127.0, 0.3], np.float32)
    rounded = [codec.decode(codec.encode(values, draw(seed)), (2,))[1] for seed in range(4000)]
    assert abs(np.mean(rounded) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 4000)


def test_changes_that_are_changes_already_have_no_base() -> None:
    codec = build_codec("int8", {})
    sets = Sets({"model": {"w": np.full((2, 2), 0.5, np.float32)}})
    wire = encode_sets(codec, sets, bases={}, kept={}, purpose="t")
    np.testing.assert_allclose(decode_sets(codec, wire, sets.signatures, bases={})["model"]["w"], 0.5, rtol=1e-2)


def test_delta_is_finer_than_the_model_itself() -> None:
    """int8 of a small change loses less than int8 of the weights."""
    base, change = normal(64, 64), normal(64, 64, seed=1) * np.float32(1e-3)
    sets, bases = Sets({"model": {"w": base + change}}), {"model": TensorSet({"w": base})}
    errors = []
    for delta in (True, False):
        codec = build_codec("int8", {"delta": delta})
        wire = encode_sets(codec, sets, bases=bases, kept={}, purpose="t")
        errors.append(np.abs(decode_sets(codec, wire, sets.signatures, bases=bases)["model"]["w"] - sets["model"]["w"]).max())
    assert errors[0] < errors[1] / 100
