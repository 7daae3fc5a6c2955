from __future__ import annotations

import hashlib
import json
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.codec import FileParams, ParamsWriter, decode, digest, encode, file_digest, layout_of, write_params
from federation.errors import CodecError, LocalProtocolError, RejectReason
from federation.params import Array, TensorSpec, signature_of
from tests.wire.samples import small_params

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
shapes = st.lists(st.integers(1, 5), max_size=4).map(tuple)


@st.composite
def param_sets(draw: st.DrawFn) -> dict[str, Array]:
    chosen = draw(st.dictionaries(names, shapes, max_size=6))
    generator = np.random.default_rng(draw(st.integers(0, 1000)))
    return {name: np.asarray(generator.standard_normal(shape), np.float32) for name, shape in chosen.items()}


def pack(header: object, data: bytes = b"", *, padding: bytes | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8) if padding is None else padding
    return len(text).to_bytes(8, "little") + text + data


def entry(begin: int = 0, end: int = 8, *, shape: object = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [begin, end]}


def assert_same(left: object, right: object) -> None:
    assert isinstance(left, dict)
    assert isinstance(right, dict)
    assert sorted(left) == sorted(right)
    for name, array in left.items():
        assert array.shape == right[name].shape
        np.testing.assert_array_equal(array, right[name])


@given(param_sets())
def test_the_library_reads_what_we_write_and_we_read_what_it_writes(params: dict[str, Array]) -> None:
    payload = encode(params)
    assert_same(safetensors.numpy.load(payload), params)
    assert_same(decode(safetensors.numpy.save(params), signature_of(params)), params)


@given(param_sets())
def test_encoding_is_one_and_its_digest_is_its_sha256(params: dict[str, Array]) -> None:
    payload = encode(params)
    assert encode(dict(reversed(params.items()))) == payload == encode(decode(payload, None))
    assert digest(params) == hashlib.sha256(payload).hexdigest()
    assert layout_of(signature_of(params)).total_bytes == len(payload)


def test_the_encoding_is_these_bytes() -> None:
    """Fixed for good: stored models and digests of rounds depend on it."""
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[],"data_offsets":[8,12]}}'
    padded = header + b" " * (-len(header) % 8)
    expected = len(padded).to_bytes(8, "little") + padded + np.array([1, 2, -0.5], "<f4").tobytes()
    assert encode({"b": np.array(-0.5, np.float32), "a": np.array([1, 2], np.float32)}) == expected


def test_a_strided_tensor_is_written_in_order() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert encode({"w": array.T}) == encode({"w": array.T.copy()})


def test_decoding_copies_nothing() -> None:
    payload = bytearray(encode(small_params()))
    decoded = decode(payload, None)
    payload[-4:] = np.array(7.0, "<f4").tobytes()
    assert decoded["num_batches"] == 7.0


