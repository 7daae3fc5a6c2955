"""Data sets by name and file: what is accepted, and what each refusal says."""

from __future__ import annotations

import gzip
import importlib
import io
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from federation.data import Dataset, list_datasets, load_dataset, normalise
from federation.errors import DataError
from federation.settings import DataSettings

Arrays = dict[str, Any]


def load(name: str | Path, *, size: int = 28, data_dir: Path | None = None, cache_dir: Path | None = None) -> Dataset:
    """Load without the network."""
    settings = DataSettings.model_validate({"name": str(name), "size": size})
    return load_dataset(settings, data_dir=data_dir, cache_dir=cache_dir or Path("no-cache"), download=False)


def medmnist_arrays(num_train: int = 12, *, num_classes: int = 3, shape: tuple[int, ...] = (28, 28, 3)) -> Arrays:
    generator = np.random.default_rng(0)
    arrays: Arrays = {}
    for part, num in (("train", num_train), ("val", 4), ("test", 5)):
        arrays[f"{part}_images"] = generator.integers(0, 256, (num, *shape), dtype=np.uint8)
        arrays[f"{part}_labels"] = (np.arange(num, dtype=np.uint8) % num_classes)[:, None]
    return arrays


def save(path: Path, arrays: Arrays) -> Path:
    np.savez(path, **arrays)
    return path


def test_medmnist_keys(tmp_path: Path) -> None:
    """Colour images become N x C x H x W, labels N; classes are numbered where no one named them."""
    arrays = medmnist_arrays()
    dataset = load(save(tmp_path / "hospital.npz", arrays))
    assert (dataset.name, dataset.image_shape, dataset.num_classes) == ("hospital", (3, 28, 28), 3)
    assert dataset.class_names == ("class 0", "class 1", "class 2")
    assert dataset.validation is not None
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [12, 4, 5]
    np.testing.assert_array_equal(dataset.train.images[5, 2], arrays["train_images"][5, :, :, 2])
    np.testing.assert_array_equal(dataset.train.labels, arrays["train_labels"].ravel())
    assert dataset.train.labels.dtype == np.int64
    assert dataset.train.class_counts(4).tolist() == [4, 4, 4, 0]


def test_keras_keys_and_grey_images(tmp_path: Path) -> None:
    arrays = {
        "x_train": np.zeros((4, 9, 11), np.uint8),
        "y_train": np.array([0, 1, 0, 1], np.int32),
        "x_test": np.zeros((2, 9, 11), np.uint8),
        "y_test": np.array([1, 0], np.int32),
    }
    dataset = load(save(tmp_path / "grey.npz", arrays))
    assert dataset.image_shape == (1, 9, 11)
    assert dataset.validation is None


def test_taking_examples_copies_them_in_order(tmp_path: Path) -> None:
    train = load(save(tmp_path / "x.npz", medmnist_arrays())).train
    taken = train.take(np.array([7, 2]))
    np.testing.assert_array_equal(taken.images, train.images[[7, 2]])
    taken.images[:] = 0
    assert train.images[7].any()


def drop(key: str) -> Callable[[Arrays], Any]:
    return lambda arrays: arrays.pop(key)


def put(key: str, value: Any) -> Callable[[Arrays], Any]:
    return lambda arrays: arrays.update({key: value})


LABELS = np.arange(12) % 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("test_labels"), "misses test_labels"),
        (drop("val_images"), "misses val_images"),
        (drop("train_images"), r"neither train_images \(MedMNIST\) nor x_train \(Keras\)"),
        (put("train_images", np.zeros((12, 28, 28, 3), np.float32)), "train_images holds float32: save pixels as uint8"),
        (put("train_images", np.zeros((12, 28, 28, 28), np.uint8)), r"train_images has shape \(12, 28, 28, 28\).*no 3D volumes"),
        (put("train_images", np.zeros((12, 28, 28, 28, 1), np.uint8)), "no 3D volumes"),
        (put("train_images", np.zeros((12, 0, 28), np.uint8)), "images without pixels"),
        (put("train_images", np.zeros((0, 28, 28, 3), np.uint8)), "0 images, train_labels 12 labels"),
        (put("train_labels", LABELS[:11]), "12 images, train_labels 11 labels"),
        (put("train_labels", LABELS - 1), "train_labels runs from -1 to 1: labels count from 0 to 999"),
        (put("train_labels", LABELS + 998), "train_labels runs from 998 to 1000"),
        (put("train_labels", LABELS.astype(np.float64)), "train_labels holds float64: labels are whole numbers"),
        (put("train_labels", np.eye(12, 14, dtype=np.uint8)), "one label per image"),
        (put("train_labels", LABELS.reshape(2, 2, 3)), "expected N or N x 1"),
        (put("test_images", np.zeros((5, 32, 32, 3), np.uint8)), "images differ in channels, height or width"),
        (put("train_labels", np.array([object()] * 12, dtype=object)), "train_labels can't be read"),
    ],
)
def test_a_wrong_npz_is_refused(tmp_path: Path, change: Callable[[Arrays], Any], message: str) -> None:
    """Naming file and key."""
    arrays = medmnist_arrays()
    change(arrays)
    with pytest.raises(DataError, match=message) as caught:
        load(save(tmp_path / "wrong.npz", arrays))
    assert "wrong.npz" in str(caught.value)


