"""Local training: one node's part of one round.

One loop over the pieces of `federation.learning`: augmented batches, a loss, gradients pulled towards the global
model (FedProx), clipped by total norm and offset (SCAFFOLD), an optimiser's step. The defaults are the thesis's. The result depends on
the task alone, bit for bit on one thread: every random number comes from (seed, round, node).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from torch import nn

from federation import models
from federation.errors import DataError, SettingsError, TrainingCancelled, TrainingDivergedError
from federation.images import ImageSet
from federation.learning.augmentation import Augmentation, build_augmentation
from federation.learning.losses import build_loss
from federation.learning.optimisers import FlatWeights, build_optimiser, clip, total_step
from federation.models.pixels import normalise
from federation.params import Params
from federation.settings import ModelSettings, TrainingSettings

BLOCK_BYTES = 8 << 20
"""Float images normalised at once: 1.15x faster than batch by batch (SimpleCNN, batch 16), and little enough for a Pi."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingTask:
    """All that one node's training in one round depends on."""

    global_params: Params
    images: ImageSet
    num_classes: int
    model: ModelSettings
    training: TrainingSettings
    learning_rate: float
    proximal_mu: float
    seed: int
    round_number: int
    node: str
    gradient_offset: Params | None = None
    """Added to each step's gradient, after clipping; tensors of the network by name."""
    only: frozenset[str] | None = None
    """Names of the weights that may change; None: all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOutcome:
    """What one node's training gave."""

    params: Params
    num_examples: int
    num_steps: int
    total_step: float
    """How far a constant gradient of 1 would have moved a weight; NaN where the optimiser has no such measure."""
    loss: float
    """Mean of the recipe's loss over the last epoch in nats, without the proximal term."""
    seconds: float
    samples_per_second: float


