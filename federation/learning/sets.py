"""Named tensor sets, and arithmetic on them: what an algorithm is written in.

A `TensorSet` is like a model: tensors by name. `Sets` are several of them by name, such as `model` and `control`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeAlias

import numpy as np

from federation.errors import LocalProtocolError
from federation.params import Array, Params, Signature, TensorSpec, signature_of

MODEL = "model"
"""The set that every algorithm has: the global model."""

Compute: TypeAlias = Callable[[str], Array]
"""Tensor name -> its values, float32 or float64."""


class TensorSet(Mapping[str, Array]):
    """Float32 tensors by name, in name order, that may be read or computed only when they are asked for.

    Sums, differences and products are lazy: each tensor is computed when asked for, in float64, and rounded to
    float32 once, so the same operands give the same bits everywhere. Nothing is kept; `held` reads everything now.

    Args:
        tensors: float32 arrays, read on access.
        signature: their names and shapes, where the caller knows them; otherwise each is read once for it.
    """

    def __init__(self, tensors: Params, signature: Signature | None = None) -> None:
        self._signature = signature if signature is not None else signature_of(tensors)
        self._specs = {spec.name: spec for spec in self._signature}
        self._compute: Compute = tensors.__getitem__

    @classmethod
    def computed(cls, signature: Signature, compute: Compute) -> TensorSet:
        """Return a set whose tensors `compute` gives, of the signature's shapes, one at a time and each time anew."""
        tensors = cls({}, signature)
        tensors._compute = compute
        return tensors

    @property
    def signature(self) -> Signature:
        """Names and shapes of the tensors, in name order."""
        return self._signature

    def __getitem__(self, name: str) -> Array:
        if name not in self._specs:
            raise KeyError(name)
        with np.errstate(over="ignore"):
            # What leaves float32's range becomes infinite here, and is refused where tensors are checked.
            return self._compute(name).astype(np.float32, copy=False)

    def exact(self, name: str) -> Array:
        """Return a tensor as float64: what sums and products are made of, not yet rounded."""
        return self._compute(name).astype(np.float64, copy=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def __add__(self, other: TensorSet) -> TensorSet:
        return self._with(other, lambda left, right: left + right)

    def __sub__(self, other: TensorSet) -> TensorSet:
        return self._with(other, lambda left, right: left - right)

    def __mul__(self, other: TensorSet | float) -> TensorSet:
        return self._with(other, lambda left, right: left * right)

    __rmul__ = __mul__

    def __truediv__(self, other: TensorSet | float) -> TensorSet:
        return self._with(other, lambda left, right: left / right)

    def __neg__(self) -> TensorSet:
        return self * -1.0

    def map(self, function: Callable[[Array], Array]) -> TensorSet:
        """Return the set with a function of float64 arrays applied to each tensor; shapes stay."""
        return TensorSet.computed(self._signature, lambda name: function(self.exact(name)))

    def zeros(self) -> TensorSet:
        """Return zeros of the same names and shapes."""
        shapes = {spec.name: spec.shape for spec in self._signature}
        return TensorSet.computed(self._signature, lambda name: np.zeros(shapes[name], np.float32))

    def only(self, names: Iterable[str]) -> TensorSet:
        """Return the set with these tensors alone.

        Raises:
            LocalProtocolError: one is not there.
        """
        wanted = set(names)
        if unknown := sorted(wanted - self._specs.keys()):
            raise LocalProtocolError(f"there is no tensor {unknown[0]!r}")
        return TensorSet.computed(tuple(spec for spec in self._signature if spec.name in wanted), self._compute)

    def joined(self, other: TensorSet) -> TensorSet:
        """Return the tensors of both sets.

        Raises:
            LocalProtocolError: a tensor is in both.
        """
        if both := sorted(self._specs.keys() & other._specs.keys()):
            raise LocalProtocolError(f"tensor {both[0]!r} is in both sets")
        signature = tuple(sorted((*self._signature, *other._signature), key=lambda spec: spec.name))
        return TensorSet.computed(signature, lambda name: self._compute(name) if name in self._specs else other._compute(name))

    def held(self) -> TensorSet:
        """Return the same tensors, read or computed now and held in memory."""
        return TensorSet({name: self[name] for name in self}, self._signature)

    def _with(self, other: TensorSet | float, operate: Callable[[Array, Array | float], Array]) -> TensorSet:
        if not isinstance(other, TensorSet):
            number = float(other)
            return TensorSet.computed(self._signature, lambda name: operate(self.exact(name), number))
        if other.signature != self._signature:
            raise LocalProtocolError(
                f"sets of other tensors can't be combined: {describe(self._signature)} and {describe(other.signature)}"
            )
        return TensorSet.computed(self._signature, lambda name: operate(self.exact(name), other.exact(name)))


class Sets(Mapping[str, TensorSet]):
    """Tensor sets by name. Never changes: its methods return new ones.

    Args:
        sets: the sets; plain mappings of tensors are taken as `TensorSet`.
    """

    def __init__(self, sets: Mapping[str, TensorSet | Params]) -> None:
        self._sets = {name: tensors if isinstance(tensors, TensorSet) else TensorSet(tensors) for name, tensors in sets.items()}

    def __getitem__(self, name: str) -> TensorSet:
        return self._sets[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sets)

    def __len__(self) -> int:
        return len(self._sets)

    @property
    def signatures(self) -> dict[str, Signature]:
        """The signature of each set."""
        return {name: tensors.signature for name, tensors in self._sets.items()}

    def with_set(self, name: str, tensors: TensorSet) -> Sets:
        """Return these sets with one added or replaced."""
        return Sets({**self._sets, name: tensors})

    def with_sets(self, **sets: TensorSet) -> Sets:
        """Return these sets with some added or replaced."""
        return Sets({**self._sets, **sets})

    def plus(self, **steps: TensorSet) -> Sets:
        """Return these sets with a step added to each of the named ones."""
        return self.with_sets(**{name: self._sets[name] + step for name, step in steps.items()})

    def only(self, names: Iterable[str]) -> Sets:
        """Return some of the sets."""
        return Sets({name: self._sets[name] for name in names})


def describe(signature: Signature) -> str:
    """Return a signature's size in words, for error texts."""
    first: TensorSpec | None = signature[0] if signature else None
    return f"{len(signature)} tensors" + (f" from {first.name!r} {first.shape}" if first else "")
