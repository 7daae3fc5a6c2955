"""What a run on this machine keeps beside its results until it is done, so that an interrupted one goes on.

`OUT/state` holds the aggregator's checkpoint, the nodes' spools and, for the demo, the broker's retained rounds and the
keys; closed to other users. It is deleted when the run has finished.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from aggregator.checkpoint import CheckpointStore
from federation.errors import FedMQError, SettingsError
from federation.settings import RunSettings, load_run_file
from fedmq.figures import draw_curves
from fedmq.progress import read_summary

STATE = "state"
RUN_FILE = "run.toml"
MODEL = "model.safetensors"


def make_state(out_dir: Path) -> Path:
    """Return the folder for what the run keeps; made if need be."""
    folder = out_dir / STATE
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def checkpoint_of(out_dir: Path, settings: RunSettings) -> CheckpointStore:
    """Return the run's checkpoint."""
    return CheckpointStore(out_dir / STATE / "aggregator", settings)


def load_interrupted(out_dir: Path) -> RunSettings:
    """Return the settings of the interrupted run in a folder, ready to go on.

    No time passes for a run that nobody runs: its open round's deadline goes on from where it was.

    Raises:
        SettingsError: there is no such run in it.
    """
    if not (out_dir / STATE / "aggregator").is_dir() or not (out_dir / RUN_FILE).is_file():
        raise SettingsError(f"--resume: {out_dir} holds no interrupted run: name the folder that the interrupted command named")
    settings = load_run_file(out_dir / RUN_FILE)
    store = checkpoint_of(out_dir, settings)
    position = store.load()
    if position is not None:
        store.save(position, now_ns=time.time_ns())
    return settings


def finish_results(out_dir: Path) -> dict[str, Any]:
    """Complete a finished run's folder, forget what it kept, and return its summary."""
    summary = read_summary(out_dir / "summary.json")
    draw_curves(summary, out_dir / "curves.png")
    shutil.rmtree(out_dir / STATE, ignore_errors=True)
    return summary


def keep_results(out_dir: Path, settings: RunSettings) -> dict[str, Any] | None:
    """Give an interrupted run's folder its model and curves; return its summary, None before the first round's end."""
    try:
        summary = read_summary(out_dir / "summary.json")
    except (FileNotFoundError, ValueError):
        return None
    if not summary["rounds"]:
        return None
    try:
        store = checkpoint_of(out_dir, settings)
        model = store.global_path(summary["global_digest"])
        position = None if model.exists() else store.load()
        if position is not None:
            model = store.global_path(position.global_digest)
        shutil.copyfile(model, out_dir / MODEL)
    except (FedMQError, OSError):
        # The rounds are kept all the same, and whoever goes on will say what is wrong with the checkpoint.
        (out_dir / MODEL).unlink(missing_ok=True)
    draw_curves(summary, out_dir / "curves.png")
    return summary
