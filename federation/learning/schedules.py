"""The learning rate of each round.

A schedule is a function of the round alone, so a node that missed rounds is where everyone else is.
"""

from __future__ import annotations

from math import cos, pi

from federation.settings import TrainingSettings


def learning_rate(settings: TrainingSettings, round_number: int, num_rounds: int) -> float:
    """Return the learning rate of a round (counted from 1) of a run of `num_rounds`; always above 0.

    Warm-up comes first and rises evenly to the full rate; the schedule counts the rounds after it.

    * `step`: multiplied by `lr_gamma` after every `lr_step_rounds` rounds (torch.optim.lr_scheduler.StepLR).
    * `cosine`: half a cosine from the full rate towards 0, which it would reach one round after the last
      (Loshchilov and Hutter 2017, SGDR: Stochastic Gradient Descent with Warm Restarts, equation 5, no restart).
    * `constant`: the full rate.
    """
    full, num_warm = settings.learning_rate, settings.warmup_rounds
    if round_number <= num_warm:
        return full * round_number / (num_warm + 1)
    num_before = round_number - 1 - num_warm
    match settings.schedule:
        case "step":
            return float(full * settings.lr_gamma ** (num_before // settings.lr_step_rounds))
        case "cosine":
            # A run that is continued beyond its planned end stays at the last round's rate.
            num_after_warm = max(1, num_rounds - num_warm)
            return full * 0.5 * (1 + cos(pi * min(num_before, num_after_warm - 1) / num_after_warm))
        case "constant":
            return full
