"""Who takes part in a round: a function of (seed, round) and the nodes that are fit, nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from math import ceil

from federation.learning.algorithms import algorithm_class
from federation.learning.codecs import codec_class
from federation.messages import NodeStatus
from federation.settings import RunSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What the run's model and data demand of every node."""

    image_shape: tuple[int, int, int]
    num_classes: int
    class_names: tuple[str, ...] = ()
    """In the order of the labels; empty where the run's data do not name them."""
    global_bytes: int
    """Size in bytes of what every node is sent at the start of a round."""
    needs: frozenset[str] = frozenset()
    """Names of the method and the codec, which every node must know."""
    min_updates: int = 1
    """Of how many updates the method is what it promises."""
    keeps_node_state: bool = False
    """Whether method or codec keep anything on nodes, which then need to know which of their updates have counted."""

    def unfitness(self, status: NodeStatus) -> str | None:
        """Return why a node can't take part, or None."""
        if not status.online:
            return "offline"
        if status.problem:
            return f"sits out: {status.problem}"
        if unknown := sorted(self.needs - set(status.capabilities)):
            return f"sits out: it does not know {' and '.join(repr(name) for name in unknown)}: update it, or install that there"
        if tuple(status.image_shape) != self.image_shape or status.num_classes != self.num_classes:
            return (
                f"sits out: its images are {status.image_shape} with {status.num_classes} classes, "
                f"this run's {list(self.image_shape)} with {self.num_classes}"
            )
        theirs, ours = tuple(status.class_names), self.class_names
        if theirs and ours and theirs != ours:
            # Either may end before the other: what a node says of itself need not agree with itself.
            label, (own, run) = next(pair for pair in enumerate(zip_longest(theirs, ours)) if pair[1][0] != pair[1][1])
            return (
                f"sits out: its class {label} is {own or 'missing'!r}, this run's {run or 'missing'!r}: "
                "set FEDMQ_CLASS_NAMES on the node to the run's classes, in their order"
            )
        return None if status.num_examples > 0 else "sits out: it has no examples"


def keeps_node_state(settings: RunSettings) -> bool:
    """Return whether a run's method or codec keep anything on nodes."""
    return algorithm_class(settings.method.name).keeps_node_state or codec_class(settings.codec.name).error_feedback


def draw_cohort(nodes: Iterable[str], *, seed: int, round_number: int, participation: float, min_nodes: int) -> tuple[str, ...]:
    """Return the cohort of a round, in node-id order.

    Each node's place in the draw is a hash of (seed, round, node), so that one node's coming or going
    changes the others' participation as little as possible.

    Args:
        nodes: names of the fit nodes, in any order.
        seed: the run's seed.
        round_number: counted from 1.
        participation: share of `nodes` to draw, in (0, 1]; rounded up.
        min_nodes: draw at least so many, if there are.
    """
    fit = sorted(set(nodes))
    size = min(len(fit), max(min_nodes, ceil(participation * len(fit) - 1e-9)))
    drawn = sorted(fit, key=lambda node: hashlib.sha256(f"{seed}/{round_number}/{node}".encode()).digest())
    return tuple(sorted(drawn[:size]))
