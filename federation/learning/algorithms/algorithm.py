"""What every federated method is: both halves, node and server, in one pure class.

aggregator                                              node
start(model) -> sets                                    its own state, which survives a restart
the sets of `down` -------------------------------->    train(trainer, sets, node state) -> update
<------------------------------- the sets of `up`
aggregate(sets, updates) -> next sets
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol, TypeAlias

import numpy as np
from pydantic import Field

from federation.errors import LocalProtocolError
from federation.learning.sets import MODEL, Sets, TensorSet
from federation.params import Array
from federation.setting_types import Settings as StrictSettings

NodeState: TypeAlias = MutableMapping[str, TensorSet]
"""What a method keeps on one node, by name; what is set counts from the moment the update it belongs to does."""


MethodName = Annotated[str, Field(min_length=1, max_length=128)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What local training gave."""

    node: str
    model: TensorSet
    """The trained model, of the signature of the one it began with."""
    num_examples: int
    num_steps: int
    """Steps of the optimiser."""
    learning_rate: float
    total_step: float
    """How far a constant gradient of 1 would have moved a weight: num_steps * learning_rate for plain SGD, more with momentum."""
    loss: float
    """Mean cross-entropy of the last epoch in nats, without additional terms."""
    seconds: float
    samples_per_second: float

    def update(self, **sets: TensorSet) -> Update:
        """Return an update of these sets, weighted by the number of examples."""
        return Update(node=self.node, num_examples=self.num_examples, sets=Sets(sets), trained=self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One node's contribution to one round. Its tensors may be read and decoded only when they are asked for."""

    node: str
    num_examples: int
    sets: Sets
    trained: Trained | None = None
    """On the node alone: what the training was like."""


class Trainer(Protocol):
    """Local training on one node's data, as a task provides it."""

    @property
    def initial(self) -> TensorSet:
        """The whole network as every node and the aggregator begin with, from the run's seed."""
        ...

    @property
    def label_counts(self) -> Sequence[int] | None:
        """How many examples of each class this node trains on; None where its site keeps that to itself."""
        ...

    def fit(
        self,
        start: TensorSet,
        *,
        proximal_mu: float = 0.0,
        gradient_offset: TensorSet | None = None,
        only: Collection[str] | None = None,
        local_epochs: int | None = None,
    ) -> Trained:
        """Train for the round's local epochs.

        Args:
            start: the whole model to begin with; read once.
            proximal_mu: weight of mu/2 * ||w - start||^2 in the loss.
            gradient_offset: added to each step's gradient, after clipping; of `start`'s signature. Read once.
            only: names of the weights that may change, some at least; None: all. Statistics are counted either way.
            local_epochs: instead of the round's.

        Raises:
            TrainingCancelled: the round is over.
            TrainingDivergedError: the loss or a weight became NaN or infinite.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """What one set of an update is."""

    like: str = MODEL
    """The set of `down` whose signature it has."""
    is_difference: bool = False
    """It is a change already. One that is not lies near the set it is like, and codecs that want changes subtract that."""


class Algorithm(ABC):
    """A federated method.

    Both halves are pure: they depend on their arguments alone, so that a recorded round can be repeated bit for bit.

    Args:
        settings: the method's own, from the run file.
        num_nodes: about how many nodes the cohort was drawn from.
    """

    class Settings(StrictSettings):
        """What a run file may say under `[method]`."""

        name: MethodName

    down: ClassVar[tuple[str, ...]] = (MODEL,)
    """The sets that nodes are sent; further sets of `start` stay on the server, beside the global model."""
    up: ClassVar[Mapping[str, Upload]] = {MODEL: Upload()}
    """The sets of an update."""
    keeps_node_state: ClassVar[bool] = False
    """Whether `train` keeps anything on the node."""
    min_updates: ClassVar[int] = 1
    """Of how many updates the method is what its name promises."""
    needs_sgd: ClassVar[bool] = False
    """Whether it works from how far gradients move the weights (`Trained.total_step`), which adaptive optimisers don't tell."""

    def __init__(self, settings: Algorithm.Settings, *, num_nodes: int) -> None:
        self.settings = settings
        self.num_nodes = num_nodes

    def with_num_nodes(self, num_nodes: int) -> Algorithm:
        """Return the same method for a round whose cohort was drawn from so many nodes."""
        return type(self)(self.settings, num_nodes=num_nodes)

    def start(self, model: TensorSet) -> Sets:
        """Return the sets before the first round.

        Args:
            model: the network from the run's seed.

        Raises:
            SettingsError: the method's settings don't fit the network.
        """
        return Sets({MODEL: model})

    @abstractmethod
    def train(self, trainer: Trainer, sets: Sets, node: NodeState) -> Update:
        """Return a node's update: the node's half.

        Args:
            trainer: trains on this node's data.
            sets: those of `down`.
            node: what this method has kept on this node; empty before its first update that counted.
        """

    @abstractmethod
    def aggregate(self, sets: Sets, updates: Sequence[Update]) -> Sets:
        """Return the next sets, of the same names and signatures: the server's half.

        Args:
            sets: all of them, those that stay on the server included.
            updates: at least `min_updates`, sorted by node name, their sets those of `up`; read lazily, one tensor at a time.

        Raises:
            LocalProtocolError: no updates, or not in node order.
        """

    def whole_model(self, sets: Sets, node: NodeState | None, initial: TensorSet) -> TensorSet | None:  # noqa: ARG002 - the seam's signature
        """Return the model that makes predictions, or None where there is none in this place.

        Args:
            sets: those of `down`.
            node: on a node, what the method keeps there; None on the server.
            initial: the network from the run's seed.
        """
        return sets[MODEL]


def mean(updates: Sequence[Update], name: str, *, weights: Literal["examples", "equal"]) -> TensorSet:
    """Return the mean of one set of the updates, computed per tensor on access.

    Sums run in float64 and in node order, so the result is the same bit for bit whenever the updates are.

    Args:
        updates: at least one, in node order.
        name: which set.
        weights: each update counts by its number of examples, or as one.

    Raises:
        LocalProtocolError: no updates, or not in node order.
    """
    check_updates(updates)
    factors = [update.num_examples if weights == "examples" else 1 for update in updates]
    total = sum(factors)
    tensors = [update.sets[name] for update in updates]

    def compute(tensor: str) -> Array:
        first = tensors[0][tensor]
        sums = np.zeros(first.shape, dtype=np.float64)
        scaled = np.empty_like(sums)
        for values, factor in zip(tensors, factors, strict=True):
            np.multiply(values[tensor], np.float64(factor), out=scaled)
            sums += scaled
        sums /= total
        return sums

    return TensorSet.computed(tensors[0].signature, compute)


def check_updates(updates: Sequence[Update]) -> None:
    """Raise unless there are updates, in node order.

    Raises:
        LocalProtocolError: a caller's bug; sums must run in node order to repeat bit for bit.
    """
    if not updates:
        raise LocalProtocolError("an algorithm needs at least one update")
    nodes = [update.node for update in updates]
    if nodes != sorted(set(nodes)):
        raise LocalProtocolError(f"updates must be of distinct nodes in node order, not {nodes}")
