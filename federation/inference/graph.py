"""Surgery on ONNX graphs: BatchNorm folded away, weights replaced, pixels in instead of floats, metadata on.

A network's structure is exported and simplified once. In later rounds only the initialisers' bytes change: they are
the global model's tensors, or follow from them by folding BatchNorm into the convolution before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from federation.inference.card import INPUT_NAME, OUTPUT_NAME, ModelCard
from federation.params import Params

DIVISOR = 127.5
"""(x / 255 - 0.5) / 0.5 = x / 127.5 - 1, the same two operations as in training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """One BatchNorm folded into the convolution before it: names of the tensors, and its epsilon."""

    weight: str
    bias: str | None
    """The convolution's own; None where it has none."""
    folded_bias: str
    scale: str
    shift: str
    mean: str
    variance: str
    epsilon: float

    def apply(self, params: Params) -> dict[str, NDArray[np.float32]]:
        """Return the convolution's folded weight and bias, computed in float64 (Ioffe and Szegedy 2015, algorithm 2)."""
        factor = params[self.scale].astype(np.float64) / np.sqrt(params[self.variance].astype(np.float64) + self.epsilon)
        bias = params[self.bias].astype(np.float64) if self.bias else 0.0
        weight = params[self.weight].astype(np.float64)
        return {
            self.weight: (weight * factor.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.float32),
            self.folded_bias: ((bias - params[self.mean]) * factor + params[self.shift]).astype(np.float32),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a graph's weights follow from a global model's tensors."""

    copies: tuple[str, ...]
    folds: tuple[Fold, ...]

    def derive(self, params: Params) -> dict[str, NDArray[np.float32]]:
        """Return every weight of the graph by its initialiser's name."""
        weights = {name: np.asarray(params[name], np.float32) for name in self.copies}
        for fold in self.folds:
            weights |= fold.apply(params)
        return weights


def fold_batch_norms(model: onnx.ModelProto, params: Params) -> Recipe:
    """Fold each BatchNorm that follows a convolution into it, in place, and return the recipe of the graph's weights.

    Args:
        model: as exported, holding `params`.
        params: a BatchNorm whose tensors are not all among them stays.
    """
    graph = model.graph
    producers = {output: node for node in graph.node for output in node.output}
    num_uses: dict[str, int] = {}
    for name in [name for node in graph.node for name in node.input] + [output.name for output in graph.output]:
        num_uses[name] = num_uses.get(name, 0) + 1
    folds: list[Fold] = []
    folded: dict[str, NDArray[np.float32]] = {}
    removed: set[str] = set()
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        convolution = producers.get(norm.input[0])
        if convolution is None or convolution.op_type != "Conv" or num_uses[norm.input[0]] != 1:
            continue
        tensors = [*convolution.input[1:], *norm.input[1:]]
        if any(name not in params or num_uses[name] != 1 for name in tensors):
            continue
        bias = convolution.input[2] if len(convolution.input) > 2 else None
        epsilon = next((attribute.f for attribute in norm.attribute if attribute.name == "epsilon"), 1e-5)
        scale, shift, mean, variance = norm.input[1:]
        folded_bias = bias or f"{convolution.input[1]}.folded_bias"
        fold = Fold(
            weight=convolution.input[1],
            bias=bias,
            folded_bias=folded_bias,
            scale=scale,
            shift=shift,
            mean=mean,
            variance=variance,
            epsilon=epsilon,
        )
        folds.append(fold)
        if bias is None:
            convolution.input.append(folded_bias)
        convolution.output[0] = norm.output[0]
        graph.node.remove(norm)
        removed |= {scale, shift, mean, variance}
        folded |= fold.apply(params)
    _replace_initialisers(graph, remove=removed, add=folded)
    copies = sorted(tensor.name for tensor in graph.initializer if tensor.name in params and tensor.name not in folded)
    return Recipe(copies=tuple(copies), folds=tuple(folds))


def pool_last(model: onnx.ModelProto) -> None:
    """Turn every max-pool followed by a ReLU into a ReLU followed by a max-pool, in place: the same values (ReLU is monotonic).

    Training wants the ReLU on a quarter of the elements; ONNX Runtime wants it next to the convolution, where one
    kernel does both (int8: 1.3x faster at a batch of one, SimpleCNN, one x86 core).
    """
    graph = model.graph
    producers = {output: node for node in graph.node for output in node.output}
    outputs = {output.name for output in graph.output}
    names = [name for node in graph.node for name in node.input]
    for relu in [node for node in graph.node if node.op_type == "Relu"]:
        pool = producers.get(relu.input[0])
        if (
            pool is None
            or pool.op_type != "MaxPool"
            or len(pool.output) != 1
            or names.count(relu.input[0]) != 1
            or relu.input[0] in outputs
        ):
            continue
        attributes = list(pool.attribute)
        del pool.attribute[:]
        pool.op_type, relu.op_type = "Relu", "MaxPool"
        relu.attribute.extend(attributes)
        # Shapes noted for what was the pooled image are wrong now.
        kept = [info for info in graph.value_info if info.name != relu.input[0]]
        del graph.value_info[:]
        graph.value_info.extend(kept)


def is_fillable(model: onnx.ModelProto, weights: Mapping[str, NDArray[np.float32]]) -> bool:
    """Return whether the graph still holds every weight under its name, shape and value, and so can be given others."""
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    return all(name in held and np.array_equal(numpy_helper.to_array(held[name]), weight) for name, weight in weights.items())


def fill(model: onnx.ModelProto, weights: Mapping[str, NDArray[np.float32]]) -> onnx.ModelProto:
    """Return a copy of the graph that holds other weights."""
    filled = onnx.ModelProto()
    filled.CopyFrom(model)
    for tensor in filled.graph.initializer:
        if tensor.name in weights:
            tensor.ClearField("float_data")
            tensor.raw_data = np.ascontiguousarray(weights[tensor.name], "<f4").tobytes()
    return filled


def take_pixels(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of the graph whose input is raw uint8 pixels, N x C x H x W, normalised inside."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    graph = whole.graph
    images = graph.input[0].name
    constants = {"pixels.divisor": DIVISOR, "pixels.one": 1.0}
    _replace_initialisers(graph, remove=set(), add={name: np.array(value, np.float32) for name, value in constants.items()})
    steps = [
        helper.make_node("Cast", [INPUT_NAME], ["pixels.float"], name="pixels.cast", to=TensorProto.FLOAT),
        helper.make_node("Div", ["pixels.float", "pixels.divisor"], ["pixels.scaled"], name="pixels.div"),
        helper.make_node("Sub", ["pixels.scaled", "pixels.one"], [images], name="pixels.sub"),
    ]
    nodes = [*steps, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.input[0].name = INPUT_NAME
    graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    return whole


def with_card(model: onnx.ModelProto, card: ModelCard) -> bytes:
    """Return the serialised model with its card, the only metadata it has."""
    del model.metadata_props[:]
    helper.set_model_props(model, card.to_metadata())
    model.producer_name = "fedmq"
    if [output.name for output in model.graph.output] != [OUTPUT_NAME]:
        raise ValueError(f"the graph's outputs are {[output.name for output in model.graph.output]}, expected {OUTPUT_NAME}")
    serialised: bytes = model.SerializeToString()
    return serialised


def _replace_initialisers(graph: onnx.GraphProto, *, remove: set[str], add: Mapping[str, NDArray[np.float32]]) -> None:
    kept = [tensor for tensor in graph.initializer if tensor.name not in remove and tensor.name not in add]
    fresh = [numpy_helper.from_array(array, name) for name, array in add.items()]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *fresh])
