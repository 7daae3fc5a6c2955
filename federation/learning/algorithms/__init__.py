"""Federated methods: one file each, with both halves and its own settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from federation.errors import SettingsError
from federation.learning.algorithms.algorithm import Algorithm, NodeState, Trained, Trainer, Update, Upload, mean
from federation.learning.algorithms.fedadam import FedAdam
from federation.learning.algorithms.fedavg import FedAvg
from federation.learning.algorithms.fedmedian import FedMedian
from federation.learning.algorithms.fedper import FedPer
from federation.learning.algorithms.fedprox import FedProx
from federation.learning.algorithms.scaffold import Scaffold

__all__ = ["ALGORITHMS", "Algorithm", "NodeState", "Trained", "Trainer", "Update", "Upload", "build_algorithm", "mean"]

ALGORITHMS: Mapping[str, type[Algorithm]] = {
    "fedadam": FedAdam,
    "fedavg": FedAvg,
    "fedmedian": FedMedian,
    "fedper": FedPer,
    "fedprox": FedProx,
    "scaffold": Scaffold,
}
"""Every method by the name a run file calls it."""


def build_algorithm(name: str, settings: Mapping[str, Any], *, num_nodes: int) -> Algorithm:
    """Return a method with its settings.

    Args:
        name: a key of `ALGORITHMS`.
        settings: the method's own, by name; what is left out has its default.
        num_nodes: about how many nodes the cohorts are drawn from.

    Raises:
        SettingsError: there is no such method, or a setting is not one of its own or out of bounds.
    """
    kind = ALGORITHMS.get(name)
    if kind is None:
        raise SettingsError(f"method.name: there is no method {name!r}; there are {', '.join(sorted(ALGORITHMS))}")
    try:
        checked = kind.Settings.model_validate({"name": name, **settings})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        detail = f"{name} has no such setting" if problem["type"] == "extra_forbidden" else problem["msg"]
        raise SettingsError(f"method.{place}: {detail}") from None
    return kind(checked, num_nodes=num_nodes)
