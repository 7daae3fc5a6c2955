"""Image files: every kind read, converted with a notice, refused with a reason; never an exception of a decoder's."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from federation.errors import DataError
from federation.image_folder import read_image_folder
from federation.inference import pictures
from federation.inference.pictures import decode_picture, read_pictures
from tests.inference.networks import noise

GREY, COLOUR = (1, 28, 28), (3, 28, 28)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture_of(shape: tuple[int, int, int], seed: int = 0) -> tuple[Image.Image, NDArray[np.uint8]]:
    pixels = noise(shape, 1, seed)[0]
    return Image.fromarray(pixels[0] if shape[0] == 1 else pixels.transpose(1, 2, 0)), pixels


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
@pytest.mark.parametrize("shape", [GREY, COLOUR])
def test_lossless_files_give_their_pixels_without_a_notice(kind: str, shape: tuple[int, int, int]) -> None:
    image, pixels = picture_of(shape)
    picture = decode_picture(encoded(image, kind), "a", shape)
    assert np.array_equal(picture.pixels, pixels)
    assert picture.notices == ()


def test_a_jpeg_gives_nearly_its_pixels() -> None:
    smooth = np.linspace(0, 255, 28 * 28, dtype=np.uint8).reshape(28, 28)
    picture = decode_picture(encoded(Image.fromarray(smooth), "JPEG", quality=95), "a", GREY)
    assert np.abs(picture.pixels[0].astype(int) - smooth).max() <= 4


def test_sizes_and_modes_are_converted_with_a_notice() -> None:
    image, _ = picture_of((3, 50, 40))
    picture = decode_picture(encoded(image.convert("RGBA"), "PNG"), "a", GREY)
    assert picture.pixels.shape == GREY
    assert picture.notices == ("RGBA converted to L", "resized from 40 x 50 to 28 x 28")


def test_conversion_is_that_of_a_training_folder(tmp_path: Path) -> None:
    """A colour photograph of another size, on its side by EXIF, predicts as it would have been trained on."""
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotated by 90 degrees
    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        for index in range(3):
            image, _ = picture_of((3, 45, 33), seed * 10 + index)
            (tmp_path / name / f"{index}.png").write_bytes(encoded(image, "PNG", exif=exif))
    _, sets = read_image_folder(tmp_path, 28)
    ours = [read_pictures(path, COLOUR)[0] for path in sorted(tmp_path.glob("*/*.png"))]
    trained = {image.tobytes() for part in sets.values() for image in part.images}
    assert {picture.pixels.tobytes() for picture in ours} == trained
    assert all(any("EXIF" in notice for notice in picture.notices) for picture in ours)


def test_sixteen_bits_are_stretched_with_a_notice() -> None:
    values = np.linspace(1000, 3000, 28 * 28).astype(np.uint16).reshape(28, 28)
    picture = decode_picture(encoded(Image.fromarray(values), "PNG"), "a", GREY)
    assert (picture.pixels.min(), picture.pixels.max()) == (0, 255)
    assert "stretched to 8 bits" in picture.notices[0]


def test_a_tiff_of_several_pages_gives_its_first() -> None:
    first, pixels = picture_of(GREY, 1)
    second, _ = picture_of(GREY, 2)
    picture = decode_picture(encoded(first, "TIFF", save_all=True, append_images=[second]), "a", GREY)
    assert np.array_equal(picture.pixels, pixels)
    assert picture.notices == ("first of 2 frames",)


def dicom(pixels: NDArray[np.uint8] | NDArray[np.uint16], **elements: object) -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = UID("1.2.3.4")
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 0
    dataset.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def test_an_eight_bit_dicom_gives_its_pixels() -> None:
    pixels = noise(GREY, 1)[0]
    assert np.array_equal(decode_picture(dicom(pixels[0]), "a", GREY).pixels, pixels)
    colour = noise(COLOUR, 1)[0]
    assert np.array_equal(decode_picture(dicom(colour.transpose(1, 2, 0)), "a", COLOUR).pixels, colour)


def test_a_dicom_s_window_and_rescaling_are_applied() -> None:
    """Slope 2, intercept -1000, window 0 / 401: -200 and below is black, 200 and above white, 0 in the middle."""
    values = np.full((28, 28), 500, np.uint16)  # 0 after rescaling
    values[0, :3] = (300, 400, 600)  # -400, -200, 200
    picture = decode_picture(dicom(values, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=0.5, WindowWidth=401), "a", GREY)
    assert picture.pixels[0, 0, :3].tolist() == [0, 0, 255]
    assert picture.pixels[0, 0, 3] in {127, 128}
    assert picture.notices == ("window 0.5 / 401",)


def test_an_inverted_dicom_is_inverted_and_a_deep_one_stretched() -> None:
    values = np.linspace(10, 1010, 28 * 28).astype(np.uint16).reshape(28, 28)
    picture = decode_picture(dicom(values, PhotometricInterpretation="MONOCHROME1"), "a", GREY)
    assert (picture.pixels[0, 0, 0], picture.pixels[0, -1, -1]) == (255, 0)
    assert picture.notices == ("stretched to 8 bits", "MONOCHROME1 inverted")


def test_a_dicom_without_pixels_or_with_too_many_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = dicom(noise(GREY, 1)[0, 0])
    with pytest.raises(DataError, match="a: "):
        decode_picture(whole[:-300], "a", GREY)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 100)
    with pytest.raises(DataError, match="more than 100"):
        decode_picture(whole, "a", GREY)


def archive(**arrays: NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def test_an_archive_gives_all_its_images(tmp_path: Path) -> None:
    path, images = tmp_path / "a.npz", noise(GREY, 3)
    path.write_bytes(archive(test_images=images[:, 0], train_labels=np.arange(3)))
    found = read_pictures(path, GREY)
    assert [picture.name for picture in found] == [f"{path}[{index}]" for index in range(3)]
    assert np.array_equal(np.stack([picture.pixels for picture in found]), images)


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"images": np.zeros((2, 28, 28), np.float32)}, "float32, expected uint8"),
        ({"images": np.zeros((2, 2, 2, 2, 2), np.uint8)}, "has shape"),
        ({"images": np.zeros((0, 28, 28), np.uint8)}, "none of them 0"),
        ({"images": np.zeros((2, 28, 28, 5), np.uint8)}, "5 channels"),
        ({"a": np.zeros(1, np.uint8), "b": np.zeros(1, np.uint8)}, "name the one to use 'images'"),
        ({"images": np.array([{}], dtype=object)}, "not a readable NumPy archive"),
    ],
)
def test_an_archive_that_holds_no_images_is_refused(arrays: dict[str, NDArray[np.generic]], text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(archive(**arrays))
    with pytest.raises(DataError, match=text):
        read_pictures(path, GREY)


def test_an_archive_that_unpacks_beyond_the_bound_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_ARCHIVE_BYTES", 1000)
    path = tmp_path / "a.npz"
    path.write_bytes(archive(images=np.zeros((9, 28, 28), np.uint8)))
    with pytest.raises(DataError, match="split it"):
        read_pictures(path, GREY)


def test_an_empty_or_broken_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("images.npy", b"no array")
    with pytest.raises(DataError, match="not a readable NumPy archive"):
        read_pictures(path, GREY)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match="not a readable NumPy archive"):
        read_pictures(path, GREY)


def test_more_pixels_than_the_bound_are_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 100)
    with pytest.raises(DataError, match="crop or shrink"):
        decode_picture(encoded(picture_of(GREY)[0], "PNG"), "a", GREY)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_pictures(tmp_path / "none.png", GREY)
    with pytest.raises(DataError, match="can't be read"):
        read_pictures(tmp_path, GREY)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_foreign_bytes_end_in_an_image_or_one_kind_of_error(data: st.DataObject) -> None:
    """Whole files of every kind, cut and with bytes changed, and plain noise."""
    image, pixels = picture_of(COLOUR)
    kinds = [encoded(image, "PNG"), encoded(image, "JPEG"), encoded(image, "TIFF"), encoded(image, "BMP"), dicom(pixels[0]), b""]
    payload = bytearray(data.draw(st.sampled_from(kinds)))
    for _ in range(data.draw(st.integers(0, 5))):
        if payload:
            payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    payload = payload[: data.draw(st.integers(0, len(payload)))] + data.draw(st.binary(max_size=20))
    try:
        picture = decode_picture(bytes(payload), "a", COLOUR)
    except DataError as error:
        assert str(error).startswith("a: ")  # noqa: PT017 - either outcome is right
    else:
        assert picture.pixels.shape == COLOUR