def choose_device(name: str) -> torch.device:
    """Return the device of a setting: `auto` takes CUDA, then MPS, then the CPU.

    Raises:
        SettingsError: the device asked for is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, present in available.items() if present))
    if not available.get(name, False):
        raise SettingsError(
            f"training.device is {name!r}, which PyTorch does not find here: set it to 'auto' or 'cpu', or install a build for it"
        )
    return torch.device(name)


def never() -> bool:
    """Return False: nothing stops the training."""
    return False


def train(task: TrainingTask, *, should_stop: Callable[[], bool] = never, module: nn.Module | None = None) -> TrainingOutcome:
    """Train the global model on one node's images for the round's local epochs.

    One training at a time per process: it borrows torch's global generator, and puts it back.

    Args:
        task: what to train on and how.
        should_stop: asked before every batch.
        module: a network to reuse instead of building one; it ends holding the trained weights.

    Raises:
        TrainingCancelled: `should_stop` said so.
        TrainingDivergedError: the loss or a weight became NaN or infinite.
        DataError: no images, or a label outside the classes.
        SettingsError: the device is not there, or the images are too small for the network.
    """
    _check_images(task)
    settings, device = task.training, choose_device(task.training.device)
    torch.set_num_threads(settings.num_threads)
    start = time.perf_counter()
    if module is None:
        module = models.build(task.model, task.images.image_shape, task.num_classes, seed=0)
    module.to(device)
    models.load_parameters(module, task.global_params)
    accelerators = [device] if device.type == "cuda" else []
    deterministic = torch.backends.cudnn.flags(deterministic=True, benchmark=False)
    with models.GENERATOR_LOCK, torch.random.fork_rng(devices=accelerators), deterministic:
        dropout_seed = derive_seed(task, "dropout") % 2**63
        if device.type == "cpu":
            torch.default_generator.manual_seed(dropout_seed)
        else:
            torch.manual_seed(dropout_seed)
        loss, num_steps = _run_epochs(task, module, device, should_stop)
    params = models.parameters_of(module)
    if not np.isfinite(loss) or not all(np.isfinite(array).all() for array in params.values()):
        raise TrainingDivergedError(
            f"training in round {task.round_number} left the finite numbers: lower training.learning_rate ({task.learning_rate:g} now) "
            "or set training.max_grad_norm to 1.0"
        )
    seconds = time.perf_counter() - start
    num_samples = len(task.images) * settings.local_epochs
    return TrainingOutcome(
        params=params,
        num_examples=len(task.images),
        num_steps=num_steps,
        total_step=total_step(settings, task.learning_rate, num_steps),
        loss=loss,
        seconds=seconds,
        samples_per_second=num_samples / max(seconds, 1e-9),
    )


def derive_seed(task: TrainingTask, purpose: str) -> int:
    """Return 256 bits that depend on run seed, round, node and purpose alone."""
    return int.from_bytes(sha256(f"fedmq/{task.seed}/{task.round_number}/{task.node}/{purpose}".encode()).digest(), "big")


def _check_images(task: TrainingTask) -> None:
    labels = task.images.labels
    if len(labels) == 0:
        raise DataError("no training images: give this node some, or lower partition.validation_share")
    if labels.min() < 0 or labels.max() >= task.num_classes:
        raise DataError(f"training labels run from {labels.min()} to {labels.max()}, the model has classes 0 to {task.num_classes - 1}")


def _run_epochs(task: TrainingTask, module: nn.Module, device: torch.device, should_stop: Callable[[], bool]) -> tuple[float, int]:
    """Train in place; return the mean loss of the last epoch, and how many steps all of them took."""
    settings, mu = task.training, task.proximal_mu
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(task.only is None or name in task.only)
    flat = FlatWeights(module)
    optimiser = build_optimiser(settings, flat, task.learning_rate)
    anchor = flat.weights.clone() if mu > 0 else None
    offset = None if task.gradient_offset is None else flat.vector_of(task.gradient_offset)
    loss_of = build_loss(settings, task.images.labels, task.num_classes, device)
    augmentation = build_augmentation(settings, np.random.default_rng(derive_seed(task, "augmentation")), task.images.image_shape)
    # N x H x W x C once: every batch gathered from it is channels_last already (1.8x faster than N x C x H x W on one x86 core).
    pixels = torch.from_numpy(np.ascontiguousarray(task.images.images.transpose(0, 2, 3, 1))).to(device)
    labels = torch.from_numpy(task.images.labels).to(device)
    order = np.random.default_rng(derive_seed(task, "shuffle"))
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]  # noqa: SLF001 - torch names no public parent
    module.train()
    losses: list[torch.Tensor] = []
    sizes: list[int] = []
    num_steps = 0
    for _ in range(settings.local_epochs):
        losses, sizes = [], []
        permutation = torch.from_numpy(order.permutation(len(labels))).to(device)
        for images, targets in _batches(pixels, labels, permutation, settings.batch_size, augmentation):
            if should_stop():
                raise TrainingCancelled(f"training in round {task.round_number} was told to stop")
            for norm in norms:
                # One example has no spread to normalise by (torch refuses 1 x C x 1 x 1): it uses the running statistics.
                norm.train(len(targets) > 1)
            flat.gradient.zero_()
            loss = loss_of(module(images), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                if anchor is not None:
                    # The gradient of mu/2 * ||w - w_t||^2 (Li et al. 2020, Federated Optimization in Heterogeneous Networks, eq. 2).
                    flat.gradient.add_(flat.weights, alpha=mu).sub_(anchor, alpha=mu)
                if settings.max_grad_norm > 0:
                    clip(flat.gradient, settings.max_grad_norm)
                if offset is not None:
                    # Not clipped: it is a mean of gradients that were, and a clipped sum would forget which part was whose.
                    flat.gradient.add_(offset)
                optimiser.step()
            losses.append(loss.detach())
            sizes.append(len(targets))
        num_steps += len(sizes)
    return float(np.average(torch.stack(losses).cpu().numpy().astype(np.float64), weights=sizes)), num_steps


def _batches(
    pixels: torch.Tensor, labels: torch.Tensor, permutation: torch.Tensor, batch_size: int, augmentation: Augmentation | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield normalised float32 N x C x H x W batches and their labels, in the permutation's order, each block of them augmented at once."""
    batch_bytes = 4 * batch_size * pixels[0].numel()
    block_size = batch_size * max(1, BLOCK_BYTES // batch_bytes)
    for block_start in range(0, len(permutation), block_size):
        block = permutation[block_start : block_start + block_size]
        chosen, targets = pixels.index_select(0, block), labels.index_select(0, block)
        images = normalise(chosen if augmentation is None else augmentation(chosen))
        for start in range(0, len(block), batch_size):
            yield images[start : start + batch_size], targets[start : start + batch_size]
