"""A finished run's folder as ONNX files, the same a node keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from federation.codec import FileParams, file_digest
from federation.errors import CheckpointError, CodecError, ExportError
from federation.images import Images
from federation.inference.card import ModelCard
from federation.inference.conversion import Converter
from federation.inference.engine import OnnxEngine
from federation.inference.figures import compare
from federation.inference.graph import take_pixels, with_card
from federation.inference.model_file import replace_file
from federation.inference.pytorch import TorchEngine, build_network
from federation.inference.quantisation import quantise
from federation.messages import Digest
from federation.params import Params
from federation.settings import RunSettings

Precision: TypeAlias = Literal["float32", "int8"]

FILE_NAMES: dict[Precision, str] = {"float32": "model.onnx", "int8": "model-int8.onnx"}

NUM_CHECK_IMAGES = 64
"""Random images on which each file is compared with PyTorch before it is handed out."""


class _Described(BaseModel):
    """What is needed of settings.json."""

    model_config = ConfigDict(frozen=True, extra="ignore", title="settings.json")

    settings: RunSettings
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...] = Field(min_length=1)


class _RoundEntry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    round_number: int


class _Summary(BaseModel):
    """What is needed of summary.json."""

    model_config = ConfigDict(frozen=True, extra="ignore", title="summary.json")

    global_digest: Digest
    model_digest: Digest | None = None
    """Of model.safetensors, where nodes are sent more than the model."""
    rounds: list[_RoundEntry]


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """A run's folder, read."""

    settings: RunSettings
    card: ModelCard
    params: Params


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenModel:
    """One file that was written."""

    path: Path
    precision: Precision
    num_bytes: int
    max_abs_difference: float
    """From PyTorch's logits, on random images."""
    num_different: int
    """Random images of which another class is predicted."""


def read_run_folder(folder: Path) -> FinishedRun:
    """Return a finished run.

    Args:
        folder: holds settings.json, summary.json and model.safetensors.

    Raises:
        CheckpointError: a file is missing, damaged, or belongs to another run.
    """
    try:
        described = _Described.model_validate_json((folder / "settings.json").read_bytes())
        summary = _Summary.model_validate_json((folder / "summary.json").read_bytes())
        params = FileParams(folder / "model.safetensors")
    except FileNotFoundError as error:
        name = Path(error.filename).name
        raise CheckpointError(
            f"{folder}: there is no {name}: name the folder that `demo`, `run` or `simulate` wrote, once the run is over"
        ) from None
    except ValidationError as error:
        raise CheckpointError(f"{folder / error.title}: can't be used: {error.errors()[0]['msg']}") from None
    except CodecError as error:
        raise CheckpointError(f"{folder / 'model.safetensors'}: can't be used: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{error.filename}: can't be read: {error.strerror}") from None
    weights_digest = summary.model_digest or summary.global_digest
    if file_digest(params.path) != weights_digest:
        raise CheckpointError(f"{params.path} is not the model that summary.json names: it was changed, or the run goes on")
    card = ModelCard(
        run=described.settings.run,
        round_number=max((entry.round_number for entry in summary.rounds), default=0) + 1,
        class_names=described.class_names,
        image_shape=described.image_shape,
        weights_digest=weights_digest,
    )
    return FinishedRun(settings=described.settings, card=card, params=dict(params))


def write_onnx_files(
    run: FinishedRun, precisions: Sequence[Precision], folder: Path, *, calibration: Images | None, num_threads: int
) -> list[WrittenModel]:
    """Write a run's model as ONNX files and return what was written.

    Args:
        run: the run.
        precisions: which files.
        folder: made when it is missing; files there are replaced.
        calibration: training images; int8 needs them.
        num_threads: for the comparison with PyTorch.

    Raises:
        ExportError: the network can't be exported, or the float32 file does not give PyTorch's predictions.
        SettingsError: the images are too small for the network.
        CheckpointError: the folder can't be written.
    """
    card, model = run.card, run.settings.model
    num_classes = len(card.class_names)
    core = Converter().convert(model, card.image_shape, num_classes, run.params).model
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_CHECK_IMAGES, *card.image_shape), dtype=np.uint8)
    engine = TorchEngine(build_network(model, card.image_shape, num_classes, run.params), channels_last=True)
    reference = engine.run(engine.prepare(pixels))
    written = []
    for precision in precisions:
        graph = core if precision == "float32" else quantise(core, calibration if calibration is not None else pixels[:0])
        serialised = with_card(take_pixels(graph), card.model_copy(update={"precision": precision}))
        parity = compare(reference, OnnxEngine(serialised, num_threads=num_threads).run(pixels))
        if precision == "float32" and not parity.holds:
            raise ExportError(f"the exported model is not PyTorch's: {parity.describe()}", reason="differs_from_pytorch")
        path = folder / FILE_NAMES[precision]
        try:
            replace_file(path, serialised)
        except OSError as error:
            raise CheckpointError(f"{path}: can't be written: {error.strerror or error}") from None
        entry = WrittenModel(
            path=path,
            precision=precision,
            num_bytes=len(serialised),
            max_abs_difference=parity.max_abs_difference,
            num_different=parity.num_different,
        )
        written.append(entry)
    return written