def test_zero_examples_are_refused(tmp_path: Path) -> None:
    arrays = medmnist_arrays()
    arrays |= {"test_images": arrays["test_images"][:0], "test_labels": arrays["test_labels"][:0]}
    with pytest.raises(DataError, match="test_images holds no images"):
        load(save(tmp_path / "empty.npz", arrays))


def test_one_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="every label is 0"):
        load(save(tmp_path / "one.npz", medmnist_arrays(num_classes=1)))


def test_a_stray_label_is_refused(tmp_path: Path) -> None:
    """It would make a class of every number below it."""
    arrays = medmnist_arrays()
    arrays["train_labels"].flat[0] = 255
    path = save(tmp_path / "own.npz", arrays)
    with pytest.raises(DataError, match="labels run to 255, and no image has label 3: number the classes from 0 without gaps"):
        load(path)


def test_named_classes_of_an_own_file(tmp_path: Path) -> None:
    """A site may lack images of a class that others have, but have no class that they lack."""
    path = save(tmp_path / "own.npz", medmnist_arrays())

    def load_named(*names: str) -> Dataset:
        settings = DataSettings.model_validate({"name": str(path), "class_names": list(names)})
        return load_dataset(settings, data_dir=None, cache_dir=tmp_path, download=False)

    assert load_named("a", "b", "c", "d").class_names == ("a", "b", "c", "d")
    with pytest.raises(DataError, match=r"labels run to 2, data.class_names has 2 names, from 0"):
        load_named("a", "b")
    with pytest.raises(ValidationError, match="no two the same"):
        load_named("a", "a", "b")


def test_known_sets_have_their_own_classes(tmp_path: Path) -> None:
    settings = DataSettings.model_validate({"name": "digits", "class_names": ["a", "b"]})
    with pytest.raises(DataError, match="digits has its own: remove it"):
        load_dataset(settings, data_dir=None, cache_dir=tmp_path, download=False)


