"""Augmentation: what each operation does, by numpy and by hand; the same images for the same generator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from federation.errors import SettingsError
from federation.learning.augmentation import PRESETS, Augmentation, build_augmentation
from federation.settings import AugmentationSettings, TrainingSettings, parse_settings
from federation.training import train
from tests.learning.small_tasks import digest_of, learnable_images, training_task


def noise(num_images: int = 64, height: int = 8, width: int = 8, num_channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (num_images, height, width, num_channels), dtype=np.uint8)


def augmented(pixels: NDArray[np.uint8], *, seed: int = 0, **operations: Any) -> NDArray[np.float32]:
    settings = AugmentationSettings.model_validate(operations)
    shape = (pixels.shape[3], pixels.shape[1], pixels.shape[2])
    result: NDArray[np.float32] = Augmentation(settings, np.random.default_rng(seed), shape)(torch.from_numpy(pixels)).numpy()
    assert result.shape == pixels.shape
    assert result.dtype == np.float32
    return result


def variant_of(image: NDArray[np.float32], original: NDArray[np.uint8]) -> tuple[bool, int]:
    """Return which mirror and turn of the original the image is."""
    for is_mirrored in (False, True):
        for turns in range(4):
            candidate = np.rot90(original[:, ::-1] if is_mirrored else original, turns)
            if candidate.shape == image.shape and np.array_equal(candidate, image):
                return is_mirrored, turns
    raise AssertionError("the pixels are not moved, they are changed")


@pytest.mark.parametrize(
    ("operations", "variants"),
    [
        ({"horizontal_flip": True}, {(False, 0), (True, 0)}),
        ({"vertical_flip": True}, {(False, 0), (True, 2)}),
        ({"horizontal_flip": True, "vertical_flip": True}, {(False, 0), (True, 0), (True, 2), (False, 2)}),
        ({"quarter_turns": True}, {(False, turns) for turns in range(4)}),
        ({"horizontal_flip": True, "quarter_turns": True}, {(mirror, turns) for mirror in (False, True) for turns in range(4)}),
    ],
)
def test_flips_and_quarter_turns_move_pixels_and_keep_their_values(operations: dict[str, bool], variants: set[tuple[bool, int]]) -> None:
    pixels = noise(200)
    seen = [variant_of(image, original) for image, original in zip(augmented(pixels, **operations), pixels, strict=True)]
    assert set(seen) == variants
    for variant in variants:
        assert seen.count(variant) == pytest.approx(200 / len(variants), rel=0.5), "all are equally likely"


def test_flips_of_pictures_that_are_not_square() -> None:
    pixels = noise(16, height=6, width=9)
    images = augmented(pixels, horizontal_flip=True, vertical_flip=True)
    assert {variant_of(image, original) for image, original in zip(images, pixels, strict=True)} <= {
        (False, 0),
        (True, 0),
        (True, 2),
        (False, 2),
    }
    with pytest.raises(SettingsError, match="turns images by 90 degrees, which 6x9 pixels don't allow"):
        augmented(pixels, quarter_turns=True)


def test_a_shift_moves_a_spot_no_further_than_its_share() -> None:
    """A blurred spot in the middle of 41 x 41 pixels: its centre of mass moves by up to 10 % of 41 pixels."""
    rows, columns = np.mgrid[0:41, 0:41]
    spot = (255 * np.exp(-((rows - 20) ** 2 + (columns - 20) ** 2) / 20)).astype(np.uint8)[None, :, :, None]
    images = augmented(np.repeat(spot, 100, axis=0), shift_share=0.1, padding="black")[..., 0].astype(np.float64)
    mass = images.sum(axis=(1, 2))
    offsets = np.stack([(images * rows).sum(axis=(1, 2)) / mass - 20, (images * columns).sum(axis=(1, 2)) / mass - 20])
    assert np.abs(offsets).max() == pytest.approx(4.1, abs=0.35)
    assert abs(offsets.mean()) < 0.5


@pytest.mark.parametrize(("height", "width"), [(41, 41), (41, 61)])
def test_a_rotation_turns_a_spot_about_the_middle(height: int, width: int) -> None:
    """The spot keeps its distance from the middle, on pictures that are not square, too, and turns no further than it may."""
    rows, columns = np.mgrid[0:height, 0:width]
    rows, columns = rows - (height - 1) / 2, columns - (width - 1) / 2
    spot = (255 * np.exp(-(rows**2 + (columns - 12) ** 2) / 8)).astype(np.uint8)[None, :, :, None]
    images = augmented(np.repeat(spot, 100, axis=0), rotation_degrees=30.0, padding="black")[..., 0].astype(np.float64)
    mass = images.sum(axis=(1, 2))
    down, right = (images * rows).sum(axis=(1, 2)) / mass, (images * columns).sum(axis=(1, 2)) / mass
    np.testing.assert_allclose(np.hypot(down, right), 12, atol=0.1)
    angles = np.degrees(np.arctan2(down, right))
    assert 25 < np.abs(angles).max() <= 30.5
    assert (angles > 0).any()
    assert (angles < 0).any()


def test_zoom_changes_the_size_of_a_spot() -> None:
    rows, columns = np.mgrid[-20:21, -20:21]
    spot = (255 * np.exp(-(rows**2 + columns**2) / 40)).astype(np.uint8)[None, :, :, None]
    masses = augmented(np.repeat(spot, 100, axis=0), zoom_share=0.2, padding="black").sum(axis=(1, 2, 3)) / spot.sum()
    assert masses.min() == pytest.approx(0.8**2, abs=0.06)
    assert masses.max() == pytest.approx(1.2**2, abs=0.06)


def test_brightness_contrast_and_colour_by_hand() -> None:
    """Of a picture of two values: brightness scales both, contrast keeps their mean, colour scales channels apart."""
    pixels = np.zeros((50, 4, 4, 3), np.uint8)
    pixels[:, :2], pixels[:, 2:] = 80, 120
    brighter = augmented(pixels, brightness=0.2)
    factors = brighter[:, 0, 0, 0] / 80
    assert factors.min() >= 0.8
    assert factors.max() <= 1.2
    np.testing.assert_allclose(brighter[:, 3, 3, 2], 120 * factors, rtol=1e-5)
    sharper = augmented(pixels, contrast=0.5)
    np.testing.assert_allclose(sharper.mean(axis=(1, 2, 3)), 100, rtol=1e-5)
    spread = sharper[:, 3, 0, 0] - sharper[:, 0, 0, 0]
    assert 20 <= spread.min() < spread.max() <= 60
    tinted = augmented(pixels, colour=0.2)[:, 0, 0] / 80
    assert np.ptp(tinted, axis=1).max() > 0.05
    assert np.abs(tinted - 1).max() <= 0.2 + 1e-6


def test_colours_stay_within_a_picture() -> None:
    pixels = noise()
    images = augmented(pixels, brightness=1.0, contrast=1.0, colour=1.0)
    assert images.min() >= 0
    assert images.max() <= 255


def test_cutout_covers_a_square_and_nothing_else() -> None:
    pixels = np.full((100, 20, 20, 3), 200, np.uint8)
    covered = (augmented(pixels, cutout_share=0.5) == 127.5).all(axis=3)
    assert (covered.any(axis=2).sum(axis=1) * covered.any(axis=1).sum(axis=1) == covered.sum(axis=(1, 2))).all(), "a rectangle"
    assert covered.sum(axis=(1, 2)).max() == 10 * 10
    assert covered.sum(axis=(1, 2)).min() >= 5 * 5, "its middle lies in the picture"


@pytest.mark.parametrize("padding", ["reflection", "border", "black"])
def test_what_is_seen_beyond_the_edge(padding: str) -> None:
    """A bright picture shifted by half: black comes in where it is asked for, and nothing dark otherwise."""
    shifted = augmented(np.full((20, 10, 10, 1), 100, np.uint8), shift_share=0.5, padding=padding)
    assert (shifted.min() == 0) == (padding == "black")
    assert shifted.max() == pytest.approx(100)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_repeats_bit_for_bit_and_leaves_its_input_alone(name: str) -> None:
    settings = TrainingSettings.model_validate({"augmentation": name})
    pixels = noise(32, 28, 28)
    before = pixels.copy()
    first, second = (build_augmentation(settings, np.random.default_rng(9), (3, 28, 28)) for _ in range(2))
    if name == "none":
        assert first is None
        return
    assert first is not None
    assert second is not None
    once = first(torch.from_numpy(pixels))
    assert torch.equal(once, second(torch.from_numpy(pixels)))
    assert not torch.equal(once, first(torch.from_numpy(pixels))), "the next epoch sees other images"
    np.testing.assert_array_equal(pixels, before)


def test_operations_that_do_nothing_are_none() -> None:
    settings = TrainingSettings.model_validate({"augmentation": {"padding": "black"}})
    assert build_augmentation(settings, np.random.default_rng(0), (3, 8, 8)) is None


def test_a_table_in_a_run_file_names_operations() -> None:
    settings = parse_settings({"training": {"augmentation": {"horizontal_flip": True, "cutout_share": 0.25}}})
    assert settings.training.augmentation == AugmentationSettings(horizontal_flip=True, cutout_share=0.25)


@pytest.mark.parametrize(
    "training",
    [
        {"augmentation": "histology"},
        {"augmentation": "digits", "loss": "balanced_softmax"},
        {"optimiser": "adamw", "loss": "focal"},
        {"label_smoothing": 0.1},
    ],
    ids=str,
)
def test_a_recipe_repeats_bit_for_bit_and_differs_from_the_default(training: dict[str, Any]) -> None:
    """Whatever torch's global generator holds; another node or round sees other images."""
    images = learnable_images(48)
    first = digest_of(train(training_task(images, training=training)).params)
    torch.manual_seed(99)
    assert digest_of(train(training_task(images, training=training)).params) == first
    assert digest_of(train(training_task(images)).params) != first
    assert digest_of(train(training_task(images, training=training, node="node-1")).params) != first
