"""One global model put to the test as ONNX: converted, quantised, compared with PyTorch on the same images, measured."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import onnx

from federation.errors import ExportError, ModelFileError
from federation.evaluation import score
from federation.images import Images, ImageSet, normalise
from federation.inference.card import ModelCard
from federation.inference.conversion import Conversion, Converter
from federation.inference.engine import OnnxEngine
from federation.inference.figures import EngineFigures, Parity, compare, conversion_fields, engine_fields, parity_fields
from federation.inference.graph import take_pixels, with_card
from federation.inference.measurement import (
    Contender,
    LatencyFigures,
    ShareFigures,
    choose_batch_size,
    measure_latency,
    measure_share,
    peak_memory_growth,
)
from federation.inference.pytorch import TorchEngine, build_network, intra_op_threads
from federation.inference.quantisation import quantise
from federation.messages import Evaluation
from federation.params import Params
from federation.settings import ModelSettings

logger = logging.getLogger("inference")

LATENCY_SHARE = 0.25
"""Of the time budget, for single images; the rest is for passes over the whole set."""

FLOAT32, INT8 = "onnx", "onnx-int8"
EAGER, CHANNELS_LAST = "eager", "channels_last"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One model a device could use."""

    figures: EngineFigures
    serialised: bytes
    """The file: raw pixels in, card inside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """What was found out about one global model."""

    torch: EngineFigures
    candidates: tuple[Candidate, ...]
    """float32 first, then int8 where it could be made."""
    batch_size: int
    parity: Parity
    """Of the float32 candidate."""
    int8_error: ExportError | None
    """Why there is no int8 candidate, where one was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Graph:
    """One precision's graph."""

    core: bytes
    """Normalised floats in: the engine without data handling."""
    serialised: bytes
    quantise_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """All measurements of one model, by contender."""

    graphs: dict[str, _Graph]
    peaks: dict[str, int | None]
    shares: dict[str, ShareFigures]
    latencies: dict[str, LatencyFigures]
    torch_name: str
    """PyTorch's faster memory format, which speaks for it."""
    batch_size: int


