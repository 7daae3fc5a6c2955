"""`fedmq predict`: classify image files with a model file, without PyTorch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from federation.errors import DataError
from fedmq.console import EXIT_FAILED, JsonOption, err, print_json, print_table, sentences

if TYPE_CHECKING:
    from federation.inference.classifier import Classifier, Prediction
    from federation.inference.pictures import Picture

CURRENT_MODEL = Path("models/current.onnx")
"""Where a node keeps its model, in its state folder."""


def predict(
    images: Annotated[list[Path], typer.Argument(help="PNG, JPEG, TIFF, BMP, DICOM or .npz files.")],
    *,
    model: Annotated[Path | None, typer.Option(help="ONNX file; default models/current.onnx of the node's state folder, or here.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes to show of each image.")] = 3,
    state_dir: Annotated[Path | None, typer.Option(envvar="FEDMQ_STATE_DIR", help="The node's state folder.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Classify image files with a trained model; needs no PyTorch.

    Files that can't be read are named, the rest are classified all the same; the exit status is then 1.
    """
    # Here, so that the other commands run without ONNX Runtime.
    from federation.inference.classifier import load_classifier

    with sentences():
        path = model or ((state_dir or Path()) / CURRENT_MODEL)
        classifier = load_classifier(path, num_threads=os.cpu_count() or 1)
    results = [result for image in images for result in _results(classifier, image, top)]
    if as_json:
        card: dict[str, Any] = {"file": str(path), **classifier.card.model_dump(mode="json")}
        print_json({"model": card, "images": results})
    else:
        _show(classifier, path, results)
    if any("error" in result for result in results):
        raise typer.Exit(EXIT_FAILED)


def _results(classifier: Classifier, path: Path, top: int) -> list[dict[str, Any]]:
    """Return one entry per image of a file, or one with an error."""
    from federation.inference.pictures import read_pictures

    try:
        pictures = read_pictures(path, classifier.card.image_shape)
    except DataError as error:
        return [{"file": str(path), "error": str(error)}]
    predictions = classifier.classify(np.stack([picture.pixels for picture in pictures]), top=top)
    return [_entry(picture, found) for picture, found in zip(pictures, predictions, strict=True)]


def _entry(picture: Picture, predictions: tuple[Prediction, ...]) -> dict[str, Any]:
    return {
        "file": picture.name,
        "notices": list(picture.notices),
        "predictions": [
            {"class": found.class_index, "name": found.class_name, "probability": round(found.probability, 6)} for found in predictions
        ],
    }


def _show(classifier: Classifier, path: Path, results: list[dict[str, Any]]) -> None:
    card = classifier.card
    rows = [
        (result["file"] if rank == 0 else "", found["name"], f"{100 * found['probability']:.1f} %")
        for result in results
        for rank, found in enumerate(result.get("predictions", []))
    ]
    if rows:
        print_table(f"{path}: run {card.run}, round {card.round_number}, {card.precision}", ("image", "class", "probability"), rows)
    for result in results:
        for notice in result.get("notices", []):
            err.print(f"{result['file']}: {notice}", markup=False)
        if "error" in result:
            err.print(result["error"], style="red", markup=False)
