"""One round on every data set that `FEDMQ_DATA_DIR` holds, and on a folder of pictures made from one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from federation.settings import parse_settings
from fedmq.simulate import run_simulation

DATA_SETS = {
    "bloodmnist_half": 8,
    "breastmnist": 2,
    "cifar10_10k": 10,
    "mnist": 10,
    "pneumoniamnist": 2,
    "tissuemnist_third": 8,
}
"""Name -> classes."""

LARGE = {"mnist", "tissuemnist_third"}


def train_one_round(name: str, out: Path, *, data_dir: Path | None, **sections: Any) -> dict[str, Any]:
    """Return the summary of one round of three nodes in large batches."""
    values = {
        "num_rounds": 1,
        "data": {"name": name},
        "training": {"local_epochs": 1, "batch_size": 128, "learning_rate": 0.05, "device": "cpu"},
        "rounds": {"min_nodes": 3},
        **sections,
    }
    return run_simulation(parse_settings(values), out_dir=out, data_dir=data_dir, cache_dir=out / "cache", is_shown=False)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in DATA_SETS])
def test_a_round_on_real_images(name: str, data_dir: Path, tmp_path: Path) -> None:
    summary = train_one_round(name, tmp_path, data_dir=data_dir)
    check_round(summary, data_dir / f"{name}.npz", num_classes=DATA_SETS[name])


def test_every_file_of_the_data_folder_is_tried(data_dir: Path) -> None:
    assert {path.stem for path in data_dir.glob("*.npz")} == set(DATA_SETS)


def test_a_round_on_scikit_learns_digits(tmp_path: Path) -> None:
    summary = train_one_round("digits", tmp_path, data_dir=None)
    assert summary["rounds"][0]["accepted"] == 3
    assert len(summary["final"]["class_accuracy"]) == 10


def test_a_round_on_a_folder_of_pictures(data_dir: Path, tmp_path: Path) -> None:
    """What a hospital has: one sub-folder of PNG files per class. Each test picture is counted once, under its folder's name."""
    folder = tmp_path / "ultrasound"
    with np.load(data_dir / "breastmnist.npz", allow_pickle=False) as arrays:
        for split in ("train", "test"):
            for index, (pixels, label) in enumerate(zip(arrays[f"{split}_images"], arrays[f"{split}_labels"].ravel(), strict=True)):
                path = folder / split / ("malignant", "normal or benign")[int(label)] / f"{index:04}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
        num_tests = len(arrays["test_labels"])
    summary = train_one_round(str(folder), tmp_path / "out", data_dir=None)
    assert summary["rounds"][0]["accepted"] == 3
    assert summary["class_names"] == ["malignant", "normal or benign"]
    assert np.sum(summary["final"]["confusion_matrix"]) == num_tests


def check_round(summary: dict[str, Any], path: Path, *, num_classes: int) -> None:
    """Every node took part, and the confusion matrix counts every test image under its true class."""
    (entry,) = summary["rounds"]
    assert (entry["accepted"], entry["rejected"], entry["discarded"]) == (3, 0, 0)
    with np.load(path, allow_pickle=False) as arrays:
        labels = arrays["test_labels" if "test_labels" in arrays else "y_test"].ravel()
    assert np.sum(summary["final"]["confusion_matrix"], axis=1).tolist() == np.bincount(labels, minlength=num_classes).tolist()
