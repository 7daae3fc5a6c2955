"""The papers' run files: they load, and say what the papers' tables say."""

from __future__ import annotations

from pathlib import Path

import pytest

from federation.known_datasets import KNOWN_DATASETS
from federation.settings import RunSettings, TrainingSettings, load_run_file

FOLDER = Path(__file__).resolve().parents[2] / "experiments"

THESIS_ROWS = {
    "thesis_centralised_simple_cnn": ("centralised", "simple_cnn", "dirichlet", 0.001, "fedavg", None),
    "thesis_centralised_resnet18": ("centralised", "resnet18", "dirichlet", 0.001, "fedavg", None),
    "thesis_iid_fedavg": ("federated", "simple_cnn", "iid", 0.001, "fedavg", None),
    "thesis_fedavg_lr_0.001": ("federated", "simple_cnn", "dirichlet", 0.001, "fedavg", None),
    "thesis_fedavg_lr_0.002": ("federated", "simple_cnn", "dirichlet", 0.002, "fedavg", None),
    "thesis_fedprox_mu_0.01": ("federated", "simple_cnn", "dirichlet", 0.001, "fedprox", 0.01),
    "thesis_fedprox_mu_0.1": ("federated", "simple_cnn", "dirichlet", 0.001, "fedprox", 0.1),
    "thesis_fedprox_mu_0.3": ("federated", "simple_cnn", "dirichlet", 0.001, "fedprox", 0.3),
}


def load(name: str) -> RunSettings:
    return load_run_file(FOLDER / f"{name}.toml")


@pytest.mark.parametrize("name", THESIS_ROWS)
def test_a_row_of_table_3(name: str) -> None:
    """The row's own settings, and the thesis's recipe for all else."""
    settings = load(name)
    mode, model, scheme, learning_rate, strategy, mu = THESIS_ROWS[name]
    assert (settings.mode, settings.model.name, settings.partition.scheme) == (mode, model, scheme)
    assert (settings.method.name, settings.training.learning_rate) == (strategy, learning_rate)
    assert mu is None or getattr(settings.method, "mu", None) == mu
    assert settings.training == TrainingSettings(learning_rate=learning_rate)
    assert (settings.num_rounds, settings.data.name, settings.data.size) == (20, "pathmnist", 28)
    assert (settings.partition.num_nodes, settings.partition.alpha, settings.partition.seed) == (3, 0.5, 42)


def test_the_proof_of_concept_differs_in_the_partition_alone() -> None:
    """Five nodes, five rounds of plain FedAvg on MNIST; the two runs are apart only in how classes are dealt."""
    iid, skewed = load("poc_mnist_iid"), load("poc_mnist_non_iid")
    assert (iid.num_rounds, iid.partition.num_nodes, iid.data.name, iid.model.name) == (5, 5, "mnist", "mnist_cnn")
    assert (iid.partition.scheme, skewed.partition.scheme) == ("iid", "shards")
    assert skewed.partition.classes_per_node < KNOWN_DATASETS["mnist"].num_classes
    differing = {name for name in RunSettings.model_fields if getattr(iid, name) != getattr(skewed, name)}
    assert differing == {"run", "partition"}


def test_run_names_are_their_own() -> None:
    """Runs share a broker: no two files may share a name."""
    paths = sorted(FOLDER.rglob("*.toml"))
    assert len({load_run_file(path).run for path in paths}) == len(paths) >= 10


def test_beyond_differs_from_the_thesis_in_data_and_recipe_alone() -> None:
    """So that what is gained is the recipe's."""
    thesis, best = load("thesis_fedavg_lr_0.001"), load("beyond/bloodmnist_half_best")
    differing = {name for name in RunSettings.model_fields if getattr(thesis, name) != getattr(best, name)}
    assert differing == {"run", "recipe", "data", "training"}
    assert (best.training.local_epochs, best.training.batch_size) == (thesis.training.local_epochs, thesis.training.batch_size)
    assert (best.training.learning_rate, best.training.augmentation, best.training.max_grad_norm) == (0.02, "cells", 0.0)
