"""`fedmq data`, and what every command says of images it can't use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.command import fedmq


def medmnist_arrays(**changes: Any) -> dict[str, Any]:
    """Return a small sound data set under MedMNIST's keys: 60 images of 3 classes."""
    generator = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, num in (("train", 36), ("val", 12), ("test", 12)):
        arrays[f"{split}_images"] = generator.integers(0, 256, (num, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(num) % 3).astype(np.uint8)[:, None]
    return arrays | changes


def test_list_names_sets_with_classes_and_licence() -> None:
    known = {entry["name"]: entry for entry in fedmq("data", "list", "--json").json["known"]}
    assert {"digits", "mnist", "cifar10", "pathmnist", "bloodmnist", "breastmnist"} <= set(known)
    assert known["pathmnist"]["classes"] == 9
    assert known["pathmnist"]["sizes"] == [28, 64, 128, 224]
    assert all(entry["licence"] for entry in known.values())
    assert "bloodmnist" in fedmq("data", "list").stdout


def test_list_shows_the_data_folder(tmp_path: Path) -> None:
    np.savez(tmp_path / "ours.npz", **medmnist_arrays())
    assert fedmq("data", "list", "--json", FEDMQ_DATA_DIR=str(tmp_path)).json["data_dir"] == [str(tmp_path / "ours.npz")]
    assert "ours.npz" in fedmq("data", "list", FEDMQ_DATA_DIR=str(tmp_path)).stdout


def test_fetch_says_what_a_set_holds() -> None:
    facts = fedmq("data", "fetch", "digits", "--json").json
    assert facts["image_shape"] == [1, 8, 8]
    assert facts["class_names"] == [str(digit) for digit in range(10)]
    assert facts["train"] + facts["test"] == 1797


def test_partition_deals_every_example_once(tmp_path: Path) -> None:
    picture = tmp_path / "parts.png"
    dealt = fedmq("data", "partition", "digits", "--nodes", "4", "--alpha", "0.3", "--png", picture, "--json").json
    counts = np.array(dealt["counts"])
    assert counts.shape == (4, 10)
    assert counts.sum() == fedmq("data", "fetch", "digits", "--json").json["train"]
    assert len(dealt["validation"]) == 4
    with Image.open(picture) as image:
        image.load()
        assert image.format == "PNG"


def test_partition_shows_a_table() -> None:
    shown = fedmq("data", "partition", "digits", "--scheme", "shards", "--nodes", "5")
    assert shown.status == 0
    assert all(f"node-{index}" in shown.stdout for index in range(5))


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["--scheme", "random"], 2, "partition.scheme"),
        (["--alpha", "0"], 2, "partition.alpha"),
        (["--alpha", "nan"], 2, "partition.alpha"),
        (["--size", "30"], 2, "data.size"),
        (["--nodes", "0"], 2, "--nodes"),
        (["--nodes", "5000"], 1, "lower partition.num_nodes"),
        (["--scheme", "shards", "--classes-per-node", "11"], 1, "partition.classes_per_node"),
        (["--png", "no-such-folder/parts.png"], 1, "no-such-folder/parts.png: No such file or directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_partition_that_can_not_be_is_refused(arguments: list[str], status: int, text: str) -> None:
    outcome = fedmq("data", "partition", "digits", *arguments)
    assert outcome.status == status
    assert text in outcome.stderr
    assert outcome.stdout == ""


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 200):
        content[place] ^= 0xFF
    path.write_bytes(bytes(content))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [damage, cut, empty])
def test_a_corrupt_file_is_named(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    np.savez_compressed(path, **medmnist_arrays())
    spoil(path)
    outcome = fedmq("data", "fetch", path)
    assert outcome.status == 1
    assert str(path) in outcome.stderr
    assert outcome.stdout == ""


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"train_labels": np.full((36, 1), -1, dtype=np.int64)}, "label"),
        ({"train_labels": np.zeros((35, 1), dtype=np.uint8)}, "label"),
        ({"train_labels": np.full((36, 1), 0.5)}, "label"),
        ({"train_labels": np.zeros((36, 14), dtype=np.uint8)}, "label"),
        ({"train_images": np.zeros((36, 28, 28), dtype=np.float32)}, "uint8"),
        ({"train_images": np.zeros((36, 784), dtype=np.uint8)}, "train_images"),
        ({"test_images": np.zeros((12, 14, 14), dtype=np.uint8)}, "14"),
    ],
    ids=["below zero", "too few", "fractions", "multi-label", "floats", "flat", "two sizes"],
)
def test_labels_and_images_that_can_not_be_are_named(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    np.savez(path, **medmnist_arrays(**changes))
    outcome = fedmq("data", "fetch", path)
    assert outcome.status == 1
    assert str(path) in outcome.stderr
    assert text in outcome.stderr


def test_labels_beyond_a_known_sets_classes_are_out_of_range(tmp_path: Path) -> None:
    np.savez(tmp_path / "breastmnist.npz", **medmnist_arrays())
    outcome = fedmq("data", "fetch", "breastmnist", FEDMQ_DATA_DIR=str(tmp_path))
    assert outcome.status == 1
    assert "labels out of range" in outcome.stderr


def test_a_pickle_in_a_file_is_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "exploded",)

    path = tmp_path / "images.npz"
    labels = np.empty(36, dtype=object)
    labels[:] = [Bomb() for _ in range(36)]
    np.savez(path, **medmnist_arrays(train_labels=labels))
    outcome = fedmq("data", "fetch", path)
    assert outcome.status == 1
    assert str(path) in outcome.stderr
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("command", [("data", "fetch"), ("data", "partition"), ("demo", "--data")], ids=" ".join)
def test_an_unknown_set_is_named_with_those_there_are(command: tuple[str, ...], tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out") if command[0] == "demo" else ()
    outcome = fedmq(*command, "bloodmist", *out)
    assert outcome.status == 1
    assert "no data set 'bloodmist'" in outcome.stderr
    assert "bloodmnist" in outcome.stderr


def test_a_multi_label_set_is_refused_with_a_sentence() -> None:
    outcome = fedmq("data", "fetch", "chestmnist")
    assert outcome.status == 1
    assert "chestmnist can't be used" in outcome.stderr


@pytest.mark.parametrize("command", [("data", "list"), ("data", "fetch", "digits"), ("demo",), ("doctor", "--no-broker")], ids=" ".join)
def test_a_missing_data_folder_is_named(command: tuple[str, ...], tmp_path: Path) -> None:
    outcome = fedmq(*command, FEDMQ_DATA_DIR=str(tmp_path / "none"))
    told = outcome.stdout if command[0] == "doctor" else outcome.stderr
    assert outcome.status == (1 if command[0] == "doctor" else 2)
    assert f"{tmp_path / 'none'} is not a folder" in told


def test_a_file_that_is_not_there_is_named() -> None:
    outcome = fedmq("data", "fetch", "no-such-folder/images.npz")
    assert outcome.status == 1
    assert "no-such-folder/images.npz: no such file or folder" in outcome.stderr
