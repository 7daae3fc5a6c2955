"""`fedmq export`: a finished run's model as ONNX files, as its nodes keep them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fedmq.console import JsonOption, out, print_json, sentences
from fedmq.options import command_environment


def export(
    run: Annotated[Path, typer.Argument(help="A run's folder: settings.json, summary.json, model.safetensors.")],
    *,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write model.onnx, float32; the default.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Write model-int8.onnx, calibrated on the run's training images.")] = False,
    out_dir: Annotated[Path | None, typer.Option("--out", help="Folder for the files; default the run's.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a finished run's model as ONNX: raw pixels in, class names and normalisation inside."""
    # Here, because they bring torch, and `fedmq --help` must not wait for it.
    from federation.data import load_dataset
    from federation.inference.run_folder import Precision, read_run_folder, write_onnx_files

    with sentences():
        environment = command_environment()
        finished = read_run_folder(run)
        wanted: dict[Precision, bool] = {"float32": onnx or not int8, "int8": int8}
        precisions = [precision for precision, is_wanted in wanted.items() if is_wanted]
        calibration = None
        if int8:
            dataset = load_dataset(finished.settings.data, data_dir=environment.data_dir, cache_dir=environment.cache_dir)
            calibration = dataset.train.images
        written = write_onnx_files(finished, precisions, out_dir or run, calibration=calibration, num_threads=os.cpu_count() or 1)
    if as_json:
        entries = [
            {
                "file": str(model.path),
                "precision": model.precision,
                "bytes": model.num_bytes,
                "max_abs_difference": model.max_abs_difference,
                "different_predictions": model.num_different,
            }
            for model in written
        ]
        print_json({"run": finished.card.run, "weights_digest": finished.card.weights_digest, "files": entries})
        return
    for model in written:
        difference = f"logits within {model.max_abs_difference:.2g} of PyTorch's"
        out.print(f"wrote {model.path}: {model.precision}, {model.num_bytes:,} bytes, {difference}", markup=False)