@pytest.mark.parametrize("fault", ["text", "empty", "cut", "flipped", "single array"])
def test_a_corrupt_npz_is_refused(tmp_path: Path, fault: str) -> None:
    path = save(tmp_path / "corrupt.npz", medmnist_arrays())
    content = bytearray(path.read_bytes())
    match fault:
        case "text":
            content[:] = b"not an archive"
        case "empty":
            content.clear()
        case "cut":
            del content[len(content) // 2 :]
        case "flipped":
            content[len(content) // 4] ^= 0xFF
        case _:
            buffer = io.BytesIO()
            np.save(buffer, np.zeros(3))
            content[:] = buffer.getvalue()
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"corrupt\.npz"):
        load(path)


def test_class_names_of_known_sets(tmp_path: Path) -> None:
    """By the file's exact name; or by the part before _ where the number of classes agrees; else none."""
    eight, three = medmnist_arrays(num_classes=8), medmnist_arrays(num_classes=3)
    for name, arrays in (("bloodmnist", three), ("bloodmnist_half", eight), ("bloodmnist_few", three)):
        save(tmp_path / f"{name}.npz", arrays)
    assert load("bloodmnist", data_dir=tmp_path).class_names[0] == "basophil"
    assert load("bloodmnist", data_dir=tmp_path).num_classes == 8
    half = load("bloodmnist_half", data_dir=tmp_path)
    assert (half.class_names[7], half.licence) == ("platelet", "CC BY 4.0")
    assert load("bloodmnist_few", data_dir=tmp_path).class_names == ("class 0", "class 1", "class 2")


def test_labels_beyond_a_known_set(tmp_path: Path) -> None:
    save(tmp_path / "breastmnist.npz", medmnist_arrays())
    with pytest.raises(DataError, match="labels run to 2, breastmnist has classes 0 to 1: labels out of range"):
        load("breastmnist", data_dir=tmp_path)


def test_sizes_are_part_of_the_file_name(tmp_path: Path) -> None:
    save(tmp_path / "bloodmnist_64.npz", medmnist_arrays(shape=(64, 64, 3)))
    assert load("bloodmnist", size=64, data_dir=tmp_path).image_shape == (3, 64, 64)
    with pytest.raises(DataError, match=r"bloodmnist is not here.*put bloodmnist\.npz"):
        load("bloodmnist", data_dir=tmp_path)
    with pytest.raises(DataError, match=r"holds images of 64x64, data\.size asks for 128"):
        load(tmp_path / "bloodmnist_64.npz", size=128)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("chestmnist", "it is multi-label"),
        ("organmnist3d", "3D volumes"),
        ("nonsense", r"no data set 'nonsense'.*FEDMQ_DATA_DIR \(not set\).*bloodmnist.*set data\.name"),
        ("missing.npz", r"missing\.npz: no such file or folder; check data\.name"),
        ("some/folder", "some/folder: no such file or folder"),
        ("pathmnist", "pathmnist is not here: `fedmq data fetch pathmnist`"),
    ],
)
def test_names_that_lead_nowhere(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(name)


def test_a_missing_data_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: no such folder; set FEDMQ_DATA_DIR"):
        load("bloodmnist", data_dir=tmp_path / "absent")


def test_a_file_that_is_no_npz(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"not an \.npz file"):
        load(tmp_path / "data.csv")


def test_digits_ship_with_the_library() -> None:
    """1,797 in all, 20 % of each class for the test, the full range of grey."""
    dataset = load("digits")
    assert (dataset.image_shape, len(dataset.train), len(dataset.test)) == ((1, 8, 8), 1437, 360)
    assert dataset.train.images.max() == 255
    assert dataset.test.class_counts(10).min() >= 34
    with pytest.raises(DataError, match=r"digits does not come in 64 pixels: set data\.size to 8"):
        load("digits", size=64)


def idx_bytes(array: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


def write_idx(folder: Path, *, compress: bool) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (6, 28, 28), dtype=np.uint8), np.arange(6, dtype=np.uint8)
    for stem in ("train", "t10k"):
        for name, array in ((f"{stem}-images-idx3-ubyte", images), (f"{stem}-labels-idx1-ubyte", labels)):
            content = idx_bytes(array)
            (folder / (f"{name}.gz" if compress else name)).write_bytes(gzip.compress(content) if compress else content)
    return images, labels


@pytest.mark.parametrize("compress", [True, False])
def test_mnist_from_its_original_files(tmp_path: Path, *, compress: bool) -> None:
    folder = tmp_path / "mnist"
    folder.mkdir()
    images, labels = write_idx(folder, compress=compress)
    dataset = load("mnist", data_dir=tmp_path)
    np.testing.assert_array_equal(dataset.train.images[:, 0], images)
    np.testing.assert_array_equal(dataset.test.labels, labels)
    assert dataset.num_classes == 10


@pytest.mark.parametrize("fault", ["cut", "magic", "missing", "gzip"])
def test_damaged_idx_files_are_refused(tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "mnist"
    folder.mkdir()
    write_idx(folder, compress=fault == "gzip")
    path = folder / ("t10k-images-idx3-ubyte.gz" if fault == "gzip" else "t10k-images-idx3-ubyte")
    content = path.read_bytes()
    match fault:
        case "missing":
            path.unlink()
        case "magic":
            path.write_bytes(b"\x00\x00\x09\x03" + content[4:])
        case _:
            path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte"):
        load("mnist", data_dir=tmp_path)


def cifar_batches() -> dict[str, bytes]:
    generator = np.random.default_rng(0)
    names = [*(f"data_batch_{index}.bin" for index in range(1, 6)), "test_batch.bin"]
    batches = {}
    for name in names:
        records = generator.integers(0, 256, (4, 3073), dtype=np.uint8)
        records[:, 0] = [0, 3, 5, 9]
        batches[name] = records.tobytes()
    return batches


@pytest.mark.parametrize("packed", [True, False])
def test_cifar10_from_its_binary_archive(tmp_path: Path, *, packed: bool) -> None:
    """Colour planes come one after the other: the first byte after the label is red, top left."""
    folder = tmp_path / "cifar10"
    folder.mkdir()
    batches = cifar_batches()
    if packed:
        with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
            for name, content in batches.items():
                member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    else:
        for name, content in batches.items():
            (folder / name).write_bytes(content)
    dataset = load("cifar10", data_dir=tmp_path)
    assert (dataset.image_shape, len(dataset.train), len(dataset.test)) == ((3, 32, 32), 20, 4)
    assert dataset.train.labels[:4].tolist() == [0, 3, 5, 9]
    assert dataset.train.images[4, 0, 0, 0] == batches["data_batch_2.bin"][1]
    assert dataset.train.images[4, 1, 0, 0] == batches["data_batch_2.bin"][1 + 1024]
    assert dataset.class_names[9] == "truck"


def test_damaged_cifar10_is_refused(tmp_path: Path) -> None:
    for name, content in cifar_batches().items():
        (tmp_path / name).write_bytes(content[:-1] if name == "data_batch_3.bin" else content)
    with pytest.raises(DataError, match=r"data_batch_3\.bin missing or cut short"):
        load(tmp_path)


def test_facts_of_known_sets() -> None:
    facts = {dataset.name: dataset for dataset in list_datasets()}
    assert facts["pathmnist"].num_examples == 89_996 + 10_004 + 7_180
    assert facts["pathmnist"].sizes == (28, 64, 128, 224)
    assert facts["pathmnist"].class_names[7] == "cancer-associated stroma"
    assert "chestmnist" not in facts


def test_facts_are_medmnists_own() -> None:
    """Every class name, count, licence, address and checksum is that of the medmnist package, where it is installed."""
    pytest.importorskip("medmnist", reason="compares with medmnist's facts: install it with `pip install --no-deps medmnist`")
    info = importlib.import_module("medmnist.info").INFO
    compared = [(dataset, info[dataset.name]) for dataset in list_datasets() if dataset.name in info]
    assert len(compared) == 11
    for dataset, facts in compared:
        assert dataset.class_names == tuple(facts["label"].values())
        assert [dataset.num_train, dataset.num_validation, dataset.num_test] == [
            facts["n_samples"][part] for part in ("train", "val", "test")
        ]
        assert (dataset.num_channels, dataset.licence) == (facts["n_channels"], facts["license"])
        for size, (file,) in dataset.files.items():
            suffix = "" if size == 28 else f"_{size}"
            assert (file.url, file.md5) == (facts[f"url{suffix}"], facts[f"MD5{suffix}"])


def test_normalised_pixels() -> None:
    """(x / 255 - 0.5) / 0.5, for engines other than torch."""
    np.testing.assert_allclose(normalise(np.array([0, 51, 255], np.uint8).reshape(1, 3, 1, 1)).ravel(), [-1, -0.6, 1], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "image_shape", "num_classes", "sizes"),
    [
        ("bloodmnist_half", (3, 28, 28), 8, (5094, 565, 1898)),
        ("tissuemnist_third", (1, 28, 28), 8, (50_110, 5567, 26_089)),
        ("pneumoniamnist", (1, 28, 28), 2, (4708, 524, 624)),
        ("breastmnist", (1, 28, 28), 2, (546, 78, 156)),
        ("mnist", (1, 28, 28), 10, (60_000, 0, 10_000)),
        ("cifar10_10k", (3, 32, 32), 10, (10_000, 0, 2000)),
    ],
)
def test_real_sets_load(
    data_dir: Path, name: str, image_shape: tuple[int, int, int], num_classes: int, sizes: tuple[int, int, int]
) -> None:
    """Every set of FEDMQ_DATA_DIR, with the names of its classes."""
    dataset = load(name, data_dir=data_dir)
    assert (dataset.image_shape, dataset.num_classes) == (image_shape, num_classes)
    assert (len(dataset.train), len(dataset.validation or []), len(dataset.test)) == sizes
    assert not dataset.class_names[0].startswith("class ")
    assert dataset.train.class_counts(num_classes).min() > 0
