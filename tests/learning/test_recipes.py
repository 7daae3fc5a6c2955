"""Named recipes: what they fill in, and that what a run file says itself always wins."""

from __future__ import annotations

from typing import Any

import pytest

from federation.settings import RunSettings, TrainingSettings, parse_settings


def training(**values: Any) -> TrainingSettings:
    return parse_settings(values).training


def test_without_a_recipe_and_by_the_thesiss_every_value_is_the_default() -> None:
    assert training() == training(recipe="thesis") == TrainingSettings()


def test_the_best_recipe_fills_in_what_the_file_leaves_open() -> None:
    best = training(recipe="best", data={"name": "bloodmnist_half"}, training={"learning_rate": 0.5, "local_epochs": 2})
    assert (best.learning_rate, best.local_epochs) == (0.5, 2)
    assert (best.max_grad_norm, best.class_weighted_loss, best.schedule, best.augmentation) == (0.0, False, "cosine", "cells")
    assert best.batch_size == TrainingSettings().batch_size


@pytest.mark.parametrize(
    ("name", "augmentation"),
    [("pathmnist", "histology"), ("digits", "none"), ("data/bloodmnist_half.npz", "cells"), ("our-own", "none"), (None, "cells")],
)
def test_augmentation_goes_by_the_data_sets_name(name: str | None, augmentation: str) -> None:
    data = {"data": {"name": name}} if name else {}
    assert training(recipe="best", **data).augmentation == augmentation


@pytest.mark.parametrize("loss", ["cross_entropy", "balanced_softmax", "focal"])
def test_a_recipe_goes_with_every_loss(loss: str) -> None:
    assert training(recipe="best", training={"loss": loss}).loss == loss


def test_a_run_written_out_whole_is_read_again_as_it_was() -> None:
    settings = parse_settings({"recipe": "best", "training": {"momentum": 0.5}})
    assert parse_settings(settings.model_dump(mode="json")) == settings
    assert RunSettings.model_validate_json(settings.model_dump_json()) == settings
