"""Norms and distances of models, the same bit for bit on every machine: what decides about updates must repeat in a replay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations_with_replacement
from math import sqrt

import numpy as np

from federation.params import Array, Params


def distance(params: Params, from_params: Params) -> float:
    """Return the Euclidean distance of two models of one signature."""
    return sqrt(sum(sum_of(np.square(np.subtract(params[name], from_params[name], dtype=np.float64))) for name in sorted(from_params)))


def norm(params: Params) -> float:
    """Return the Euclidean norm of a model."""
    return sqrt(sum(sum_of(np.square(np.asarray(params[name], dtype=np.float64))) for name in sorted(params)))


def squared_distances(models: Sequence[Params]) -> list[list[float]]:
    """Return the squared distance of every model from every other, n x n.

    Args:
        models: of one signature; each tensor is read once, and all models' copies of one are in memory at a time.
    """
    return _of_pairs(models, lambda tensors: tensors, lambda left, right: np.square(left - right))


def products_about_median(models: Sequence[Params]) -> list[list[float]]:
    """Return the inner products of the models' differences from their coordinate-wise median, n x n.

    Args:
        models: as in `squared_distances`.
    """
    return _of_pairs(models, lambda tensors: tensors - np.median(tensors, axis=0), lambda left, right: left * right)


def _of_pairs(models: Sequence[Params], prepare: Callable[[Array], Array], combine: Callable[[Array, Array], Array]) -> list[list[float]]:
    sums = [[0.0] * len(models) for _ in models]
    for name in sorted(models[0]):
        tensors = prepare(np.stack([np.asarray(model[name], dtype=np.float64) for model in models]))
        for i, j in combinations_with_replacement(range(len(models)), 2):
            sums[i][j] += sum_of(combine(tensors[i], tensors[j]))
            sums[j][i] = sums[i][j]
    return sums


def sum_of(values: Array) -> float:
    """Return the sum of a tensor in an order of its own: `np.sum` adds in one that follows the processor's width.

    Args:
        values: contiguous; used up. A fold that allocates takes twice the time.
    """
    folded = values.reshape(-1)
    size = folded.size
    while size > 1:
        half = size // 2
        folded[:half] += folded[half : 2 * half]
        if size % 2:
            folded[0] += folded[size - 1]
        size = half
    return float(folded[0]) if size else 0.0