@pytest.mark.parametrize(
    "params", [{"a": np.zeros(2)}, {"a": np.zeros(2, np.int32)}, {"a": np.zeros((2, 0), np.float32)}, {"a": np.zeros((1,) * 9, np.float32)}]
)
def test_what_can_not_be_encoded_is_our_own_error(params: dict[str, Array]) -> None:
    with pytest.raises(LocalProtocolError):
        encode(params)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", RejectReason.CORRUPT),
        (b"\0" * 7, RejectReason.CORRUPT),
        (b"\xff" * 8, RejectReason.CORRUPT),
        ((2**63).to_bytes(8, "little") + b"{}", RejectReason.CORRUPT),
        (((1 << 20) + 1).to_bytes(8, "little") + b" " * ((1 << 20) + 1), RejectReason.CORRUPT),
        (pack(b"not JSON"), RejectReason.CORRUPT),
        (pack(b"\xff\xfe\xfd"), RejectReason.CORRUPT),
        (pack([]), RejectReason.CORRUPT),
        (pack(b"[" * 100_000), RejectReason.CORRUPT),
        (pack(b'{"a":' * 20_000), RejectReason.CORRUPT),
        (pack({"a": entry()}), RejectReason.CORRUPT),
        (pack({"a": entry()}, bytes(9)), RejectReason.CORRUPT),
        (pack({"a": entry()}, bytes(8), padding=b""), RejectReason.CORRUPT),
        (pack({"a": entry()}, bytes(8), padding=b" " * 99), RejectReason.CORRUPT),
        (pack({"__metadata__": {"x": "y"}, "a": entry()}, bytes(8)), RejectReason.CORRUPT),
        (pack({"a": entry() | {"more": 1}}, bytes(8)), RejectReason.CORRUPT),
        (pack({"a": [1]}, bytes(8)), RejectReason.CORRUPT),
        (pack({"b": entry(0, 8), "a": entry(8, 16)}, bytes(16)), RejectReason.CORRUPT),
        (pack({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), RejectReason.CORRUPT),
        (pack({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20)), RejectReason.CORRUPT),
        (pack({"a": entry(8, 16)}, bytes(16)), RejectReason.CORRUPT),
        (pack({"a": entry(-8, 0)}, bytes(8)), RejectReason.CORRUPT),
        (pack({"a": entry(2**63, 2**63 + 8)}, bytes(8)), RejectReason.CORRUPT),
        (pack(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
         RejectReason.CORRUPT),
        (pack(b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)), RejectReason.CORRUPT),
        (pack({f"{i:05}": entry(0, 0, shape=(2**62,)) for i in range(15_000)}), RejectReason.CORRUPT),
        (pack(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}', bytes(8)), RejectReason.CORRUPT),
        (pack({"a": entry(shape=(2**62, 2**62))}, bytes(8)), RejectReason.CORRUPT),
        (pack({"a": entry(0, 4, shape=(2,), dtype="F16")}, bytes(4)), RejectReason.WRONG_DTYPE),
        (pack({"a": entry(dtype="I64")}, bytes(8)), RejectReason.WRONG_DTYPE),
        (pack({"a": entry(shape=(2**63,))}, bytes(8)), RejectReason.WRONG_SHAPE),
        (pack({"a": entry(shape=(-2,))}, bytes(8)), RejectReason.WRONG_SHAPE),
        (pack({"a": entry(0, 0, shape=(0,))}), RejectReason.WRONG_SHAPE),
        (pack({"a": entry(shape=(2.0,))}, bytes(8)), RejectReason.WRONG_SHAPE),
        (pack({"a": entry(shape=(True, 2))}, bytes(8)), RejectReason.WRONG_SHAPE),
        (pack({"a": entry(shape="ab")}, bytes(8)), RejectReason.WRONG_SHAPE),
        (pack({"a": entry(shape=(1,) * 9)}, bytes(4)), RejectReason.WRONG_SHAPE),
    ],
)  # fmt: skip
def test_hostile_bytes_are_refused_by_name(payload: bytes, reason: RejectReason, tmp_path: Path) -> None:
    readers: tuple[Callable[[], object], ...] = (lambda: decode(payload, None), lambda: FileParams(path))
    path = tmp_path / "hostile"
    path.write_bytes(payload)
    for read in readers:
        with pytest.raises(CodecError) as caught:
            read()
        assert caught.value.reason == reason


@given(st.data())
@settings(max_examples=200)
def test_no_changed_byte_of_the_header_goes_unnoticed(data: st.DataObject) -> None:
    params = small_params()
    payload = bytearray(encode(params))
    header_bytes = len(layout_of(signature_of(params)).header)
    position = data.draw(st.integers(0, header_bytes - 1))
    payload[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CodecError):
        decode(payload, signature_of(params))


@given(st.integers(0, 12_000))
def test_a_truncated_set_is_corrupt(num_bytes: int) -> None:
    payload = encode(small_params())
    assert len(payload) > 12_000
    with pytest.raises(CodecError) as caught:
        decode(payload[:num_bytes], signature_of(small_params()))
    assert caught.value.reason == RejectReason.CORRUPT


