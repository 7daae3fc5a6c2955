"""A trial's way out of trouble, and the server's use of it."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from aggregator.inference import OnnxEvaluator
from federation.codec import digest
from federation.evaluation import evaluate
from federation.inference.classifier import load_classifier
from federation.inference.pytorch import build_network
from federation.inference.trial import Trial
from federation.metrics import make_point
from tests.inference.networks import MNIST_CNN, card_of, digits, digits_params, settled_params


def digits_trial(*, budget_seconds: float = 0.2, is_int8: bool = False) -> Trial:
    dataset = digits()
    return Trial(
        images=dataset.test,
        is_scored=True,
        calibration=dataset.train.images if is_int8 else None,
        class_names=dataset.class_names,
        num_threads=1,
        budget_seconds=budget_seconds,
    )


def test_a_wrongly_filled_graph_is_noticed_and_exported_afresh(caplog: pytest.LogCaptureFixture) -> None:
    """A recipe that forgets a tensor leaves the last round's in the graph: the comparison with PyTorch finds it."""
    trial, card = digits_trial(), card_of(digits(), digits_params())
    trial.run(MNIST_CNN, settled_params(MNIST_CNN, (1, 8, 8), 10, seed=0), card, batch_size=32)
    structure = trial._converter._structure
    assert structure is not None
    forgetful = dataclasses.replace(structure.recipe, copies=tuple(name for name in structure.recipe.copies if name != "output.bias"))
    trial._converter._structure = dataclasses.replace(structure, recipe=forgetful)
    result = trial.run(MNIST_CNN, digits_params(), card, batch_size=32)
    assert "onnx=differs_after_filling" in caplog.text
    assert result.parity.holds
    assert result.candidates[0].figures.fields["is_filled"] == 0
    assert trial.run(MNIST_CNN, digits_params(), card, batch_size=32).candidates[0].figures.fields["is_filled"] == 1


def test_quantising_beyond_the_budget_is_not_done_again() -> None:
    trial, card = digits_trial(budget_seconds=0.0, is_int8=True), card_of(digits(), digits_params())
    first = trial.run(MNIST_CNN, digits_params(), card, batch_size=32)
    second = trial.run(MNIST_CNN, digits_params(), card, batch_size=32)
    assert [candidate.figures.engine for candidate in first.candidates] == ["onnx", "onnx-int8"]
    assert [candidate.figures.engine for candidate in second.candidates] == ["onnx"]
    assert second.int8_error is not None
    assert second.int8_error.reason == "quantisation_over_time_budget"


def test_pytorch_speaks_in_its_faster_memory_format() -> None:
    result = digits_trial().run(MNIST_CNN, digits_params(), card_of(digits(), digits_params()), batch_size=32)
    torch, onnx = result.torch.fields, result.candidates[0].figures.fields
    faster = min(torch["eager_seconds"], torch["channels_last_seconds"])
    assert torch["seconds"] == faster
    assert torch["is_channels_last"] == int(torch["channels_last_seconds"] == faster)
    assert onnx["speedup"] == pytest.approx(faster / onnx["seconds"])
    assert onnx["speedup_over_eager"] == pytest.approx(torch["eager_seconds"] / onnx["seconds"])
    assert onnx["speedup_over_eager"] >= onnx["speedup"]


def test_the_server_measures_on_the_whole_test_set_and_keeps_the_model(tmp_path: Path) -> None:
    dataset, params = digits(), digits_params()
    evaluator = OnnxEvaluator(
        test=dataset.test,
        calibration=dataset.train,
        class_names=dataset.class_names,
        folder=tmp_path,
        num_threads=1,
        time_ns=time.time_ns,
        budget_seconds=0.2,
    )
    points = evaluator.measure(run="server", round_number=2, model=MNIST_CNN, global_digest=digest(params), params=params)
    for point in points:
        make_point(point.measurement, {"run": "server", "strategy": "fedavg", **point.tags}, point.fields, point.time_ns)
    by_engine = {point.tags["engine"]: point.fields for point in points}
    expected = evaluate(build_network(MNIST_CNN, dataset.image_shape, 10, params), dataset.test, 10)
    assert by_engine["onnx"]["accuracy"] == expected.accuracy
    assert by_engine["onnx"]["num_images"] == len(dataset.test)
    assert by_engine["onnx"]["is_current"] == 1
    assert load_classifier(tmp_path / "model.onnx", num_threads=1).card.round_number == 2


def test_a_model_the_server_can_t_convert_is_a_point() -> None:
    dataset = digits()
    evaluator = OnnxEvaluator(
        test=dataset.test, calibration=None, class_names=dataset.class_names, folder=None, num_threads=1, time_ns=time.time_ns
    )
    (point,) = evaluator.measure(run="server", round_number=2, model=MNIST_CNN, global_digest="0" * 64, params={})
    assert (point.fields, point.tags["engine"]) == ({"failed": 1}, "onnx")
