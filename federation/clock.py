"""The seam through which services are told the time; only `__main__` modules and tests make clocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """The two clocks a service needs: one to measure with, one to stamp points with."""

    monotonic: Callable[[], float]
    """Seconds; never goes back."""
    time_ns: Callable[[], int]
    """Nanoseconds since 1970."""
