"""Named recipes: settings of local training that go well together, under whatever a run file says itself.

`thesis` is the settings' own defaults. `best` is what did best here (docs/results.md): no clipping, a learning rate 30
times as high that falls by a cosine, and augmentation where the data set's name says what its pictures allow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

RecipeName = Literal["thesis", "best"]

BEST: Mapping[str, Any] = {"learning_rate": 0.03, "max_grad_norm": 0.0, "class_weighted_loss": False, "schedule": "cosine"}
"""Of every data set."""

AUGMENTATIONS: Mapping[str, str] = {
    "bloodmnist": "cells",
    "tissuemnist": "cells",
    "pathmnist": "histology",
    "pneumoniamnist": "xray",
    "organamnist": "xray",
    "organcmnist": "xray",
    "organsmnist": "xray",
    "breastmnist": "xray",
}
"""By the data set's name, or the part of it before `_` (bloodmnist_half). Pictures of which nothing is known are left as they are:
a flip may make another class of them."""


def with_recipe(values: Mapping[str, Any], *, default_data: str) -> Mapping[str, Any]:
    """Return a run file's values with those of the recipe it names under them; what is wrong in them stays for the validation to say.

    Args:
        values: as the file holds them.
        default_data: the data set of a file that names none.
    """
    training, data = values.get("training", {}), values.get("data", {})
    if values.get("recipe") != "best" or not isinstance(training, Mapping) or not isinstance(data, Mapping):
        return values
    name = str(data.get("name", default_data)).rsplit("/", maxsplit=1)[-1].removesuffix(".npz").split("_", maxsplit=1)[0]
    return {**values, "training": {**BEST, "augmentation": AUGMENTATIONS.get(name, "none"), **training}}
