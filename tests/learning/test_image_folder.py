"""A folder of class sub-folders: a hospital's own images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from federation.data import Dataset, load_dataset
from federation.errors import DataError
from federation.settings import DataSettings


def load(folder: Path, size: int = 28, class_names: tuple[str, ...] = ()) -> Dataset:
    settings = DataSettings.model_validate({"name": str(folder), "size": size, "class_names": list(class_names)})
    return load_dataset(settings, data_dir=None, cache_dir=folder / "no-cache", download=False)


def draw(path: Path, *, mode: str = "RGB", level: int = 90, size: tuple[int, int] = (28, 28)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colour: int | tuple[int, ...] = level if mode in {"L", "I;16"} else (level, 0, 255, 255)[: len(mode)]
    Image.new(mode, size, colour).save(path)


def draw_classes(folder: Path, *, num_images: int = 10) -> None:
    for level, name in ((50, "benign"), (200, "malignant")):
        for index in range(num_images):
            draw(folder / name / f"{index}.png", level=level)


def test_classes_are_the_sub_folders(tmp_path: Path) -> None:
    """In alphabetical order; 20 % of each for the test; the same split every time."""
    draw_classes(tmp_path)
    dataset = load(tmp_path)
    assert dataset.class_names == ("benign", "malignant")
    assert (dataset.image_shape, dataset.validation) == ((3, 28, 28), None)
    assert dataset.train.class_counts(2).tolist() == [8, 8]
    assert dataset.test.class_counts(2).tolist() == [2, 2]
    assert set(dataset.train.images[dataset.train.labels == 1, 0].ravel().tolist()) == {200}
    np.testing.assert_array_equal(load(tmp_path).test.images, dataset.test.images)


def test_a_site_without_images_of_a_class(tmp_path: Path) -> None:
    """With all classes named it has the labels that other sites have; without, an empty folder is taken for a mistake."""
    draw_classes(tmp_path)
    dataset = load(tmp_path, class_names=("normal", "benign", "malignant"))
    assert dataset.class_names == ("normal", "benign", "malignant")
    assert dataset.train.class_counts(3).tolist() == [0, 8, 8]
    (tmp_path / "normal").mkdir()
    assert load(tmp_path, class_names=("normal", "benign", "malignant")).class_names == dataset.class_names
    with pytest.raises(DataError, match="no images in normal: add some, remove the folder, or name all classes"):
        load(tmp_path)


def test_a_folder_outside_the_named_classes_is_refused(tmp_path: Path) -> None:
    draw_classes(tmp_path)
    with pytest.raises(DataError, match=r"malignant not among data.class_names \(benign, malign\)"):
        load(tmp_path, class_names=("benign", "malign"))


def test_train_and_test_folders_are_kept_apart(tmp_path: Path) -> None:
    for part, num_images in (("train", 5), ("test", 2), ("val", 1)):
        draw_classes(tmp_path / part, num_images=num_images)
    dataset = load(tmp_path)
    assert dataset.validation is not None
    assert [len(part) for part in (dataset.train, dataset.test, dataset.validation)] == [10, 4, 2]
    assert dataset.class_names == ("benign", "malignant")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "PNG", "jpeg"])
def test_formats_and_resizing(tmp_path: Path, suffix: str) -> None:
    for name, level in (("a", 40), ("b", 210)):
        for index in range(5):
            draw(tmp_path / name / f"{index}.{suffix}", level=level, size=(50, 37))
    dataset = load(tmp_path, size=64)
    assert dataset.image_shape == (3, 64, 64)
    reds = dataset.train.images[:, 0].astype(int)
    assert np.all(np.abs(reds - np.where(dataset.train.labels, 210, 40)[:, None, None]) < 12)


def test_grey_images_have_one_channel_unless_one_is_coloured(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for index in range(3):
            draw(tmp_path / name / f"{index}.png", mode="L")
    assert load(tmp_path).image_shape == (1, 28, 28)
    draw(tmp_path / "a" / "colour.png", mode="RGBA")
    assert load(tmp_path).image_shape == (3, 28, 28)


def test_orientation_of_the_camera_is_applied(tmp_path: Path) -> None:
    """Exif orientation 6: the file's left edge is the top of the picture."""
    left_bright = Image.new("L", (28, 28))
    left_bright.paste(255, (0, 0, 14, 28))
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(3):
            left_bright.save(tmp_path / name / f"{index}.jpg", exif=exif)
    image = load(tmp_path).train.images[0, 0].astype(int)
    assert image[2].mean() > 250
    assert image[-3].mean() < 5


def test_unreadable_images_are_listed(tmp_path: Path) -> None:
    """All of them in one error, up to ten by name."""
    draw_classes(tmp_path)
    (tmp_path / "benign" / "notes.png").write_text("no image")
    cut = (tmp_path / "malignant" / "0.png").read_bytes()
    for index in range(12):
        (tmp_path / "malignant" / f"empty{index:02}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"13 image\(s\) can't be used") as caught:
        load(tmp_path)
    assert "notes.png" in str(caught.value)
    assert "and 3 more" in str(caught.value)
    for index in range(12):
        (tmp_path / "malignant" / f"empty{index:02}.png").unlink()
    (tmp_path / "benign" / "notes.png").unlink()
    (tmp_path / "malignant" / "cut.png").write_bytes(cut[: len(cut) - 20])
    with pytest.raises(DataError, match=r"cut\.png"):
        load(tmp_path)


def test_sixteen_bit_images_are_refused(tmp_path: Path) -> None:
    """Their window is a medical decision, not ours: eight bits by clipping would show white."""
    draw_classes(tmp_path)
    draw(tmp_path / "benign" / "deep.png", mode="I;16", level=4000)
    with pytest.raises(DataError, match=r"deep\.png: I;16 pixels; convert it to 8 bits"):
        load(tmp_path)


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    draw_classes(tmp_path)
    (tmp_path / "readme.txt").write_text("about")
    (tmp_path / "benign" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / ".cache").mkdir()
    assert len(load(tmp_path).train) == 16


def test_folders_that_hold_no_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected one sub-folder of images per class, at least two; found none"):
        load(tmp_path)
    draw(tmp_path / "only" / "0.png")
    with pytest.raises(DataError, match=r"at least two; found \['only'\]"):
        load(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images in empty: add some, remove the folder"):
        load(tmp_path)
    (tmp_path / "only" / "0.png").unlink()
    with pytest.raises(DataError, match=r"no \.bmp, .* images in its class sub-folders"):
        load(tmp_path)


def test_one_image_a_class_leaves_no_test(tmp_path: Path) -> None:
    draw_classes(tmp_path, num_images=1)
    with pytest.raises(DataError, match="too few images to keep any for the test"):
        load(tmp_path)
