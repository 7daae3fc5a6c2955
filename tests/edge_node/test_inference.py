"""The device's own model: kept after each round, measured, chosen by speed within an accuracy budget, never in the round's way."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import nn

from edge_node.inference import ACCURACY_BUDGET, OnnxDeployer, choose_candidate
from edge_node.prediction_server import CurrentModel
from federation import models
from federation.codec import digest
from federation.evaluation import evaluate
from federation.images import ImageSet
from federation.inference.classifier import load_classifier
from federation.inference.figures import EngineFigures
from federation.inference.last_good import kept_reason
from federation.inference.trial import Candidate
from federation.messages import MetricPoint
from federation.metrics import make_point
from federation.params import Params
from federation.settings import ModelSettings
from tests.inference.networks import MNIST_CNN, digits, digits_params, settled_params

NO_IMAGES = np.zeros((0, 1, 8, 8), np.uint8)


def deployer(folder: Path, *, validation: ImageSet | None = None, with_int8: bool = True) -> OnnxDeployer:
    dataset = digits()
    return OnnxDeployer(
        validation=validation,
        calibration=dataset.train,
        class_names=dataset.class_names,
        folder=folder,
        num_threads=1,
        time_ns=time.time_ns,
        budget_seconds=0.2,
        with_int8=with_int8,
    )


def deploy(node: OnnxDeployer, params: Params, round_number: int = 1, model: ModelSettings = MNIST_CNN) -> dict[str, MetricPoint]:
    points = node.deploy(run="test", round_number=round_number, model=model, global_digest=digest(params), params=params)
    for point in points:
        make_point(point.measurement, point.tags, point.fields, point.time_ns)  # raises where docs/metrics.md has no such field
    return {point.tags["engine"]: point for point in points}


def test_a_deployed_model_is_the_round_s_and_predicts_as_pytorch_evaluates(tmp_path: Path) -> None:
    points = deploy(deployer(tmp_path, validation=digits().test), digits_params(), round_number=3)
    module = models.build(MNIST_CNN, (1, 8, 8), 10, seed=0)
    models.load_parameters(module, digits_params())
    expected = evaluate(module, digits().test, 10)
    assert set(points) == {"torch", "onnx", "onnx-int8"}
    for engine in ("torch", "onnx"):
        assert points[engine].fields["accuracy"] == expected.accuracy
        assert points[engine].fields["f1_macro"] == expected.f1_macro
    assert points["onnx"].fields["parity"] == 1
    assert points["onnx"].fields["different_predictions"] == 0
    assert points["onnx"].fields["model_bytes"] > 2 * points["onnx-int8"].fields["model_bytes"]
    card = load_classifier(tmp_path / "current.onnx", num_threads=1).card
    assert (card.run, card.round_number, card.weights_digest) == ("test", 3, digest(digits_params()))
    (current,) = [engine for engine, point in points.items() if point.fields["is_current"]]
    assert card.precision == {"onnx": "float32", "onnx-int8": "int8"}[current]


def spoilt(params: Params) -> Params:
    """Return a model that guesses: every weight is a large number of no meaning."""
    generator = np.random.default_rng(1)
    return {name: (100 * generator.normal(size=params[name].shape)).astype(np.float32) for name in params}


def test_a_spoilt_model_never_takes_the_place_of_a_good_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    node = deployer(tmp_path, validation=digits().test, with_int8=False)
    deploy(node, digits_params(), round_number=2)
    points = deploy(node, spoilt(digits_params()), round_number=3)
    assert (points["onnx"].fields["is_current"], points["onnx"].fields["is_kept_out"]) == (0, 1)
    assert "onnx=kept" in caplog.text
    assert load_classifier(tmp_path / "current.onnx", num_threads=1).card.round_number == 2
    # A new process knows it, too, and says it to whoever asks.
    again = deployer(tmp_path, validation=digits().test, with_int8=False)
    deploy(again, spoilt(digits_params()), round_number=4)
    assert load_classifier(tmp_path / "current.onnx", num_threads=1).card.round_number == 2
    assert "the model of round 2 stays in use" in kept_reason(tmp_path)
    assert "stays in use" in CurrentModel(tmp_path / "current.onnx", num_threads=1).notice
    deploy(again, digits_params(), round_number=5)
    assert load_classifier(tmp_path / "current.onnx", num_threads=1).card.round_number == 5
    assert kept_reason(tmp_path) == ""


def test_every_round_replaces_the_model_and_exports_only_once(tmp_path: Path) -> None:
    node = deployer(tmp_path, validation=digits().test, with_int8=False)
    first = deploy(node, settled_params(MNIST_CNN, (1, 8, 8), 10, seed=0), round_number=1)
    second = deploy(node, digits_params(), round_number=2)
    assert [point.fields["is_filled"] for point in (first["onnx"], second["onnx"])] == [0, 1]
    assert first["onnx"].fields["export_seconds"] > 0
    assert second["onnx"].fields["export_seconds"] == 0
    assert load_classifier(tmp_path / "current.onnx", num_threads=1).card.round_number == 2


def test_the_batch_size_is_measured_once_per_device_and_kept(tmp_path: Path) -> None:
    points = deploy(deployer(tmp_path, validation=digits().test, with_int8=False), digits_params())
    (key,) = facts = json.loads((tmp_path / "device.json").read_text(encoding="utf-8"))
    assert facts[key] == points["onnx"].fields["batch_size"]
    (tmp_path / "device.json").write_text(json.dumps({key: 7}), encoding="utf-8")
    assert deploy(deployer(tmp_path, validation=digits().test, with_int8=False), digits_params())["onnx"].fields["batch_size"] == 7


@pytest.mark.parametrize("content", ["", "[1]", '{"batch_size": "x"}', "\x00"])
def test_a_damaged_device_file_is_measured_again(content: str, tmp_path: Path) -> None:
    (tmp_path / "device.json").write_text(content, encoding="utf-8")
    deploy(deployer(tmp_path, validation=digits().test, with_int8=False), digits_params())
    assert any(key.startswith("batch_size mnist_cnn 1x8x8") for key in json.loads((tmp_path / "device.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("validation", [None, ImageSet(images=NO_IMAGES, labels=np.zeros(0, np.int64))])
def test_a_node_without_validation_images_uses_float32_and_claims_no_accuracy(validation: ImageSet | None, tmp_path: Path) -> None:
    points = deploy(deployer(tmp_path, validation=validation), digits_params())
    assert all("accuracy" not in point.fields for point in points.values())
    assert points["onnx"].fields["is_current"] == 1
    assert points["onnx"].fields["onnx_ms"] > 0


def evaluated_accuracy() -> float:
    module = models.build(MNIST_CNN, (1, 8, 8), 10, seed=0)
    models.load_parameters(module, digits_params())
    return evaluate(module, digits().test, 10).accuracy


class _Unexportable(nn.Module):
    """Holds an operation that ONNX has not got."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.output = nn.Linear(int(np.prod(image_shape)), num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.output(torch.special.i0e(images.flatten(1)))
        return logits


