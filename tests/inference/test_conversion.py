"""Conversion: the same logits as PyTorch, by export the first time and by new weights afterwards."""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping
from typing import cast

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn
from torch.nn import functional

from federation import models
from federation.errors import ExportError, SettingsError
from federation.images import Images
from federation.inference.card import INPUT_NAME, OUTPUT_NAME
from federation.inference.conversion import Converter, simplify
from federation.inference.engine import Logits, OnnxEngine
from federation.inference.figures import compare
from federation.inference.graph import take_pixels
from federation.inference.pytorch import OPSET, TorchEngine, build_network
from federation.params import Params
from federation.settings import ModelSettings
from tests.inference.networks import noise, settled_params

SHAPES = [
    ("simple_cnn", (3, 28, 28), 9),
    ("simple_cnn", (1, 28, 28), 2),
    ("simple_cnn", (3, 64, 64), 4),
    ("simple_cnn", (1, 8, 8), 10),
    ("simple_cnn", (3, 30, 41), 5),
    ("mnist_cnn", (1, 28, 28), 10),
    ("mnist_cnn", (3, 32, 32), 3),
    ("resnet18", (3, 28, 28), 8),
    ("resnet18", (1, 9, 9), 2),
]


def settings_of(name: str) -> ModelSettings:
    return ModelSettings.model_validate({"name": name})


def torch_logits(model: ModelSettings, shape: tuple[int, int, int], num_classes: int, params: Params, images: Images) -> Logits:
    engine = TorchEngine(build_network(model, shape, num_classes, params), channels_last=False)
    return engine.run(engine.prepare(images))


def engine_of(graph: onnx.ModelProto) -> OnnxEngine:
    return OnnxEngine(take_pixels(graph).SerializeToString(), num_threads=1)


@pytest.mark.parametrize(("name", "shape", "num_classes"), SHAPES)
def test_every_model_and_shape_gives_pytorch_s_predictions(name: str, shape: tuple[int, int, int], num_classes: int) -> None:
    """At batch 1 and 64, freshly exported and filled with the next round's weights."""
    converter, model = Converter(), settings_of(name)
    for round_number in (1, 2):
        params = settled_params(model, shape, num_classes, seed=round_number)
        conversion = converter.convert(model, shape, num_classes, params)
        assert conversion.is_filled == (round_number == 2)
        assert conversion.is_simplified
        engine = engine_of(conversion.model)
        for num_images in (1, 64):
            images = noise(shape, num_images, seed=round_number)
            parity = compare(torch_logits(model, shape, num_classes, params, images), engine.run(images))
            assert parity.holds, parity.describe()


@pytest.mark.parametrize("name", ["simple_cnn", "mnist_cnn", "resnet18"])
def test_a_filled_graph_is_the_fresh_export(name: str) -> None:
    """New weights in round 1's graph give bit for bit the logits of exporting round 2's model anew.

    Round 1's is an initial model: BatchNorm begins as zeros and ones, which the exporter would merge for all layers.
    """
    converter, model, shape = Converter(), settings_of(name), (3, 8, 8)
    converter.convert(model, shape, 4, models.parameters_of(models.build(model, shape, 4, seed=0)))
    params = settled_params(model, shape, 4, seed=2)
    filled = converter.convert(model, shape, 4, params)
    fresh = Converter().convert(model, shape, 4, params)
    images = noise(shape, 8)
    assert filled.is_filled
    assert not fresh.is_filled
    assert fresh.export_seconds > 0
    assert np.array_equal(engine_of(filled.model).run(images), engine_of(fresh.model).run(images))


def test_another_structure_is_exported_anew() -> None:
    converter = Converter()
    for name, shape in (("simple_cnn", (1, 8, 8)), ("mnist_cnn", (1, 8, 8)), ("mnist_cnn", (1, 12, 12))):
        model = settings_of(name)
        params = settled_params(model, shape, 3, seed=0)
        conversion = converter.convert(model, shape, 3, params)
        assert not conversion.is_filled
        assert compare(torch_logits(model, shape, 3, params, noise(shape, 3)), engine_of(conversion.model).run(noise(shape, 3))).holds


