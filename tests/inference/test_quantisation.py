"""int8: smaller, nearly as right, and refused with a reason."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from federation.errors import ExportError
from federation.evaluation import score
from federation.inference.conversion import Converter
from federation.inference.engine import OnnxEngine
from federation.inference.graph import take_pixels
from federation.inference.quantisation import quantise
from tests.inference.networks import MNIST_CNN, digits, digits_params


def digits_graph() -> onnx.ModelProto:
    return Converter().convert(MNIST_CNN, digits().image_shape, 10, digits_params()).model


def test_int8_is_a_third_of_the_size_and_loses_at_most_a_point() -> None:
    """Of accuracy on the digits' test images, calibrated on the training images."""
    graph, dataset = digits_graph(), digits()
    small = quantise(graph, dataset.train.images)
    engines = [OnnxEngine(take_pixels(model).SerializeToString(), num_threads=1) for model in (graph, small)]
    exact, rounded = (score(engine.predict(dataset.test.images, batch_size=64), dataset.test.labels, 10) for engine in engines)
    assert exact.accuracy > 0.9
    assert exact.accuracy - rounded.accuracy <= 0.01
    assert small.ByteSize() < graph.ByteSize() / 2
    kinds = {node.op_type for node in small.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    weights = [tensor for tensor in small.graph.initializer if tensor.name.startswith("conv2.weight")]
    assert {tensor.data_type for tensor in weights} & {onnx.TensorProto.INT8}


def test_calibration_decides_the_ranges() -> None:
    """Black images alone leave no range for bright ones: other logits than with real ones."""
    graph, dataset = digits_graph(), digits()
    models = [quantise(graph, images) for images in (dataset.train.images, np.zeros_like(dataset.train.images[:20]))]
    logits = [OnnxEngine(take_pixels(model).SerializeToString(), num_threads=1).run(dataset.test.images[:20]) for model in models]
    assert not np.allclose(logits[0], logits[1], atol=0.5)


def test_without_images_there_is_nothing_to_calibrate_on() -> None:
    with pytest.raises(ExportError) as caught:
        quantise(digits_graph(), digits().train.images[:0])
    assert caught.value.reason == "no_calibration_images"


def test_a_graph_the_quantiser_refuses_is_a_named_error() -> None:
    graph = digits_graph()
    graph.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ExportError) as caught:
        quantise(graph, digits().train.images)
    assert caught.value.reason == "quantisation_failed"
