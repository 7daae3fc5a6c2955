"""Networks: sizes, seeds, parameters in and out, ONNX."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from federation import models
from federation.errors import LocalProtocolError, SettingsError
from federation.params import num_parameters, signature_of
from federation.settings import ModelSettings
from tests.learning.small_tasks import digest_of

SHAPES = [
    ("simple_cnn", (3, 28, 28)),
    ("simple_cnn", (1, 8, 8)),
    ("mnist_cnn", (1, 28, 28)),
    ("resnet18", (3, 28, 28)),
    ("resnet18", (1, 8, 8)),
]


def settings_of(name: str) -> ModelSettings:
    return ModelSettings.model_validate({"name": name})


@pytest.mark.parametrize(
    ("name", "image_shape", "num_classes", "num_scalars"),
    [
        # Layer by layer: 448, 4,640, 18,496; 577 x 128; 129 x 9.
        ("simple_cnn", (3, 28, 28), 9, 98_601),
        # Layer by layer: 160, 4,640, 18,496; 65 x 128; 129 x 10.
        ("simple_cnn", (1, 8, 8), 10, 32_906),
        # Layer by layer: 160, 4,640; 1,569 x 64; 65 x 10.
        ("mnist_cnn", (1, 28, 28), 10, 105_866),
        # The CIFAR ResNet18's 11,173,962 for ten classes, and 2 x 4,800 running statistics.
        ("resnet18", (3, 28, 28), 10, 11_173_962 + 9_600),
    ],
)
def test_number_of_parameters(name: str, image_shape: tuple[int, int, int], num_classes: int, num_scalars: int) -> None:
    assert num_parameters(models.signature(settings_of(name), image_shape, num_classes)) == num_scalars


@pytest.mark.parametrize(("name", "image_shape"), SHAPES)
def test_signature_is_that_of_the_parameters(name: str, image_shape: tuple[int, int, int]) -> None:
    """And logits come out, one per class, with a batch of one too."""
    module = models.build(settings_of(name), image_shape, 5, seed=1)
    params = models.parameters_of(module)
    assert models.signature(settings_of(name), image_shape, 5) == signature_of(params)
    assert {array.dtype for array in params.values()} == {np.dtype(np.float32)}
    assert all(array.flags.c_contiguous for array in params.values())
    module.eval()
    assert module(torch.zeros(1, *image_shape)).shape == (1, 5)


def test_every_name_of_the_settings_is_a_network() -> None:
    assert set(models.MODEL_NAMES) == set(ModelSettings.model_json_schema()["properties"]["name"]["enum"])


def test_initialisation_depends_on_the_seed_alone() -> None:
    """Not on torch's global generator, which it also leaves as it was."""
    torch.manual_seed(1)
    first = models.parameters_of(models.build(settings_of("simple_cnn"), (3, 28, 28), 9, seed=5))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = models.parameters_of(models.build(settings_of("simple_cnn"), (3, 28, 28), 9, seed=5))
    assert torch.equal(before, torch.get_rng_state())
    other = models.parameters_of(models.build(settings_of("simple_cnn"), (3, 28, 28), 9, seed=6))
    assert digest_of(first) == digest_of(second)
    assert digest_of(first) != digest_of(other)


@pytest.mark.parametrize(("name", "image_shape"), SHAPES)
def test_parameters_go_in_as_they_came_out(name: str, image_shape: tuple[int, int, int]) -> None:
    """Read-only arrays and a channels_last module included."""
    params = dict(models.parameters_of(models.build(settings_of(name), image_shape, 4, seed=1)))
    for array in params.values():
        array.flags.writeable = False
    module = models.build(settings_of(name), image_shape, 4, seed=2)
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    models.load_parameters(module, params)
    assert digest_of(models.parameters_of(module)) == digest_of(params)


def test_parameters_are_copies() -> None:
    module = models.build(settings_of("mnist_cnn"), (1, 28, 28), 4, seed=1)
    params = models.parameters_of(module)
    before = params["output.bias"].copy()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    np.testing.assert_array_equal(params["output.bias"], before)


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_foreign_parameters_change_nothing(fault: str) -> None:
    module = models.build(settings_of("mnist_cnn"), (1, 28, 28), 4, seed=1)
    before = digest_of(models.parameters_of(module))
    params = {name: array + 1 for name, array in models.parameters_of(module).items()}
    match fault:
        case "missing":
            del params["output.bias"]
        case "unknown":
            params["other.bias"] = params["output.bias"]
        case _:
            params["output.bias"] = params["output.bias"][:1]
    with pytest.raises(LocalProtocolError, match=r"output\.bias|other\.bias"):
        models.load_parameters(module, params)
    assert digest_of(models.parameters_of(module)) == before


def test_too_small_images_are_a_settings_error() -> None:
    with pytest.raises(SettingsError, match="at least 8x8 pixels, got 7x9"):
        models.build(settings_of("simple_cnn"), (3, 7, 9), 4, seed=0)


def test_pool_before_relu_is_the_thesis_network() -> None:
    """Same outputs and gradients as convolution, ReLU, pool."""
    module = models.build(settings_of("simple_cnn"), (3, 28, 28), 9, seed=3).eval()
    plain = torch.nn.Sequential(
        *(torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2)),
        *(torch.nn.Conv2d(16, 32, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2)),
        *(torch.nn.Conv2d(32, 64, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2)),
        *(torch.nn.Flatten(), torch.nn.Linear(576, 128), torch.nn.ReLU(), torch.nn.Linear(128, 9)),
    )
    with torch.no_grad():
        for mine, theirs in zip(plain.parameters(), module.parameters(), strict=True):
            mine.copy_(theirs)
    images = torch.randn(8, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(8)
    for network in (module, plain):
        torch.nn.functional.cross_entropy(network(images), targets).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(module(images), plain(images))
    for mine, theirs in zip(plain.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize(("name", "image_shape"), SHAPES)
def test_exports_to_onnx_with_any_batch_size(name: str, image_shape: tuple[int, int, int], tmp_path: Path) -> None:
    module = models.build(settings_of(name), image_shape, 4, seed=1).eval()
    file = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        # torch deprecates its TorchScript exporter, which is 50 times faster here and needs no other package.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            module,
            (torch.zeros(2, *image_shape),),
            file,
            dynamo=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
        )
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).normal(size=(5, *image_shape)).astype(np.float32)
    (logits,) = session.run(None, {"images": images})
    with torch.no_grad():
        np.testing.assert_allclose(logits, module(torch.from_numpy(images)).numpy(), atol=1e-4)
