"""The PyTorch side: a network's graph as ONNX, and PyTorch itself as the engine the others are compared with."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from federation import models
from federation.errors import ExportError
from federation.images import Images
from federation.inference.engine import Logits
from federation.models.pixels import normalise
from federation.params import Params
from federation.settings import ModelSettings

OPSET = 20
"""The newest the TorchScript exporter writes, and old enough for ONNX Runtime 1.17 (2024) and later."""

MAX_REASON_CHARACTERS = 40


def build_network(model: ModelSettings, image_shape: tuple[int, int, int], num_classes: int, params: Params) -> nn.Module:
    """Return a network that holds `params`, in evaluation mode.

    Raises:
        SettingsError: the images are too small for it.
        LocalProtocolError: the parameters are another network's.
    """
    module = models.build(model, image_shape, num_classes, seed=0)
    models.load_parameters(module, params)
    return module.eval()


def export_graph(module: nn.Module, image_shape: tuple[int, int, int]) -> onnx.ModelProto:
    """Return the network as an ONNX graph: float32 `images` N x C x H x W in, `logits` out, N free.

    The graph's initialisers keep the names of the network's parameters, as long as no two parameters are equal.
    The TorchScript exporter is used: it takes 20 ms for SimpleCNN and needs nothing but torch, where its successor
    takes seconds and another package.

    Args:
        module: on the CPU, in evaluation mode.
        image_shape: channels, height, width.

    Raises:
        ExportError: the network has an operation that ONNX lacks, or can't be traced.
    """
    file = io.BytesIO()
    try:
        with warnings.catch_warnings():
            # That TorchScript is on its way out, and that folding may touch the parameters (it may not: evaluation mode).
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                (torch.zeros(2, *image_shape),),
                file,  # type: ignore[arg-type] # torch's annotation forgets that this exporter writes to file objects
                dynamo=False,
                opset_version=OPSET,
                do_constant_folding=True,
                # Keeps BatchNorm apart from the convolutions, so that later rounds can replace its tensors, too.
                training=torch.onnx.TrainingMode.PRESERVE,
                input_names=["images"],
                output_names=["logits"],
                dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
            )
    except Exception as error:  # noqa: BLE001 - tracing runs the network's own code, which may raise anything
        raise ExportError(f"{type(module).__name__} can't be exported: {_first_line(error)}", reason=_reason(error)) from None
    return onnx.load_from_string(file.getvalue())


class TorchEngine:
    """Runs a network eagerly.

    Args:
        module: on the CPU, in evaluation mode; this engine makes it its own (memory format).
        channels_last: keep weights and images in N x H x W x C memory.
    """

    def __init__(self, module: nn.Module, *, channels_last: bool) -> None:
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._module = module.to(memory_format=self._format)  # type: ignore[call-overload]

    def prepare(self, images: Images) -> torch.Tensor:
        """Return network input of uint8 images N x C x H x W, in this engine's memory format."""
        if self._format is torch.channels_last:
            return normalise(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 2, 3, 1))))
        return torch.from_numpy(images.astype(np.float32)).div_(127.5).sub_(1.0)

    def run(self, batch: torch.Tensor) -> Logits:
        """Return the logits, float32 N x num_classes."""
        with torch.inference_mode():
            logits: Logits = self._module(batch).numpy()
            return logits


@contextmanager
def intra_op_threads(num_threads: int) -> Iterator[None]:
    """Run PyTorch on so many threads within the block, and on as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def random_params(model: ModelSettings, image_shape: tuple[int, int, int], num_classes: int) -> dict[str, NDArray[np.float32]]:
    """Return parameters no two of which are equal: what a structure is exported with before it is filled.

    The exporter merges equal tensors (BatchNorm's zeros and ones), and a graph that has lost one can't be filled.
    """
    generator = np.random.default_rng(0)
    specs = models.signature(model, image_shape, num_classes)
    # Positive throughout, because a variance must be.
    return {spec.name: generator.uniform(0.5, 1.5, spec.shape).astype(np.float32) for spec in specs}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _reason(error: Exception) -> str:
    operator = re.search(r"operator '(?:aten::)?([^']+)'", str(error))
    if operator is None:
        return "export_failed"
    return re.sub(r"[^a-z_]+", "_", f"unsupported_{operator[1]}".lower())[:MAX_REASON_CHARACTERS].strip("_")