@pytest.mark.parametrize(
    "expected",
    [
        signature_of(small_params())[:2],
        (*signature_of(small_params()), TensorSpec(name="z", shape=(1,))),
        tuple(TensorSpec(name=spec.name, shape=(*spec.shape, 1)) for spec in signature_of(small_params())),
        (),
    ],
)
def test_a_set_of_another_signature_has_the_wrong_shape(expected: tuple[TensorSpec, ...], tmp_path: Path) -> None:
    write_params(tmp_path / "model", small_params(), durable=False)
    for read in (lambda: decode(encode(small_params()), expected), lambda: FileParams(tmp_path / "model", expected)):
        with pytest.raises(CodecError) as caught:
            read()
        assert caught.value.reason == RejectReason.WRONG_SHAPE


def test_a_written_file_reads_back_tensor_by_tensor(tmp_path: Path) -> None:
    params = small_params()
    path = tmp_path / "model.safetensors"
    sha256 = write_params(path, params)
    stored = FileParams(path, signature_of(params))
    assert_same(dict(stored), params)
    assert len(stored) == 3
    assert stored["fc.weight"] is not stored["fc.weight"]
    assert sha256 == digest(params) == digest(stored) == file_digest(path)
    assert_same(safetensors.numpy.load_file(path), params)
    assert write_params(tmp_path / "copy", stored) == sha256
    with pytest.raises(KeyError):
        stored["absent"]


def test_sha256sum_prints_the_digest(tmp_path: Path) -> None:
    sha256 = write_params(tmp_path / "model.safetensors", small_params())
    output = subprocess.run(["sha256sum", tmp_path / "model.safetensors"], capture_output=True, text=True, check=True).stdout
    assert output.split()[0] == sha256


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model"
    old = write_params(path, small_params(1))
    signature = signature_of(small_params())
    with pytest.raises(ZeroDivisionError), ParamsWriter(path, signature) as writer:
        writer.write("conv.bias", small_params()["conv.bias"] / (1 // 0))
    with pytest.raises(LocalProtocolError, match=r"fc\.weight"), ParamsWriter(path, signature) as writer:
        writer.write("conv.bias", small_params()["conv.bias"])
    assert file_digest(path) == old
    assert [child.name for child in tmp_path.iterdir()] == ["model"]


def test_tensors_are_written_in_order_and_shape(tmp_path: Path) -> None:
    params = small_params()
    with pytest.raises(LocalProtocolError), ParamsWriter(tmp_path / "a", signature_of(params)) as writer:
        writer.write("fc.weight", params["fc.weight"])
    with pytest.raises(LocalProtocolError), ParamsWriter(tmp_path / "b", signature_of(params)) as writer:
        writer.write("conv.bias", params["fc.weight"])
    with pytest.raises(LocalProtocolError):
        ParamsWriter(tmp_path / "c", tuple(reversed(signature_of(params))))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model"
    write_params(path, small_params(1))
    stored = FileParams(path)
    write_params(path, small_params(2))
    with pytest.raises(CodecError, match="changed"):
        stored["fc.weight"]


def test_only_the_tensor_asked_for_is_in_memory(tmp_path: Path) -> None:
    """A model of 40 MB is read with less than two of its 4 MB tensors held: what lets a Pi hold a large model."""
    path = tmp_path / "large"
    params = {f"layer{i}": np.full(1 << 20, i, np.float32) for i in range(10)}
    write_params(path, params, durable=False)
    expected = [float(i) for i in range(10)]
    del params
    stored = FileParams(path)
    tracemalloc.start()
    try:
        means = [float(stored[name].mean()) for name in stored]
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert means == expected
    assert peak_bytes < 9 << 20


def test_tensors_of_a_known_signature_are_computed_once(tmp_path: Path) -> None:
    class Counted(dict[str, Array]):
        num_reads = 0

        def __getitem__(self, name: str) -> Array:
            Counted.num_reads += 1
            return super().__getitem__(name)

    params = Counted(a=np.ones(3, dtype=np.float32), b=np.zeros((2, 2), dtype=np.float32))
    signature = signature_of(params)
    Counted.num_reads = 0
    digest_with = write_params(tmp_path / "one.safetensors", params, signature=signature)
    assert Counted.num_reads == 2
    assert digest_with == write_params(tmp_path / "two.safetensors", params)
