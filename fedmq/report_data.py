"""Which node of a simulated run holds how much of which class, found again from its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from federation.data import load_dataset
from federation.partition import split
from federation.settings import parse_settings
from fedmq.options import CommandEnvironment


def partition_counts(settings: Mapping[str, Any], environment: CommandEnvironment) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return examples by node and class, and the classes' names.

    Raises:
        DataError: the data set is not here and can't be fetched.
        SettingsError: the settings are of another version.
    """
    parsed = parse_settings(settings, source="settings.json")
    dataset = load_dataset(parsed.data, data_dir=environment.data_dir, cache_dir=environment.cache_dir, progress=False)
    parts = split(dataset.train.labels, parsed.partition)
    counts = np.array([np.bincount(dataset.train.labels[part], minlength=dataset.num_classes) for part in parts])
    return counts, dataset.class_names
