"""Aggregation strategies: one file per algorithm, each pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from federation.settings import StrategySettings
from federation.strategies.fedavg import FedAvg
from federation.strategies.fedmedian import FedMedian
from federation.strategies.fedprox import FedProx
from federation.strategies.strategy import Aggregation, Strategy, Update

__all__ = ["STRATEGIES", "Aggregation", "Strategy", "Update", "build_strategy"]

STRATEGIES: Mapping[str, Callable[[StrategySettings], Strategy]] = {
    "fedavg": lambda _settings: FedAvg(),
    "fedmedian": lambda _settings: FedMedian(),
    "fedprox": lambda settings: FedProx(mu=settings.mu),
}
"""Every strategy by the name a run file calls it."""


def build_strategy(settings: StrategySettings) -> Strategy:
    """Return the strategy that the settings name."""
    return STRATEGIES[settings.name](settings)
