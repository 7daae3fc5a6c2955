"""Model files: the card inside, hostile and foreign files, replacement in one step."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from federation.errors import ModelFileError
from federation.inference.card import ModelCard, read_card
from federation.inference.classifier import Classifier, load_classifier
from federation.inference.conversion import Converter
from federation.inference.graph import take_pixels, with_card
from federation.inference.model_file import read_model, replace_file
from tests.inference.networks import MNIST_CNN, card_of, digits, digits_params


def digits_model(**changes: object) -> bytes:
    graph = take_pixels(Converter().convert(MNIST_CNN, digits().image_shape, 10, digits_params()).model)
    return with_card(graph, card_of(digits(), digits_params()).model_copy(update=changes))


def test_the_card_comes_back_from_the_file() -> None:
    card = card_of(digits(), digits_params(), round_number=7)
    assert Classifier(digits_model(round_number=7), num_threads=1).card == card
    assert read_card(card.to_metadata()) == card


def test_the_classifier_names_the_classes_of_the_evaluation() -> None:
    """The digits' test images: best first, probabilities that sum to 1 over all classes."""
    test = digits().test
    classifier = Classifier(digits_model(), num_threads=1)
    best = [found[0] for found in classifier.classify(test.images, top=1)]
    assert np.mean([prediction.class_index == label for prediction, label in zip(best, test.labels, strict=True)]) > 0.9
    (everything,) = classifier.classify(test.images[:1], top=99)
    assert len(everything) == 10
    assert sum(prediction.probability for prediction in everything) == pytest.approx(1.0)
    assert [prediction.probability for prediction in everything] == sorted((p.probability for p in everything), reverse=True)
    assert everything[0] == best[0]


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    whole = digits_model()
    for payload in (b"", b"junk", whole[:-100], whole[: len(whole) // 2]):
        path = tmp_path / "model.onnx"
        path.write_bytes(payload)
        with pytest.raises(ModelFileError, match=r"model\.onnx"):
            load_classifier(path, num_threads=1)


def test_a_foreign_model_is_refused_with_what_to_use() -> None:
    model = onnx.load_from_string(digits_model())
    del model.metadata_props[:]
    with pytest.raises(ModelFileError, match="fedmq export"):
        Classifier(model.SerializeToString(), num_threads=1)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"class_names": ("a", "b")}, "10 outputs, its card 2 class names"),
        ({"image_shape": (1, 9, 8)}, "its card says"),
    ],
)
def test_a_card_that_does_not_fit_its_graph_is_refused(changes: dict[str, object], text: str) -> None:
    with pytest.raises(ModelFileError, match=text):
        Classifier(digits_model(**changes), num_threads=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fedmq.round_number", '"seven"'),
        ("fedmq.round_number", "{"),
        ("fedmq.class_names", "[]"),
        ("fedmq.weights_digest", '"../x"'),
        ("fedmq.version", "2"),
        ("fedmq.surprise", "1"),
        ("fedmq.normalisation", '"x / 255"'),
    ],
)
def test_a_damaged_card_is_refused(name: str, value: str) -> None:
    metadata = card_of(digits(), digits_params()).to_metadata() | {name: value}
    with pytest.raises(ModelFileError, match="damaged"):
        read_card(metadata)


def test_a_missing_file_says_where_models_come_from(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"models/current\.onnx"):
        read_model(tmp_path / "current.onnx")
    with pytest.raises(ModelFileError, match="can't be read"):
        read_model(tmp_path)


def test_a_reader_sees_the_old_file_or_the_new_one_whole(tmp_path: Path) -> None:
    """A thread that reads as fast as it can while the file is replaced a hundred times."""
    path, sizes, stop = tmp_path / "models" / "current.onnx", set[tuple[int, int]](), threading.Event()
    replace_file(path, bytes([0]) * 200_000)

    def read() -> None:
        while not stop.is_set():
            content = path.read_bytes()
            sizes.add((len(content), len(set(content))))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(100):
        replace_file(path, bytes([number]) * 200_000)
    stop.set()
    reader.join()
    assert sizes == {(200_000, 1)}
    assert [entry.name for entry in path.parent.iterdir()] == ["current.onnx"]


def test_a_failed_replacement_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "current.onnx"
    target.mkdir()
    (target / "kept").write_text("kept", encoding="utf-8")
    with pytest.raises(OSError, match=r"current\.onnx|directory"):
        replace_file(target, b"new")
    assert (target / "kept").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["current.onnx"]


def test_metadata_of_other_programs_is_left_alone() -> None:
    model = onnx.load_from_string(digits_model())
    helper.set_model_props(model, {**{entry.key: entry.value for entry in model.metadata_props}, "author": "someone"})
    card: ModelCard = Classifier(model.SerializeToString(), num_threads=1).card
    assert card.run == "test"
