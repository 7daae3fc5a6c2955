"""topk: what is chosen, how it is told, and that nothing is lost for good."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from federation.errors import CodecError, RejectReason
from federation.learning.codecs import build_codec, decode_sets, encode_sets
from federation.learning.codecs.topk import choose_positions
from federation.learning.sets import Sets, TensorSet
from federation.params import Array
from tests.wire.tensors import draw, normal, num_bytes_of_simple_cnn


def test_an_update_of_the_thesis_network_takes_a_twenty_fifth() -> None:
    assert num_bytes_of_simple_cnn("float32") / num_bytes_of_simple_cnn("topk") >= 25


@given(arrays.arrays(np.float32, st.integers(1, 3000), elements=st.floats(0, 1, width=32)), st.floats(0.004, 1.0), st.integers(0, 10_000))
@settings(max_examples=200)
def test_positions_are_as_many_as_promised_near_enough_and_hold_the_largest(magnitudes: Array, share: float, spike: int) -> None:
    magnitudes = magnitudes.copy()
    magnitudes[spike % len(magnitudes)] = 2.0
    num_chosen = max(int(np.ceil(share * len(magnitudes))), int(np.ceil(len(magnitudes) / 256)))
    positions = choose_positions(magnitudes, num_chosen)
    assert len(positions) == num_chosen
    assert (np.diff(positions, prepend=-1) >= 1).all()
    assert (np.diff(positions, prepend=-1) <= 256).all()
    assert positions[-1] < len(magnitudes)


def test_positions_of_a_dense_choice_are_the_largest_values() -> None:
    magnitudes = np.abs(normal(10_000))
    positions = choose_positions(magnitudes, 500)
    assert set(positions) == set(np.argsort(-magnitudes)[:500])


def test_topk_sends_a_far_value_and_the_steps_that_lead_to_it() -> None:
    codec = build_codec("topk", {"share": 0.004, "values": "float32"})
    values = np.zeros(1024, np.float32)
    values[1000] = 7.0
    values[255], values[511] = 0.5, 0.25
    parts = codec.encode(values, draw())
    assert len(parts["#gaps"]) == 5
    assert codec.decode(parts, (1024,)).tolist() == values.tolist()


def quantities() -> st.SearchStrategy[list[Array]]:
    return st.lists(arrays.arrays(np.float32, (7, 9), elements=st.floats(-8, 8, width=32, allow_subnormal=False)), min_size=1, max_size=8)


@given(quantities(), st.sampled_from(["int8", "float32"]))
@settings(max_examples=60)
def test_with_error_feedback_what_was_sent_and_what_is_kept_is_all_there_was(updates: list[Array], values: str) -> None:
    codec = build_codec("topk", {"share": 0.1, "values": values})
    kept: dict[str, TensorSet] = {}
    sent = np.zeros((7, 9))
    base = {"model": TensorSet({"w": normal(7, 9)})}
    for number, update in enumerate(updates):
        model = TensorSet({"w": base["model"]["w"] + update})
        wire = encode_sets(codec, Sets({"model": model}), bases=base, kept=kept, purpose=str(number))
        sent += decode_sets(codec, wire, {"model": model.signature}, bases={})["model"]["w"]
    total = np.sum(np.stack(updates), axis=0, dtype=np.float64)
    np.testing.assert_allclose(sent + kept["model"]["w"], total, atol=1e-4)


def test_topk_outside_the_tensor_is_corrupt() -> None:
    codec = build_codec("topk", {"share": 0.1})
    parts: dict[str, Array] = {"#gaps": np.full(2, 255, np.uint8), "#int8": np.ones(2, np.int8), "#scale": np.array(1.0, np.float32)}
    with pytest.raises(CodecError) as caught:
        codec.decode(parts, (20,))
    assert caught.value.reason == RejectReason.CORRUPT
