"""The last good model: one that is far worse on one's own images than what is in use does not replace it.

A node can't tell who spoilt a global model, but it has images whose classes it knows. Training goes on with the new
model; only what answers questions about images stays.

{folder}/last_good.json   the best accuracy of this run, and why a newer model is not in use, if so
"""

from __future__ import annotations

from math import sqrt
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from federation.inference.model_file import replace_file

LAST_GOOD_FILE = "last_good.json"

MAX_LOSS = 0.2
"""Accuracy that a newer model may lose against the best of the run: 20 points. Between two rounds of honest nodes with classes
of their own it can be ten; a spoilt model guesses."""


class _Standing(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    run: str
    best_accuracy: float
    """Of the models of this run, on the images they are judged by."""
    in_use_round: int
    """The round whose model is in use."""
    reason: str = ""
    """Why a newer one is not, as a sentence."""


class LastGood:
    """Judges each model before it is put to use.

    Args:
        folder: where the models are; what an earlier process found out is taken up.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / LAST_GOOD_FILE
        self._standing = _read(self._file)

    def judge(self, *, run: str, round_number: int, accuracy: float | None, num_images: int, has_model: bool) -> str:
        """Return why the model in use has to stay, as a sentence; empty where the new one may replace it.

        A model of another run replaces any, and without images to judge by each replaces the one before.

        Args:
            run: the run's name.
            round_number: the round that the model begins.
            accuracy: as a share; None where there are no images to judge by.
            num_images: of how many; few images allow more loss, one over the square root of their number.
            has_model: there is a model in use; without one any is better than none.
        """
        before = self._standing if self._standing is not None and self._standing.run == run else None
        if accuracy is None:
            return ""
        best = max(before.best_accuracy, accuracy) if before else accuracy
        margin = max(MAX_LOSS, 1 / sqrt(max(1, num_images)))
        reason, in_use = "", round_number
        if before is not None and has_model and accuracy < before.best_accuracy - margin:
            in_use = before.in_use_round
            reason = (
                f"the model of round {round_number} is right on {100 * accuracy:.1f} % of our own images, "
                f"the best was on {100 * before.best_accuracy:.1f} %: the model of round {in_use} stays in use"
            )
        self._standing = _Standing(run=run, best_accuracy=best, in_use_round=in_use, reason=reason)
        return reason

    def save(self) -> None:
        """Store what was judged last, after the model itself: a power cut between the two judges that model again.

        Raises:
            OSError: the disk is full or fails.
        """
        if self._standing is not None:
            replace_file(self._file, self._standing.model_dump_json(indent=1).encode())


def kept_reason(folder: Path) -> str:
    """Return why the model in use in a folder is not the newest; empty where it is."""
    standing = _read(folder / LAST_GOOD_FILE)
    return standing.reason if standing else ""


def _read(file: Path) -> _Standing | None:
    try:
        return _Standing.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None  # nothing judged yet, or damaged: judged anew
