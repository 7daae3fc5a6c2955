"""Dealing a labelled data set to simulated nodes.

Every scheme deals each example to exactly one node and leaves no node without any. All depend on their
arguments alone: the same labels and seed give the same parts anywhere.
"""

from __future__ import annotations

from math import ceil

import numpy as np

from federation.errors import DataError
from federation.images import Indices, Labels
from federation.settings import PartitionSettings


def split(labels: Labels, settings: PartitionSettings) -> list[Indices]:
    """Return each node's indices into `labels` by the run file's scheme.

    Raises:
        DataError: a node would be left empty, or the classes do not go round; the text says which setting to change.
    """
    match settings.scheme:
        case "iid":
            return iid(labels, settings.num_nodes, settings.seed)
        case "dirichlet":
            return dirichlet(labels, settings.num_nodes, settings.alpha, settings.seed)
        case "shards":
            return shards(labels, settings.num_nodes, settings.classes_per_node, settings.seed)
        case "quantity":
            return quantity(labels, settings.num_nodes, settings.alpha, settings.seed)


def iid(labels: Labels, num_nodes: int, seed: int) -> list[Indices]:
    """Return `num_nodes` random parts whose sizes differ by one at most.

    Raises:
        DataError: more nodes than examples.
    """
    _check_enough(labels, num_nodes)
    order = np.random.default_rng(seed).permutation(len(labels))
    return list(np.array_split(order, num_nodes))


def dirichlet(labels: Labels, num_nodes: int, alpha: float, seed: int) -> list[Indices]:
    """Return parts whose class mix is skewed: each class is cut by shares drawn from Dirichlet(alpha).

    Follows the thesis draw for draw, with numpy's frozen legacy generator, and so reproduces its Table 2
    (after Hsu, Qi and Brown 2019, Measuring the Effects of Non-Identical Data Distribution). How many
    examples of a class each node gets depends on the class counts alone, not on the order of the labels.

    Args:
        labels: classes, int64 N.
        num_nodes: how many parts.
        alpha: concentration; small is skewed, large tends to the same mix everywhere.
        seed: in [0, 2^32).

    Raises:
        DataError: a node's part is empty.
    """
    _check_enough(labels, num_nodes)
    generator = np.random.RandomState(seed)
    pieces: list[list[Indices]] = [[] for _ in range(num_nodes)]
    for label in range(int(labels.max()) + 1):
        indices = np.flatnonzero(labels == label)
        generator.shuffle(indices)
        # In double precision whatever alpha's type: a share's rounding decides where a class is cut.
        shares = generator.dirichlet(np.full(num_nodes, float(alpha)))
        # A tiny alpha underflows every share to 0 / 0; such a class goes to one node, which is the limit.
        if not np.isfinite(shares).all():
            shares = np.eye(num_nodes)[generator.randint(num_nodes)]
        cuts = (np.cumsum(shares)[:-1] * len(indices)).astype(np.int64)
        for node, piece in enumerate(np.split(indices, cuts)):
            pieces[node].append(piece)
    parts = [np.concatenate(piece) for piece in pieces]
    for node, part in enumerate(parts):
        if len(part) == 0:
            raise DataError(
                f"node {node} gets no examples: raise partition.alpha ({alpha:g} now), lower partition.num_nodes ({num_nodes} now) "
                f"or change partition.seed ({seed} now)"
            )
        generator.shuffle(part)
    return parts


def shards(labels: Labels, num_nodes: int, classes_per_node: int, seed: int) -> list[Indices]:
    """Return parts that hold exactly `classes_per_node` classes each; a class's holders share it evenly.

    The pathological split of McMahan et al. 2017, Communication-Efficient Learning, section 3, by class:
    the classes, in random order, are dealt round and round.

    Raises:
        DataError: too few classes or too many, or a class has fewer examples than holders.
    """
    _check_enough(labels, num_nodes)
    generator = np.random.default_rng(seed)
    classes = generator.permutation(np.unique(labels))
    if classes_per_node > len(classes):
        raise DataError(
            f"partition.classes_per_node is {classes_per_node}, the data has {len(classes)} classes: set it to {len(classes)} or less"
        )
    if num_nodes * classes_per_node < len(classes):
        raise DataError(
            f"{num_nodes} nodes of {classes_per_node} classes leave some of {len(classes)} classes to nobody: "
            f"raise partition.classes_per_node to {ceil(len(classes) / num_nodes)} "
            f"or partition.num_nodes to {ceil(len(classes) / classes_per_node)}"
        )
    holders: dict[int, list[int]] = {int(label): [] for label in classes}
    for turn in range(num_nodes * classes_per_node):
        holders[int(classes[turn % len(classes)])].append(turn // classes_per_node)
    pieces: list[list[Indices]] = [[] for _ in range(num_nodes)]
    for label, nodes in holders.items():
        indices = generator.permutation(np.flatnonzero(labels == label))
        if len(indices) < len(nodes):
            raise DataError(
                f"class {label} has {len(indices)} examples for {len(nodes)} nodes: "
                "lower partition.num_nodes or partition.classes_per_node, or remove that class"
            )
        for node, piece in zip(nodes, np.array_split(indices, len(nodes)), strict=True):
            pieces[node].append(piece)
    return [generator.permutation(np.concatenate(piece)) for piece in pieces]


def quantity(labels: Labels, num_nodes: int, alpha: float, seed: int) -> list[Indices]:
    """Return random parts of unequal size: one example each, and the rest by shares drawn from Dirichlet(alpha).

    Raises:
        DataError: more nodes than examples.
    """
    _check_enough(labels, num_nodes)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    shares = generator.dirichlet(np.full(num_nodes, float(alpha)))
    if not np.isfinite(shares).all():
        shares = np.eye(num_nodes)[generator.integers(num_nodes)]
    extra = np.floor(np.cumsum(shares)[:-1] * (len(labels) - num_nodes)).astype(np.int64)
    return list(np.split(order, extra + np.arange(1, num_nodes)))


def hold_out(labels: Labels, indices: Indices, share: float, seed: int) -> tuple[Indices, Indices]:
    """Return (train, validation) indices of one node, stratified by class, each in the order of `indices`.

    Validation gets ceil(share * n) examples, as scikit-learn and so the thesis count; each class gives its
    share, rounded by largest remainder, but never its last example: what a node has one of, it trains on.

    Args:
        labels: classes of the whole data set.
        indices: the node's examples.
        share: of validation, in [0, 1).
        seed: of the choice within a class.
    """
    own = labels[indices]
    counts = np.bincount(own, minlength=1)
    quotas = share * counts
    num_held = np.minimum(np.floor(quotas + 1e-9).astype(np.int64), np.maximum(counts - 1, 0))
    # 1e-9: 0.2 * n may land a hair above the whole number it means.
    num_missing = ceil(share * len(indices) - 1e-9) - int(num_held.sum())
    for label in np.argsort(num_held - quotas, kind="stable"):
        if num_missing > 0 and num_held[label] < min(quotas[label] - 1e-9, counts[label] - 1):
            num_held[label] += 1
            num_missing -= 1
    generator = np.random.default_rng(seed)
    is_held = np.zeros(len(indices), dtype=np.bool_)
    for label, num in enumerate(num_held):
        is_held[generator.permutation(np.flatnonzero(own == label))[:num]] = True
    return indices[~is_held], indices[is_held]


def _check_enough(labels: Labels, num_nodes: int) -> None:
    if len(labels) < num_nodes:
        raise DataError(f"{len(labels)} examples can't be dealt to {num_nodes} nodes: lower partition.num_nodes to {len(labels)} or less")