def test_a_model_that_can_t_be_exported_says_why_and_leaves_the_old_one_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node = deployer(tmp_path, validation=digits().test)
    deploy(node, digits_params(), round_number=1)
    before = (tmp_path / "current.onnx").read_bytes()
    monkeypatch.setitem(cast("MutableMapping[str, object]", models.NETWORKS), "custom", _Unexportable)
    custom = ModelSettings.model_construct(name="custom")
    params = models.parameters_of(_Unexportable((1, 8, 8), 10))
    points = deploy(node, params, round_number=2, model=custom)
    assert points["onnx"].tags["reason"] == "unsupported_special_i_e"
    assert points["onnx"].fields == {"failed": 1}
    assert "special_i0e" in caplog.text
    assert (tmp_path / "current.onnx").read_bytes() == before
    assert deploy(node, digits_params(), round_number=3)["onnx"].fields["parity"] == 1


def test_weights_of_another_network_are_a_point_and_not_an_exception(tmp_path: Path) -> None:
    points = deploy(deployer(tmp_path, validation=digits().test), {"other": np.zeros(3, np.float32)})
    assert points["onnx"].fields == {"failed": 1}
    assert not (tmp_path / "current.onnx").exists()


def test_a_spoilt_model_is_measured_in_finite_numbers(tmp_path: Path) -> None:
    """NaN in a weight is a bad model, reported like any other."""
    params = {name: array.copy() for name, array in digits_params().items()}
    params["output.weight"][0, 0] = np.nan
    points = deploy(deployer(tmp_path, validation=digits().test), params)
    assert 0 < points["torch"].fields["accuracy"] < evaluated_accuracy()
    assert points["onnx"].fields["accuracy"] == points["torch"].fields["accuracy"]


def test_a_folder_that_can_t_be_written_is_a_point(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "models").write_text("a file", encoding="utf-8")
    with caplog.at_level(logging.ERROR, logger="inference"):
        points = deploy(deployer(tmp_path / "models", validation=digits().test, with_int8=False), digits_params())
    assert points["onnx"].tags["reason"] == "unexpected_error"
    assert "onnx=failed" in caplog.text


def test_deploying_leaves_pytorch_as_it_was(tmp_path: Path) -> None:
    """Threads and generator are the whole process's: what training draws next must not depend on a deployment."""
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    deploy(deployer(tmp_path, validation=digits().test), digits_params())
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)


def candidate(engine: str, *, p50_ms: float, accuracy: float | None) -> Candidate:
    return Candidate(figures=EngineFigures(engine=engine, p50_ms=p50_ms, accuracy=accuracy, fields={}), serialised=b"")


@pytest.mark.parametrize(
    ("int8_ms", "int8_accuracy", "chosen", "reason"),
    [
        (0.5, 0.90, "onnx-int8", "2.00x as fast"),
        (0.5, 0.895, "onnx-int8", "loses 0.50 points"),
        (0.5, 0.894, "onnx", "loses 0.60 points"),
        (0.5, 0.92, "onnx-int8", "loses -2.00 points"),
        (0.96, 0.90, "onnx", "less than 1.05x"),
        (2.0, 0.90, "onnx", "0.50x as fast"),
        (0.5, None, "onnx", "no validation images"),
    ],
)
def test_the_faster_model_within_the_accuracy_budget_is_kept(int8_ms: float, int8_accuracy: float | None, chosen: str, reason: str) -> None:
    """float32: 1 ms and 0.90."""
    exact = candidate("onnx", p50_ms=1.0, accuracy=None if int8_accuracy is None else 0.90)
    small = candidate("onnx-int8", p50_ms=int8_ms, accuracy=int8_accuracy)
    found, why = choose_candidate((exact, small), ACCURACY_BUDGET)
    assert found.figures.engine == chosen
    assert reason in why


def test_without_an_int8_model_float32_is_kept() -> None:
    found, why = choose_candidate((candidate("onnx", p50_ms=1.0, accuracy=0.9),), ACCURACY_BUDGET)
    assert found.figures.engine == "onnx"
    assert "no int8" in why
