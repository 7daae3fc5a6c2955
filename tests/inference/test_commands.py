"""`fedmq predict`, in an environment without PyTorch, and `fedmq export`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

import fedmq
from federation import models
from federation.codec import write_params
from federation.evaluation import predict as torch_predict
from federation.inference.conversion import Converter
from federation.inference.graph import take_pixels, with_card
from federation.settings import RunSettings, parse_settings
from fedmq.export import export
from fedmq.predict import predict
from tests.inference.networks import MNIST_CNN, card_of, digits, digits_params

ROOT = Path(fedmq.__file__).parent.parent

TORCH_PACKAGES = ("torch", "torchgen", "functorch", "nvidia", "triton")


def invoke(command: Any, *arguments: object) -> tuple[int, str, str]:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(command)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    # Consoles wrap lines: a sentence is the same on one line.
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


@pytest.fixture
def digits_file(tmp_path: Path) -> Path:
    """An ONNX file of the trained digits model."""
    path = tmp_path / "models" / "current.onnx"
    path.parent.mkdir()
    graph = take_pixels(Converter().convert(MNIST_CNN, digits().image_shape, 10, digits_params()).model)
    path.write_bytes(with_card(graph, card_of(digits(), digits_params(), round_number=4)))
    return path


def evaluated(indices: range) -> list[int]:
    """Return the class that PyTorch's evaluation gives the digits' test images."""
    module = models.build(MNIST_CNN, digits().image_shape, 10, seed=0)
    models.load_parameters(module, digits_params())
    return [int(index) for index in torch_predict(module, digits().test.images[indices.start : indices.stop]).argmax(axis=1)]


def write_digits(folder: Path, indices: range) -> list[Path]:
    paths = [folder / f"{index}.png" for index in indices]
    for index, path in zip(indices, paths, strict=True):
        Image.fromarray(digits().test.images[index, 0]).save(path)
    return paths


@pytest.fixture(scope="session")
def python_without_torch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that has every package of this one but PyTorch: links to them, and no pip."""
    folder = tmp_path_factory.mktemp("without-torch") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / version / "site-packages"
    for place in {Path(entry) for entry in sys.path if entry.endswith("site-packages")}:
        for entry in place.iterdir():
            is_torch = entry.name.split("-")[0].split(".")[0] in TORCH_PACKAGES
            if not is_torch and entry.suffix != ".pth" and not (packages / entry.name).exists():
                (packages / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


def test_predict_needs_no_torch_and_gives_the_evaluation_s_class(digits_file: Path, tmp_path: Path, python_without_torch: Path) -> None:
    """Where `import torch` fails, PNG files of test images are classified as PyTorch's evaluation classified them."""
    indices = range(20)
    paths = write_digits(tmp_path, indices)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(python_without_torch), "-W", "error", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            cwd=tmp_path,
            timeout=120,
        )

    absent = run("-c", "import torch")
    assert "No module named 'torch'" in absent.stderr
    result = run("-c", "from fedmq.cli import main; main()", "predict", "--json", "--model", str(digits_file), *map(str, paths))
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert [entry["predictions"][0]["class"] for entry in answer["images"]] == evaluated(indices)
    assert answer["model"]["round_number"] == 4
    assert len(answer["images"][0]["predictions"]) == 3


def test_predict_goes_on_after_a_file_it_can_t_read(digits_file: Path, tmp_path: Path) -> None:
    """The rest is classified, each fault is named on stderr, and the exit status is 1."""
    (path,) = write_digits(tmp_path, range(1))
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "large.png")
    (tmp_path / "broken.png").write_bytes(path.read_bytes()[:40])
    status, output, errors = invoke(
        predict, "--model", digits_file, tmp_path / "broken.png", tmp_path / "none.png", tmp_path / "large.png", path, "--top", "1"
    )
    assert status == 1
    assert "not a PNG, JPEG, TIFF, BMP or DICOM image" in errors
    assert "no such file" in errors
    assert "resized from 30 x 20 to 8 x 8" in errors
    assert "run test, round 4" in output.replace("\n", " ")
    status, output, _ = invoke(predict, "--model", digits_file, tmp_path / "broken.png", path, "--json")
    first, second = json.loads(output)["images"]
    assert status == 1
    assert "error" in first
    assert second["predictions"][0]["class"] == evaluated(range(1))[0]


