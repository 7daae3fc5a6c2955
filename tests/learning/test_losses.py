"""Losses against formulas worked by hand and torch's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from federation.errors import SettingsError
from federation.learning.losses import build_loss, class_weights, log_priors
from federation.settings import TrainingSettings, parse_settings

LABELS = np.array([0, 0, 0, 0, 2, 2], np.int64)
"""Of a node that lacks class 1."""


def loss_of(logits: torch.Tensor, targets: torch.Tensor, **settings: Any) -> torch.Tensor:
    return build_loss(TrainingSettings.model_validate(settings), LABELS, 3, torch.device("cpu"))(logits, targets)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([[1.0, 0.5, -1.0], [0.2, 3.0, 0.1], [-2.0, 0.0, 1.5]], requires_grad=True), torch.tensor([0, 2, 2])


def test_class_weights_by_hand() -> None:
    """Weights n / (C * c_i): 6 / (3 * 4) and 6 / (3 * 2); 0 for the class that is absent. A batch's mean is weighted by them."""
    assert class_weights(LABELS, 3).tolist() == [0.5, 0.0, 1.0]
    logits, targets = batch()
    single = -functional.log_softmax(logits, dim=1)[range(3), targets]
    expected = (0.5 * single[0] + single[1] + single[2]) / 2.5
    assert loss_of(logits, targets).item() == pytest.approx(expected.item())


def test_unweighted_cross_entropy_and_label_smoothing_by_hand() -> None:
    """Smoothing s: (1 - s) of the label's and s of the mean over all classes (Szegedy et al. 2016)."""
    logits, targets = batch()
    logs = -functional.log_softmax(logits, dim=1)
    expected = (0.9 * logs[range(3), targets] + 0.1 * logs.mean(dim=1)).mean()
    got = loss_of(logits, targets, class_weighted_loss=False, label_smoothing=0.1)
    assert got.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_balanced_softmax_by_hand(tau: float) -> None:
    """-log( pi_y^tau e^z_y / sum_c pi_c^tau e^z_c ) with shares 4/6, 0, 2/6: the absent class drops out of the sum."""
    logits, targets = batch()
    exponentials = logits.detach().double().exp() * torch.tensor([4 / 6, 0.0, 2 / 6], dtype=torch.float64) ** tau
    expected = -torch.log(exponentials[range(3), targets] / exponentials.sum(dim=1)).mean()
    loss = loss_of(logits, targets, loss="balanced_softmax", logit_adjustment=tau)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.equal(logits.grad[:, 1], torch.zeros(3)), "the absent class's logit is left alone"
    assert torch.isfinite(logits.grad).all()


def test_balanced_softmax_of_even_classes_is_cross_entropy() -> None:
    labels = np.repeat(np.arange(3), 5).astype(np.int64)
    logits, targets = batch()
    settings = TrainingSettings.model_validate({"loss": "balanced_softmax"})
    loss = build_loss(settings, labels, 3, torch.device("cpu"))(logits, targets)
    assert loss.item() == pytest.approx(functional.cross_entropy(logits, targets).item())


def test_smoothed_balanced_softmax_spreads_over_the_classes_at_hand() -> None:
    logits, targets = batch()
    shifted = logits.detach() + torch.tensor([np.log(4 / 6), -np.inf, np.log(2 / 6)], dtype=torch.float32)
    logs = -functional.log_softmax(shifted, dim=1)
    expected = 0.8 * logs[range(3), targets].mean() + 0.2 * logs[:, [0, 2]].mean()
    assert loss_of(logits, targets, loss="balanced_softmax", label_smoothing=0.2).item() == pytest.approx(expected.item())


def test_focal_loss_by_hand() -> None:
    """-(1 - p)^2 log p of each example's own class, weighted by class as cross-entropy is; gamma 0 is cross-entropy."""
    logits, targets = batch()
    shares = functional.softmax(logits.detach().double(), dim=1)[range(3), targets]
    single = -((1 - shares) ** 2) * shares.log()
    unweighted = loss_of(logits, targets, loss="focal", class_weighted_loss=False)
    assert unweighted.item() == pytest.approx(single.mean().item())
    weighted = loss_of(logits, targets, loss="focal")
    assert weighted.item() == pytest.approx(((0.5 * single[0] + single[1] + single[2]) / 2.5).item())
    assert loss_of(logits, targets, loss="focal", focal_gamma=0.0).item() == pytest.approx(loss_of(logits, targets).item())


def test_priors_are_the_labels_shares() -> None:
    np.testing.assert_allclose(log_priors(LABELS, 3).numpy(), [np.log(4 / 6), -np.inf, np.log(2 / 6)], rtol=1e-6)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"loss": "balanced_softmax", "class_weighted_loss": True}, "balances the classes by itself"),
        ({"loss": "focal", "label_smoothing": 0.1}, "takes no label_smoothing"),
    ],
)
def test_options_that_would_be_ignored_are_refused(training: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_settings({"training": training})


def test_settings_written_out_whole_are_read_again() -> None:
    """A run's folder holds every value: what was set by another setting must not count as set against it."""
    settings = parse_settings({"training": {"loss": "balanced_softmax", "augmentation": {"cutout_share": 0.3}}})
    assert not settings.training.class_weighted_loss
    assert parse_settings(settings.model_dump(mode="json")) == settings
