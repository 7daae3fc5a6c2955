"""From a global model's tensors to an ONNX graph: by export once, by new weights in the same graph afterwards."""

from __future__ import annotations

import io
import logging
import time
from contextlib import redirect_stdout
from dataclasses import dataclass

import numpy as np
import onnx
import onnxsim
from numpy.typing import NDArray

from federation.errors import ExportError
from federation.inference.graph import Recipe, fill, fold_batch_norms, is_fillable, pool_last
from federation.inference.pytorch import build_network, export_graph, random_params
from federation.params import Params
from federation.settings import ModelSettings

logger = logging.getLogger("inference")

CHECK_BATCH = 2
"""Batch with which the simplified graph is checked against the exported one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """One global model as ONNX."""

    model: onnx.ModelProto
    """float32 `images` N x C x H x W, normalised, in; `logits` out."""
    export_seconds: float
    """0 where an earlier round's graph was filled."""
    simplify_seconds: float
    """0 where an earlier round's graph was filled."""
    seconds: float
    """All of this conversion: what a round pays."""
    is_filled: bool
    """Whether an earlier round's graph was given this round's weights."""
    is_simplified: bool
    """False where ONNX Simplifier refused the graph and it is used as exported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Structure:
    """What is the same in every round."""

    key: tuple[ModelSettings, tuple[int, int, int], int]
    model: onnx.ModelProto
    recipe: Recipe
    is_simplified: bool
    is_fillable: bool


class Converter:
    """Converts global models, and keeps the last structure's graph to fill again."""

    def __init__(self) -> None:
        self._structure: _Structure | None = None

    def convert(
        self, model: ModelSettings, image_shape: tuple[int, int, int], num_classes: int, params: Params, *, afresh: bool = False
    ) -> Conversion:
        """Return the global model as ONNX.

        Args:
            model: names the network.
            image_shape: channels, height, width.
            num_classes: how many logits.
            params: the global model's tensors.
            afresh: export again even though the structure is known.

        Raises:
            ExportError: the network can't be exported.
            SettingsError: the images are too small for the network.
            LocalProtocolError: the tensors are another network's.
        """
        key = (model, image_shape, num_classes)
        start = time.perf_counter()
        known = self._structure
        if known is not None and known.key == key and known.is_fillable and not afresh:
            filled = fill(known.model, known.recipe.derive(params))
            seconds = time.perf_counter() - start
            return Conversion(
                model=filled, export_seconds=0.0, simplify_seconds=0.0, seconds=seconds, is_filled=True, is_simplified=known.is_simplified
            )
        structure, export_seconds, simplify_seconds = _make_structure(key, random_params(model, image_shape, num_classes))
        if structure.is_fillable:
            self._structure = structure
            converted = fill(structure.model, structure.recipe.derive(params))
        else:
            # A graph that hides its weights in derived constants: exported with the real ones, every round.
            logger.info("model=%s onnx=exported_every_round reason='its weights can't be replaced in the simplified graph'", model.name)
            structure, more_export, more_simplify = _make_structure(key, params)
            export_seconds, simplify_seconds = export_seconds + more_export, simplify_seconds + more_simplify
            converted = structure.model
        return Conversion(
            model=converted,
            export_seconds=export_seconds,
            simplify_seconds=simplify_seconds,
            seconds=time.perf_counter() - start,
            is_filled=False,
            is_simplified=structure.is_simplified,
        )


def simplify(model: onnx.ModelProto, image_shape: tuple[int, int, int]) -> tuple[onnx.ModelProto, bool]:
    """Return the graph simplified and True; or, where ONNX Simplifier or its check refuses it, as it was and False."""
    try:
        # Its check prints; stdout belongs to the log.
        with redirect_stdout(io.StringIO()):
            simplified, agrees = onnxsim.simplify(
                model,
                check_n=1,
                test_input_shapes={model.graph.input[0].name: [CHECK_BATCH, *image_shape]},
                # Weights stay tensors of their own, to be replaced in later rounds; constants are folded all the same.
                initializers_as_constants=False,
                certify=False,
            )
    except Exception as error:  # noqa: BLE001 - whatever it stumbles over, the exported graph is as good
        logger.warning("onnxsim=refused using=exported_graph reason=%r", str(error)[:300])
        return model, False
    if not agrees:
        logger.warning("onnxsim=disagrees using=exported_graph reason='its check gave other outputs'")
        return model, False
    return simplified, True


def _make_structure(
    key: tuple[ModelSettings, tuple[int, int, int], int], params: Params | dict[str, NDArray[np.float32]]
) -> tuple[_Structure, float, float]:
    """Return the structure, holding `params`, and the seconds of export and simplification."""
    model, image_shape, num_classes = key
    start = time.perf_counter()
    exported = export_graph(build_network(model, image_shape, num_classes, params), image_shape)
    recipe = fold_batch_norms(exported, params)
    pool_last(exported)
    exported_at = time.perf_counter()
    simplified, is_simplified = simplify(exported, image_shape)
    simplified_at = time.perf_counter()
    if [output.name for output in simplified.graph.output] != ["logits"]:
        raise ExportError(f"model {model.name!r} has {len(simplified.graph.output)} outputs, expected one", reason="not_a_classifier")
    structure = _Structure(
        key=key,
        model=simplified,
        recipe=recipe,
        is_simplified=is_simplified,
        is_fillable=set(_all_names(recipe)) >= set(params) and is_fillable(simplified, recipe.derive(params)),
    )
    return structure, exported_at - start, simplified_at - exported_at


def _all_names(recipe: Recipe) -> list[str]:
    """Return every parameter the recipe reads."""
    folded = [name for fold in recipe.folds for name in (fold.weight, fold.bias, fold.scale, fold.shift, fold.mean, fold.variance) if name]
    return [*recipe.copies, *folded]
