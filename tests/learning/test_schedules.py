"""Learning rates by round, against torch's schedulers and by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from federation.learning.schedules import learning_rate
from federation.settings import TrainingSettings

NUM_ROUNDS = 20


def rates(**settings: Any) -> list[float]:
    training = TrainingSettings.model_validate({"learning_rate": 0.02, **settings})
    return [learning_rate(training, number, NUM_ROUNDS) for number in range(1, NUM_ROUNDS + 1)]


def torch_rates(scheduler: type[Any], **options: Any) -> list[float]:
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.02)
    schedule = scheduler(optimiser, **options)
    seen = []
    for _ in range(NUM_ROUNDS):
        seen.append(float(optimiser.param_groups[0]["lr"]))
        optimiser.step()
        schedule.step()
    return seen


def test_step_is_torchs_and_the_default() -> None:
    expected = torch_rates(torch.optim.lr_scheduler.StepLR, step_size=10, gamma=0.5)
    assert rates() == pytest.approx(expected)
    assert rates()[9:11] == [0.02, 0.01]


def test_cosine_is_torchs() -> None:
    assert rates(schedule="cosine") == pytest.approx(torch_rates(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=NUM_ROUNDS))
    assert min(rates(schedule="cosine")) > 0


def test_constant() -> None:
    assert rates(schedule="constant") == [0.02] * NUM_ROUNDS


@pytest.mark.parametrize("schedule", ["step", "cosine", "constant"])
def test_warm_up_rises_evenly_and_then_the_schedule_begins(schedule: str) -> None:
    warmed = rates(schedule=schedule, warmup_rounds=3)
    assert warmed[:4] == pytest.approx([0.005, 0.01, 0.015, 0.02])
    training = TrainingSettings.model_validate({"learning_rate": 0.02, "schedule": schedule})
    assert warmed[3:] == pytest.approx([learning_rate(training, number, NUM_ROUNDS - 3) for number in range(1, NUM_ROUNDS - 2)])


def test_a_warm_up_longer_than_the_run_and_rounds_beyond_it_stay_above_zero() -> None:
    training = TrainingSettings.model_validate({"schedule": "cosine", "warmup_rounds": 50})
    assert learning_rate(training, 20, 20) > 0
    cosine = TrainingSettings.model_validate({"schedule": "cosine"})
    assert learning_rate(cosine, 25, 20) == learning_rate(cosine, 20, 20) > 0
    assert learning_rate(cosine, 1, 1) == cosine.learning_rate
