"""What the points of a class say: its label, and what its images were taken for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

MAX_LABEL_CHARACTERS = 64
"""Of the name's part: what still fits a table's column, and a database's index."""

_UNSAFE = re.compile(r'["\\\x00-\x1f\x7f]')
"""Breaks the alias or the JSON that the confusion matrix is drawn from."""

NOTHING = "none"
"""A class of which every image was recognised, or that has none, is taken for this."""


def class_label(index: int, class_names: Sequence[str], num_classes: int) -> str:
    """Return number and name, "3 lymphocyte"; the number alone where the data name nothing.

    Numbers are padded to one width, so that they sort as text.
    """
    number = f"{index:0{len(str(max(0, num_classes - 1)))}d}"
    name = _UNSAFE.sub("", class_names[index]).strip()[:MAX_LABEL_CHARACTERS] if index < len(class_names) else ""
    return number if name in {"", str(index), f"class {index}"} else f"{number} {name}"


def row_fields(index: int, row: Sequence[int], labels: Sequence[str]) -> dict[str, Any]:
    """Return how many images a class has, the commonest wrong class among their predictions, and its share of them.

    Args:
        index: of the class.
        row: of the confusion matrix: predictions of the class's images.
        labels: of all classes.
    """
    images = sum(row)
    wrong = [(count, -column) for column, count in enumerate(row) if column != index and count > 0]
    if not wrong:
        return {"images": images, "taken_for": NOTHING, "taken_for_share": 0.0}
    count, column = max(wrong)
    return {"images": images, "taken_for": labels[-column], "taken_for_share": count / images}