def test_predict_takes_the_node_s_model_by_itself(digits_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = write_digits(tmp_path, range(1))
    monkeypatch.setenv("FEDMQ_STATE_DIR", str(digits_file.parent.parent))
    status, output, _ = invoke(predict, path, "--json")
    assert status == 0
    assert json.loads(output)["model"]["file"] == str(digits_file)
    monkeypatch.setenv("FEDMQ_STATE_DIR", str(tmp_path / "nowhere"))
    status, _, errors = invoke(predict, path)
    assert status == 1
    assert "no such model" in errors


NUM_PREDICTED = 40


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A finished run of the digits, as `fedmq simulate` leaves one."""
    settings: RunSettings = parse_settings({"run": "finished", "data": {"name": "digits"}, "model": {"name": "mnist_cnn"}})
    digest = write_params(tmp_path / "model.safetensors", digits_params())
    described = {
        "settings": settings.model_dump(mode="json"),
        "image_shape": digits().image_shape,
        "class_names": digits().class_names,
    }
    (tmp_path / "settings.json").write_text(json.dumps(described), encoding="utf-8")
    (tmp_path / "summary.json").write_text(json.dumps({"global_digest": digest, "rounds": [{"round_number": 6}]}), encoding="utf-8")
    return tmp_path


def test_export_writes_files_that_predict_can_use(run_folder: Path, tmp_path: Path) -> None:
    status, output, errors = invoke(export, run_folder, "--onnx", "--int8", "--out", tmp_path / "files", "--json")
    assert status == 0, errors
    written = json.loads(output)["files"]
    assert [Path(entry["file"]).name for entry in written] == ["model.onnx", "model-int8.onnx"]
    assert written[0]["max_abs_difference"] < 1e-3
    assert written[0]["bytes"] > 2 * written[1]["bytes"]
    paths = write_digits(tmp_path, range(NUM_PREDICTED))
    for entry in written:
        status, output, _ = invoke(predict, *paths, "--model", entry["file"], "--json")
        answer = json.loads(output)
        assert status == 0
        assert (answer["model"]["run"], answer["model"]["round_number"]) == ("finished", 7)
        assert answer["model"]["precision"] == entry["precision"]
        agreements = sum(
            image["predictions"][0]["class"] == expected
            for image, expected in zip(answer["images"], evaluated(range(NUM_PREDICTED)), strict=True)
        )
        # int8 rounds: an image that lies between two classes may fall to either, which one depends on the processor.
        assert agreements >= (NUM_PREDICTED if entry["precision"] == "float32" else 0.9 * NUM_PREDICTED)


@pytest.mark.parametrize("name", ["settings.json", "summary.json", "model.safetensors"])
def test_export_names_what_a_folder_lacks(name: str, run_folder: Path) -> None:
    (run_folder / name).unlink()
    status, _, errors = invoke(export, run_folder)
    assert status == 1
    assert f"there is no {name}" in errors


@pytest.mark.parametrize(("name", "content"), [("settings.json", "{"), ("summary.json", "[]"), ("model.safetensors", "junk")])
def test_export_refuses_a_damaged_folder(name: str, content: str, run_folder: Path) -> None:
    (run_folder / name).write_text(content, encoding="utf-8")
    status, _, errors = invoke(export, run_folder)
    assert status == 1
    assert name in errors
    assert "can't be read" in errors or "can't be used" in errors


def test_export_refuses_a_model_that_is_not_the_run_s(run_folder: Path) -> None:
    write_params(run_folder / "model.safetensors", {name: array + 1 for name, array in digits_params().items()})
    status, _, errors = invoke(export, run_folder)
    assert status == 1
    assert "it was changed" in errors
    assert not (run_folder / "model.onnx").exists()
