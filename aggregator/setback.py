"""A setback: the new global model is far worse on the server's images than the best of its run. Whose update made it so?

    setback:   accuracy(w') < best - margin,   margin = max(max_setback, 1 / sqrt(images)),   best >= MIN_ABOVE_CHANCE / classes
    culprits:  one by one the update without which the model is best, until it is within the margin again; fewer than half

The bounds of aggregator/protection.py and the probation look at what an update is; this looks at what became of the model,
and catches what passes both. Where no such nodes are found, the round's own model stays. `fedmq replay` has no images: it
leaves out whom the signed result of a round with a setback says was left out.

Leave-one-out as in Cook, "Detection of Influential Observation in Linear Regression", 1977.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt

from aggregator.probation import leave_out
from aggregator.protection import Protected
from federation.learning.algorithms import Update
from federation.messages import Evaluation, RoundResult, Setback
from federation.settings import ProtectionSettings

MAX_EVALUATIONS = 20
"""In one setback, the greatest influence first: each costs an evaluation."""

MIN_ABOVE_CHANCE = 3.0
"""Until a run has once been right so many times as often as guessing among its classes, a fall says nothing of anybody: a model
that knows two classes forgets one of them in an honest round (docs/security.md)."""

MIN_WORTH_KEEPING = 0.8
"""Where that is more than this accuracy, as of few classes, this counts."""


def setback_of(
    evaluation: Evaluation | None, *, best_accuracy: float | None, num_classes: int, settings: ProtectionSettings
) -> Setback | None:
    """Return how far a new model has fallen, if it has.

    Args:
        evaluation: of the new model on the server's images; None where it has none.
        best_accuracy: of the run's models so far; None before the first.
        num_classes: of the images.
        settings: the run's.
    """
    if evaluation is None or best_accuracy is None or settings.max_setback == 0:
        return None
    if best_accuracy < min(MIN_ABOVE_CHANCE / num_classes, MIN_WORTH_KEEPING):
        return None
    least = best_accuracy - max(settings.max_setback, 1 / sqrt(max(1, evaluation.num_examples)))
    if evaluation.accuracy >= least:
        return None
    return Setback(accuracy=evaluation.accuracy, best_accuracy=best_accuracy, least_accuracy=max(0.0, least))


def best_accuracy(results: Sequence[RoundResult], before: float | None = None) -> float | None:
    """Return the best accuracy of the models that these rounds ended with, and of those `before`."""
    found = [result.evaluation.accuracy for result in results if result.aggregated and result.evaluation is not None]
    return max(found if before is None else [*found, before], default=None)


def max_culprits(num_updates: int) -> int:
    """Return how many of a round's updates may be left out for a setback: fewer than half, for the others must outvote them."""
    return max(0, (num_updates - 1) // 2)


def leave_out_culprits(protected: Protected, setback: Setback, evaluate: Callable[[Sequence[Update]], Evaluation | None]) -> Protected:
    """Return a round's updates without those whose removal ends the setback; all of them where there are no such.

    Args:
        protected: a round's updates within their bounds.
        setback: what the model made of them shows.
        evaluate: how good the model made of these updates is on the server's images.
    """
    influence = {entry.node: entry.weight * entry.distance for entry in protected.contributions}
    left, num_evaluations = protected, 0
    for _ in range(max_culprits(len(protected.updates))):
        suspects = sorted((update.node for update in left.updates), key=lambda node: (-influence[node], node))
        found: list[tuple[float, float, int, str]] = []
        for place, node in enumerate(suspects[: MAX_EVALUATIONS - num_evaluations]):
            without = evaluate([update for update in left.updates if update.node != node])
            num_evaluations += 1
            if without is not None:
                found.append((-without.accuracy, without.loss, place, node))
        if not found:
            return protected
        negative, _, _, culprit = min(found)
        left = leave_out(left, {culprit}, _reason(setback, -negative))
        if -negative >= setback.least_accuracy:
            return left
    return protected


def unexplained(setback: Setback) -> str:
    """Return why a round gives no model, as a sentence."""
    return (
        f"its accuracy on the server's images is {setback.accuracy:.4f}, the best was {setback.best_accuracy:.4f}, and no few nodes are "
        f"found without which it is {setback.least_accuracy:.4f} or more"
    )


def _reason(setback: Setback, accuracy: float) -> str:
    return (
        f"left out: with it the model's accuracy on the server's images falls to {setback.accuracy:.4f}, the best was "
        f"{setback.best_accuracy:.4f}; without it, it is {accuracy:.4f}"
    )
