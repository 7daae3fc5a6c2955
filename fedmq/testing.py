"""Checks of a method of one's own: what every method keeps to, tried on nodes whose loss is a parabola.

    from fedmq.testing import check_algorithm
    check_algorithm(Scaffold)

It needs no data, broker or PyTorch, and takes less than a second.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from federation.codec import encode
from federation.errors import FedMQError, LocalProtocolError
from federation.learning.algorithms import Algorithm, NodeState, Trained, Update
from federation.learning.codecs import flatten
from federation.learning.sets import Sets, TensorSet
from federation.params import Array

MIN_NODES = 3

NUM_ROUNDS = 3

MODEL: Mapping[str, Array] = {
    "output.weight": np.array([[0.5, -1.0, 2.0], [0.25, 0.0, 1.0]], np.float32),
    "hidden.weight": np.array([1.0, -2.0, 3.0, 0.5], np.float32),
    "norm.running_var": np.array([1.0, 2.0], np.float32),
}
"""A small network's tensors: a shared layer, a last layer, and a statistic."""


class ContractError(FedMQError):
    """A method breaks what FedMQ relies on; the text says what."""


class ParabolaTrainer:
    """Minimises 1/2 * ||w - optimum||^2 by plain gradient descent. Implements `Trainer`.

    Args:
        node: its name.
        optimum: where this node's loss is least, the same in every coordinate.
        num_examples: how much it counts.
    """

    num_steps, learning_rate = 4, 0.125

    def __init__(self, node: str, *, optimum: float, num_examples: int) -> None:
        self.node = node
        self.optimum = optimum
        self.num_examples = num_examples
        self.initial = TensorSet(MODEL)
        self.label_counts: Sequence[int] = (num_examples, 1)

    def fit(
        self,
        start: TensorSet,
        *,
        proximal_mu: float = 0.0,
        gradient_offset: TensorSet | None = None,
        only: Collection[str] | None = None,
        local_epochs: int | None = None,
    ) -> Trained:
        """Take the steps: `num_steps` for each epoch, of one epoch where none are given."""
        if start.signature != self.initial.signature:
            raise ContractError("trainer.fit begins with the whole network: every tensor of trainer.initial")
        trained = {}
        for name in start:
            begin = start[name].astype(np.float64)
            weights = begin
            offset = gradient_offset[name].astype(np.float64) if gradient_offset is not None else 0.0
            for _ in range(self.num_steps * (local_epochs or 1) if only is None or name in only else 0):
                gradient = weights - self.optimum + proximal_mu * (weights - begin)
                weights = weights - self.learning_rate * (gradient + offset)
            trained[name] = weights.astype(np.float32)
        return Trained(
            node=self.node,
            model=TensorSet(trained),
            num_examples=self.num_examples,
            num_steps=self.num_steps,
            learning_rate=self.learning_rate,
            total_step=self.num_steps * self.learning_rate,
            loss=0.0,
            seconds=0.0,
            samples_per_second=0.0,
        )


def check_algorithm(kind: type[Algorithm], **settings: Any) -> None:
    """Try a method: names and shapes, repetition, order, what it keeps on nodes, and an update that did not count.

    Args:
        kind: the method.
        settings: its own, where the defaults don't fit three small tensors.

    Raises:
        ContractError: says what does not hold.
    """
    name = f"{kind.__module__}:{kind.__name__}"
    algorithm = kind(kind.Settings.model_validate({"name": name, **settings}), num_nodes=max(MIN_NODES, kind.min_updates))
    start = _held(algorithm.start(TensorSet(MODEL)))
    _require(set(algorithm.down) <= set(start), f"`down` names {sorted(set(algorithm.down) - set(start))}, which `start` does not return")
    first, second = _run(algorithm, start), _run(algorithm, start)
    _require(first == second, "the same rounds again give other bits: both halves may depend on their arguments alone")


def _run(algorithm: Algorithm, start: Sets) -> bytes:
    """Run some rounds, checking each; return what they end with."""
    trainers = [ParabolaTrainer(f"n{index:04}", optimum=float(index), num_examples=index + 1) for index in range(algorithm.num_nodes)]
    kept: dict[str, NodeState] = {trainer.node: {} for trainer in trainers}
    sets = start
    for _ in range(NUM_ROUNDS):
        down = sets.only(algorithm.down)
        updates = [_train(algorithm, trainer, down, kept) for trainer in trainers]
        for wrong in ([], updates[::-1]):
            _require(_is_refused(algorithm, sets, wrong), "aggregate must refuse no updates, and updates out of node order: call `mean`")
        following = _held(algorithm.aggregate(sets, updates))
        _require(following.signatures == sets.signatures, "aggregate must return sets of the names and shapes that it was given")
        from_files = algorithm.aggregate(_held(sets), [replace(update, sets=_held(update.sets)) for update in updates])
        _require(_bytes(from_files) == _bytes(following), "aggregate gives other bits from files than from memory")
        sets = following
    return _bytes(sets)


def _train(algorithm: Algorithm, trainer: ParabolaTrainer, down: Sets, kept: dict[str, NodeState]) -> Update:
    """Train one node twice from the same state, as after an update that did not count; return the update."""
    before = dict(kept[trainer.node])
    update = algorithm.train(trainer, down, kept[trainer.node])
    once = _bytes(update.sets)
    state = {name: tensors.held() for name, tensors in kept[trainer.node].items()}
    kept[trainer.node] = before
    again = algorithm.train(trainer, down, kept[trainer.node])
    _require(
        _bytes(again.sets) == once,
        "training again from the same state gives another update: an update that did not count must leave no trace",
    )
    kept[trainer.node] = dict(state)
    _require(bool(state) == algorithm.keeps_node_state, "`keeps_node_state` says whether `train` keeps anything on the node")
    _require(update.trained is not None, "train must return trained.update(...), which says what the training was like")
    _require(set(update.sets) == set(algorithm.up), f"an update holds {sorted(update.sets)}, `up` declares {sorted(algorithm.up)}")
    for name, upload in algorithm.up.items():
        _require(update.sets[name].signature == down[upload.like].signature, f"set {name!r} of an update is not like {upload.like!r}")
    return update


def _is_refused(algorithm: Algorithm, sets: Sets, updates: Sequence[Update]) -> bool:
    try:
        _bytes(algorithm.aggregate(sets, updates))
    except LocalProtocolError:
        return True
    return False


def _held(sets: Sets) -> Sets:
    return Sets({name: tensors.held() for name, tensors in sets.items()})


def _bytes(sets: Sets) -> bytes:
    return encode(flatten(sets))


def _require(condition: object, sentence: str) -> None:
    if not condition:
        raise ContractError(sentence)
