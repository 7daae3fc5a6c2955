"""Batch normalisation's tensors, by the names that networks give them."""

from __future__ import annotations

from collections.abc import Iterable

from federation.learning.sets import TensorSet

STATISTICS = ("running_mean", "running_var")
"""What a layer counts and no gradient moves, by the ends of the names."""


def with_averaged_statistics(stepped: TensorSet, average: TensorSet) -> TensorSet:
    """Return the weights of one model with the statistics of another.

    Args:
        stepped: where a server's optimiser would take the model; that step could make a variance negative.
        average: the mean of the nodes' models.
    """
    statistics = [name for name in average if name.endswith(STATISTICS)]
    return stepped.only(name for name in average if not name.endswith(STATISTICS)).joined(average.only(statistics))


def norm_layers(names: Iterable[str]) -> list[str]:
    """Return the layers that count statistics, which batch normalisation alone does, in name order."""
    return sorted({name.rpartition(".")[0] for name in names if name.endswith(STATISTICS)})
