"""What local training minimises: a loss of logits and labels, balanced by this node's own class counts where asked.

All are means over a batch in nats. A class that the node lacks never is a target; it has no prior and no weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch.nn import functional

from federation.images import Labels
from federation.settings import TrainingSettings

Loss: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Logits N x C (float32) and targets N (int64) in; a scalar out, to be differentiated."""


def build_loss(settings: TrainingSettings, labels: Labels, num_classes: int, device: torch.device) -> Loss:
    """Return the loss that the settings name.

    Args:
        settings: which loss, and its numbers.
        labels: of all the node's training images: where weights and priors come from.
        num_classes: width of the logits.
        device: where the logits are.
    """
    weights = class_weights(labels, num_classes).to(device) if settings.class_weighted_loss else None
    smoothing = settings.label_smoothing
    match settings.loss:
        case "cross_entropy":
            return lambda logits, targets: functional.cross_entropy(logits, targets, weight=weights, label_smoothing=smoothing)
        case "focal":
            return lambda logits, targets: focal_loss(logits, targets, gamma=settings.focal_gamma, weights=weights)
        case "balanced_softmax":
            adjustment = settings.logit_adjustment * log_priors(labels, num_classes).to(device)
            return lambda logits, targets: adjusted_cross_entropy(logits, targets, adjustment=adjustment, label_smoothing=smoothing)


def class_weights(labels: Labels, num_classes: int) -> torch.Tensor:
    """Return the loss weight of each class, n / (C * c_i), float32; 0 for a class without examples.

    Every class among `labels` weighs more than 0, so no batch of them can weigh 0 in all.
    """
    counts = np.bincount(labels, minlength=num_classes)
    weights = np.zeros(num_classes)
    np.divide(len(labels), num_classes * counts, out=weights, where=counts > 0)
    return torch.from_numpy(weights.astype(np.float32))


def log_priors(labels: Labels, num_classes: int) -> torch.Tensor:
    """Return the logarithm of each class's share of `labels`, float32; minus infinity for a class without examples."""
    counts = np.bincount(labels, minlength=num_classes)
    priors = np.full(num_classes, -np.inf)
    np.log(counts / max(1, len(labels)), out=priors, where=counts > 0)
    return torch.from_numpy(priors.astype(np.float32))


def adjusted_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, *, adjustment: torch.Tensor, label_smoothing: float
) -> torch.Tensor:
    """Return the mean cross-entropy of logits + adjustment: what the node's class mix explains, the network need not learn.

        -log( exp(z_y + tau log pi_y) / sum_c exp(z_c + tau log pi_c) )

    With tau = 1 this is Ren et al. 2020, Balanced Meta-Softmax for Long-Tailed Visual Recognition, equation 3; with any
    tau Menon et al. 2021, Long-Tail Learning via Logit Adjustment, equation 10. A class that the node lacks (prior 0) is
    left out of the sum: training here neither raises nor lowers its logit. Smoothing spreads over the classes that are left.
    """
    log_shares = functional.log_softmax(logits + adjustment, dim=1)
    loss = functional.nll_loss(log_shares, targets)
    if label_smoothing == 0:
        return loss
    spread = -log_shares[:, torch.isfinite(adjustment)].mean()
    return (1 - label_smoothing) * loss + label_smoothing * spread


def focal_loss(logits: torch.Tensor, targets: torch.Tensor, *, gamma: float, weights: torch.Tensor | None) -> torch.Tensor:
    """Return the mean of -(1 - p_y)^gamma log p_y, weighted by class as cross-entropy is; gamma 0 is cross-entropy.

    Lin et al. 2017, Focal Loss for Dense Object Detection, equation 5.
    """
    log_shares = functional.log_softmax(logits, dim=1).gather(1, targets[:, None]).squeeze(1)
    losses = -((1 - log_shares.exp()) ** gamma) * log_shares
    if weights is None:
        return losses.mean()
    own = weights[targets]
    return (own * losses).sum() / own.sum()