def test_the_graph_takes_raw_pixels_in_a_free_batch_and_holds_no_batch_norm() -> None:
    model, shape = settings_of("resnet18"), (3, 8, 8)
    graph = take_pixels(Converter().convert(model, shape, 2, settled_params(model, shape, 2, seed=0)).model)
    onnx.checker.check_model(graph, full_check=True)
    (pixels,), (logits,) = graph.graph.input, graph.graph.output
    assert (pixels.name, logits.name) == (INPUT_NAME, OUTPUT_NAME)
    assert pixels.type.tensor_type.elem_type == TensorProto.UINT8
    assert pixels.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [dimension.dim_value for dimension in pixels.type.tensor_type.shape.dim[1:]] == list(shape)
    assert [opset.version for opset in graph.opset_import if opset.domain == ""] == [OPSET]
    assert not {"BatchNormalization", "Identity", "Constant"} & {node.op_type for node in graph.graph.node}


class _WeightNormalised(nn.Module):
    """Its graph holds no tensor under the parameter's own name once constants are folded."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, int(np.prod(image_shape))))
        self.bias = nn.Parameter(torch.randn(num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return functional.linear(images.flatten(1), self.weight.transpose(0, 1).contiguous().transpose(0, 1)) + self.bias


class _Unexportable(nn.Module):
    """Holds an operation that ONNX has not got."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.output = nn.Linear(int(np.prod(image_shape)), num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.output(torch.special.i0e(images.flatten(1)))
        return logits


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[nn.Module]], ModelSettings]:
    """Make a network known by name, as a later version of FedMQ might."""

    def add(network: type[nn.Module]) -> ModelSettings:
        monkeypatch.setitem(cast("MutableMapping[str, object]", models.NETWORKS), network.__name__, network)
        return ModelSettings.model_construct(name=network.__name__)

    return add


def test_weights_that_can_t_be_replaced_are_exported_every_round(register: Callable[[type[nn.Module]], ModelSettings]) -> None:
    """Slower, but right: the graph of each round holds that round's weights."""
    model, shape, converter = register(_WeightNormalised), (1, 4, 4), Converter()
    for seed in (1, 2):
        params = settled_params(model, shape, 3, seed)
        conversion = converter.convert(model, shape, 3, params)
        assert not conversion.is_filled
        images = noise(shape, 5)
        assert compare(torch_logits(model, shape, 3, params, images), engine_of(conversion.model).run(images)).holds


def test_a_network_that_can_t_be_exported_is_a_named_error(register: Callable[[type[nn.Module]], ModelSettings]) -> None:
    model, shape = register(_Unexportable), (1, 4, 4)
    with pytest.raises(ExportError, match="special_i0e") as caught:
        Converter().convert(model, shape, 3, settled_params(model, shape, 3, seed=0))
    assert caught.value.reason == "unsupported_special_i_e"


def test_images_too_small_for_the_network_are_refused() -> None:
    model = settings_of("simple_cnn")
    with pytest.raises(SettingsError, match="at least 8x8"):
        Converter().convert(model, (1, 4, 4), 3, {})


def test_a_graph_that_the_simplifier_refuses_is_used_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """With one line in the log that says why."""
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 2, 2])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])
    node = helper.make_node("NoSuchOperator", ["images"], ["logits"])
    graph = helper.make_model(helper.make_graph([node], "refused", [images], [logits]), opset_imports=[helper.make_opsetid("", OPSET)])
    with caplog.at_level(logging.WARNING, logger="inference"):
        kept, is_simplified = simplify(graph, (1, 2, 2))
    assert kept is graph
    assert not is_simplified
    assert "onnxsim=refused" in caplog.text
