"""Federated methods: one file each, with both halves and its own settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from federation.errors import SettingsError
from federation.learning.algorithms.algorithm import Algorithm, NodeState, Trained, Trainer, Update, Upload, mean
from federation.learning.algorithms.class_aware import ClassAware
from federation.learning.algorithms.ditto import Ditto
from federation.learning.algorithms.fedadagrad import FedAdagrad
from federation.learning.algorithms.fedadam import FedAdam
from federation.learning.algorithms.fedavg import FedAvg
from federation.learning.algorithms.fedavgm import FedAvgM
from federation.learning.algorithms.fedbn import FedBN
from federation.learning.algorithms.feddyn import FedDyn
from federation.learning.algorithms.fedmedian import FedMedian
from federation.learning.algorithms.fednova import FedNova
from federation.learning.algorithms.fedper import FedPer
from federation.learning.algorithms.fedprox import FedProx
from federation.learning.algorithms.fedrep import FedRep
from federation.learning.algorithms.fedyogi import FedYogi
from federation.learning.algorithms.geometric_median import GeometricMedian
from federation.learning.algorithms.krum import Krum
from federation.learning.algorithms.multi_krum import MultiKrum
from federation.learning.algorithms.scaffold import Scaffold
from federation.learning.algorithms.trimmed_mean import TrimmedMean
from federation.learning.named_kinds import check_named, kind_of

__all__ = [
    "ALGORITHMS",
    "METHOD_SETTINGS",
    "Algorithm",
    "NodeState",
    "Trained",
    "Trainer",
    "Update",
    "Upload",
    "algorithm_class",
    "build_algorithm",
    "check_method",
    "mean",
]

ALGORITHMS: Mapping[str, type[Algorithm]] = {
    "class_aware": ClassAware,
    "ditto": Ditto,
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedbn": FedBN,
    "feddyn": FedDyn,
    "fedmedian": FedMedian,
    "fednova": FedNova,
    "fedper": FedPer,
    "fedprox": FedProx,
    "fedrep": FedRep,
    "fedyogi": FedYogi,
    "geometric_median": GeometricMedian,
    "krum": Krum,
    "multi_krum": MultiKrum,
    "scaffold": Scaffold,
    "trimmed_mean": TrimmedMean,
}
"""Every method by the name a run file calls it."""

METHOD_SETTINGS: Mapping[str, type[Algorithm.Settings]] = {name: kind.Settings for name, kind in ALGORITHMS.items()}


def algorithm_class(name: str) -> type[Algorithm]:
    """Return the method of a name.

    Raises:
        SettingsError: there is none.
    """
    return kind_of(name, ALGORITHMS, Algorithm, word="method")


def check_method(values: object) -> Algorithm.Settings:
    """Return a method's settings, checked by the method itself: what a run file's `[method]` may say.

    Raises:
        ValueError: there is no such method, or a setting is not one of its own or out of bounds.
    """
    return check_named(values, Algorithm.Settings, default="fedavg", settings_of=lambda name: algorithm_class(name).Settings)


def build_algorithm(name: str, settings: Mapping[str, Any], *, num_nodes: int) -> Algorithm:
    """Return a method with its settings.

    Args:
        name: a key of `ALGORITHMS`.
        settings: the method's own, by name; what is left out has its default.
        num_nodes: about how many nodes the cohorts are drawn from.

    Raises:
        SettingsError: there is no such method, or a setting is not one of its own or out of bounds.
    """
    try:
        checked = check_method({**settings, "name": name})
    except ValueError as error:
        raise SettingsError(f"method.{error}") from None
    return algorithm_class(name)(checked, num_nodes=num_nodes)
