"""What the demo chooses by itself: the data, and local training that fits their size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation.errors import SettingsError
from federation.images import Dataset, ImageSet
from fedmq import demo
from fedmq.demo import LARGE_SET, choose_data, demo_settings


def dataset(num_images: int) -> Dataset:
    images = ImageSet(images=np.zeros((num_images, 1, 8, 8), np.uint8), labels=np.zeros(num_images, np.int64))
    return Dataset(name="digits", class_names=("a", "b"), train=images, test=images, validation=None, licence="")


def given(**values: Any) -> dict[str, Any]:
    return {"run": "demo", "recipe": "best", "data": {"name": "digits"}, **values}


def test_small_data_get_five_rounds_of_five_epochs_and_large_ones_four_of_one() -> None:
    few, many = (demo_settings(given(), dataset(num)) for num in (LARGE_SET - 1, LARGE_SET))
    assert (few.num_rounds, many.num_rounds) == (5, 4)
    small, large = few.training, many.training
    assert (small.local_epochs, small.batch_size, small.learning_rate) == (5, 16, 0.03)
    assert (large.local_epochs, large.batch_size, large.learning_rate) == (1, 64, 0.05)


def test_what_is_asked_for_wins() -> None:
    asked = demo_settings(given(training={"local_epochs": 3, "learning_rate": 0.01}), dataset(LARGE_SET)).training
    assert (asked.local_epochs, asked.batch_size, asked.learning_rate) == (3, 64, 0.01)
    thesis = demo_settings(given(recipe="thesis"), dataset(LARGE_SET)).training
    assert (thesis.local_epochs, thesis.batch_size, thesis.learning_rate, thesis.max_grad_norm) == (5, 16, 0.001, 1.0)


def test_a_wrong_name_is_a_sentence() -> None:
    with pytest.raises(SettingsError, match=r"method\.name"):
        demo_settings(given(method={"name": "fedbest"}), dataset(10))


def test_offline_it_says_so_in_one_line_and_takes_the_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(demo, "MEDMNIST_URL", "https://host.invalid/records/")
    assert choose_data(None, tmp_path) == "digits"
    told = capsys.readouterr().err
    assert "no internet" in told
    assert told.count("\n") <= 2


def test_the_data_folders_microscopy_comes_first(tmp_path: Path) -> None:
    for name in ("another", "bloodmnist_half", "zebra"):
        (tmp_path / f"{name}.npz").touch()
    assert choose_data(tmp_path, tmp_path) == "bloodmnist_half"