class Trial:
    """Tests global models, one after the other, on one set of images.

    Args:
        images: to evaluate and measure on, at least one.
        is_scored: whether accuracy on them means something (they were not trained on).
        calibration: training images int8 is calibrated on; None leaves int8 out.
        class_names: in label order.
        num_threads: of every engine.
        budget_seconds: about how long the measurements of one model may take; one pass always runs.
    """

    def __init__(
        self,
        *,
        images: ImageSet,
        is_scored: bool,
        calibration: Images | None,
        class_names: tuple[str, ...],
        num_threads: int,
        budget_seconds: float,
    ) -> None:
        self._images = images
        self._is_scored = is_scored
        self._calibration = calibration
        self._num_classes = len(class_names)
        self._num_threads = num_threads
        self._budget_seconds = budget_seconds
        self._converter = Converter()
        self._too_slow_to_quantise: set[str] = set()

    def run(self, model: ModelSettings, params: Params, card: ModelCard, *, batch_size: int | None) -> TrialResult:
        """Convert and measure one global model.

        Args:
            model: names the network.
            params: its tensors.
            card: for the files; `precision` is filled in here.
            batch_size: None: find the best one first.

        Raises:
            ExportError: the network can't be exported.
            FedMQError: the tensors or images do not fit the network.
        """
        with intra_op_threads(self._num_threads):
            conversion = self._convert(model, params, afresh=False)
            result = self._try(conversion, model, params, card, batch_size)
            if result.parity.holds or not conversion.is_filled:
                return result
            # Perhaps the filling is at fault, not the model: look again with a fresh export.
            logger.error("round=%d onnx=differs_after_filling detail=%r", card.round_number, result.parity.describe())
            return self._try(self._convert(model, params, afresh=True), model, params, card, result.batch_size)

    def _convert(self, model: ModelSettings, params: Params, *, afresh: bool) -> Conversion:
        return self._converter.convert(model, self._images.image_shape, self._num_classes, params, afresh=afresh)

    def _try(self, conversion: Conversion, model: ModelSettings, params: Params, card: ModelCard, batch_size: int | None) -> TrialResult:
        graphs = {FLOAT32: _graph(conversion.model, card, None)}
        int8_error = None
        try:
            graphs |= self._int8_graph(conversion, model, card)
        except ExportError as error:
            int8_error = error
        measured = self._measure(graphs, model, params, batch_size)
        reference = measured.shares[CHANNELS_LAST].logits
        return TrialResult(
            torch=self._torch_figures(measured, params),
            candidates=tuple(
                Candidate(figures=self._onnx_figures(name, measured, conversion), serialised=graph.serialised)
                for name, graph in graphs.items()
            ),
            batch_size=measured.batch_size,
            parity=compare(reference, measured.shares[FLOAT32].logits),
            int8_error=int8_error,
        )

    def _int8_graph(self, conversion: Conversion, model: ModelSettings, card: ModelCard) -> dict[str, _Graph]:
        """Return the int8 graph by its name; nothing where none was asked for.

        Raises:
            ExportError: it can't be made, can't be run, or took too long last time.
        """
        if self._calibration is None:
            return {}
        if model.name in self._too_slow_to_quantise:
            raise ExportError(
                f"quantising took more than {self._budget_seconds:g} s in an earlier round", reason="quantisation_over_time_budget"
            )
        start = time.perf_counter()
        quantised = quantise(conversion.model, self._calibration)
        seconds = time.perf_counter() - start
        if seconds > self._budget_seconds:
            self._too_slow_to_quantise.add(model.name)
        graph = _graph(quantised, card.model_copy(update={"precision": "int8"}), seconds)
        try:
            OnnxEngine(graph.serialised, num_threads=self._num_threads)
        except ModelFileError as error:
            raise ExportError(str(error), reason="runtime_refuses_quantised_graph") from None
        return {INT8: graph}

    def _measure(self, graphs: dict[str, _Graph], model: ModelSettings, params: Params, batch_size: int | None) -> _Measured:
        pixels = self._images.images
        contenders: dict[str, Contender] = {}
        peaks: dict[str, int | None] = {}

        def enter(name: str, make: Callable[[], Contender]) -> None:
            def first_run() -> None:
                contenders[name] = make()
                contenders[name].run(contenders[name].prepare(pixels[: batch_size or 1]))

            peaks[name] = peak_memory_growth(first_run)

        for name, graph in graphs.items():
            enter(name, lambda name=name, graph=graph: self._onnx_contender(name, graph.serialised, _as_they_are))  # type: ignore[misc]
        if batch_size is None:
            batch_size = choose_batch_size(contenders[FLOAT32], pixels)
        for name in (EAGER, CHANNELS_LAST):
            enter(name, lambda name=name: self._torch_contender(name, model, params))  # type: ignore[misc]
        cores = [self._onnx_contender(_core(name), graph.core, normalise) for name, graph in graphs.items()]
        shares = measure_share(
            [*contenders.values(), *cores], pixels, batch_size=batch_size, budget_seconds=self._budget_seconds * (1 - LATENCY_SHARE)
        )
        torch_name = min((EAGER, CHANNELS_LAST), key=lambda name: shares[name].seconds)
        latencies = measure_latency(
            [contenders[name] for name in (torch_name, *graphs)], pixels, budget_seconds=self._budget_seconds * LATENCY_SHARE
        )
        return _Measured(graphs=graphs, peaks=peaks, shares=shares, latencies=latencies, torch_name=torch_name, batch_size=batch_size)

    def _onnx_contender(self, name: str, model: bytes, prepare: Callable[[Images], object]) -> Contender:
        return Contender(name=name, prepare=prepare, run=OnnxEngine(model, num_threads=self._num_threads).run)

    def _torch_contender(self, name: str, model: ModelSettings, params: Params) -> Contender:
        module = build_network(model, self._images.image_shape, self._num_classes, params)
        engine = TorchEngine(module, channels_last=name == CHANNELS_LAST)
        return Contender(name=name, prepare=engine.prepare, run=engine.run)

    def _torch_figures(self, measured: _Measured, params: Params) -> EngineFigures:
        share = measured.shares[measured.torch_name]
        # Training and evaluation run in channels_last: its logits are the ones scored.
        evaluation = self._score(measured.shares[CHANNELS_LAST])
        fields = self._fields(
            measured.torch_name, share.engine_seconds, evaluation, measured, sum(4 * prod(params[n].shape) for n in params)
        )
        fields |= {
            "torch_ms": measured.latencies[measured.torch_name].p50_ms,
            "is_channels_last": int(measured.torch_name == CHANNELS_LAST),
            "eager_seconds": measured.shares[EAGER].seconds,
            "channels_last_seconds": measured.shares[CHANNELS_LAST].seconds,
        }
        return EngineFigures(engine="torch", p50_ms=fields["p50_ms"], accuracy=evaluation.accuracy if evaluation else None, fields=fields)

    def _onnx_figures(self, name: str, measured: _Measured, conversion: Conversion) -> EngineFigures:
        graph, share = measured.graphs[name], measured.shares[name]
        evaluation = self._score(share)
        fields = self._fields(name, measured.shares[_core(name)].engine_seconds, evaluation, measured, len(graph.serialised))
        fields |= {
            "torch_ms": measured.latencies[measured.torch_name].p50_ms,
            "onnx_ms": measured.latencies[name].p50_ms,
            "speedup_over_eager": measured.shares[EAGER].seconds / max(share.seconds, 1e-9),
            **conversion_fields(conversion),
            **parity_fields(compare(measured.shares[CHANNELS_LAST].logits, share.logits), is_exact=name == FLOAT32),
        }
        if graph.quantise_seconds is not None:
            fields["quantise_seconds"] = graph.quantise_seconds
        return EngineFigures(engine=name, p50_ms=fields["p50_ms"], accuracy=evaluation.accuracy if evaluation else None, fields=fields)

    def _fields(
        self, name: str, engine_seconds: float, evaluation: Evaluation | None, measured: _Measured, model_bytes: int
    ) -> dict[str, float | int]:
        return engine_fields(
            share=measured.shares[name],
            engine_seconds=engine_seconds,
            latency=measured.latencies[name],
            torch_seconds=measured.shares[measured.torch_name].seconds,
            evaluation=evaluation,
            model_bytes=model_bytes,
            peak_memory_bytes=measured.peaks[name],
            batch_size=measured.batch_size,
            num_threads=self._num_threads,
        )

    def _score(self, share: ShareFigures) -> Evaluation | None:
        return score(share.logits, self._images.labels, self._num_classes) if self._is_scored else None


def _graph(core: onnx.ModelProto, card: ModelCard, quantise_seconds: float | None) -> _Graph:
    return _Graph(core=core.SerializeToString(), serialised=with_card(take_pixels(core), card), quantise_seconds=quantise_seconds)


def _core(name: str) -> str:
    return f"{name}-core"


def _as_they_are(images: Images) -> Images:
    return images
