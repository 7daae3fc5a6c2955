"""Networks by name, and their parameters in and out as plain arrays.

A network is built for the data's image shape and number of classes. Its parameters are every
floating-point tensor of its state dict: weights, and BatchNorm's running mean and variance. Integer
buffers (BatchNorm's batch counter) stay where they are: they steer nothing we use.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn

from federation.errors import LocalProtocolError, SettingsError
from federation.models.mnist_cnn import MnistCNN
from federation.models.resnet18 import ResNet18
from federation.models.simple_cnn import SimpleCNN
from federation.params import Params, Signature, TensorSpec
from federation.settings import ModelSettings

NETWORKS: Mapping[str, Callable[[tuple[int, int, int], int], nn.Module]] = {
    "simple_cnn": SimpleCNN,
    "mnist_cnn": MnistCNN,
    "resnet18": ResNet18,
}

GENERATOR_LOCK = threading.RLock()
"""Held while torch's generator, which the whole process shares, is borrowed: two threads must not draw from each other's seed."""

MODEL_NAMES: tuple[str, ...] = tuple(NETWORKS)


def build(settings: ModelSettings, image_shape: tuple[int, int, int], num_classes: int, seed: int) -> nn.Module:
    """Return a freshly initialised network on the CPU, the same for the same seed in any process.

    torch's global generator is left as it was.

    Args:
        settings: names the network.
        image_shape: channels, height, width.
        num_classes: width of the last layer; outputs are logits, N x num_classes.
        seed: of the initialisation, in [0, 2^64).

    Raises:
        SettingsError: the images are too small for the network, or there are no classes.
    """
    if num_classes < 1:
        raise SettingsError(f"model {settings.name!r} needs at least one class, the data has {num_classes}")
    with GENERATOR_LOCK, torch.random.fork_rng(devices=[]):
        # Only the CPU's generator: torch.manual_seed would also reseed the accelerators, which fork_rng(devices=[]) does not restore.
        torch.default_generator.manual_seed(seed)
        return NETWORKS[settings.name](image_shape, num_classes)


def signature(settings: ModelSettings, image_shape: tuple[int, int, int], num_classes: int) -> Signature:
    """Return names and shapes of a network's parameters without allocating them.

    Raises:
        SettingsError: as `build`.
    """
    with torch.device("meta"):
        module = NETWORKS[settings.name](image_shape, num_classes)
    tensors = _floating_tensors(module)
    return tuple(TensorSpec(name=name, shape=tuple(tensors[name].shape)) for name in sorted(tensors))


def parameters_of(module: nn.Module) -> Params:
    """Return copies of the network's parameters as C-contiguous float32 arrays, in name order."""
    tensors = _floating_tensors(module)
    # np.array copies in C order, whatever the tensor's memory format (channels_last) is.
    return {name: np.array(tensors[name].detach().cpu().numpy(), dtype=np.float32, order="C") for name in sorted(tensors)}


def load_parameters(module: nn.Module, params: Params) -> None:
    """Write `params` into the network in place, one tensor at a time; memory format and device stay.

    Args:
        module: the network; unchanged when an error is raised.
        params: exactly the tensors of `signature`, and may read each from disk when asked.

    Raises:
        LocalProtocolError: names or shapes are not the network's (the wire has checked them before).
    """
    tensors = _floating_tensors(module)
    missing, unknown = sorted(tensors.keys() - params.keys()), sorted(params.keys() - tensors.keys())
    if missing or unknown:
        raise LocalProtocolError(f"parameters of another network: missing {missing[:3]}, unknown {unknown[:3]}")
    for name, tensor in tensors.items():
        if tuple(params[name].shape) != tuple(tensor.shape):
            raise LocalProtocolError(f"tensor {name!r} has shape {tuple(params[name].shape)}, the network {tuple(tensor.shape)}")
    with torch.no_grad():
        for name in sorted(tensors):
            # A copy, because torch warns of arrays that may not be written to (those read from bytes).
            tensors[name].copy_(torch.from_numpy(np.array(params[name], dtype=np.float32, order="C")))


def _floating_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
