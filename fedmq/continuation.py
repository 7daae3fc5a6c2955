"""Prepares a new run that begins with the model an old one's round ended with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import tomli_w

from aggregator.checkpoint import CheckpointStore
from aggregator.events import Position
from aggregator.replay import Replay
from federation.errors import SettingsError
from federation.settings import parse_settings
from fedmq.options import check_out_dir
from fedmq.run_source import find_trusted_keys

if TYPE_CHECKING:
    from fedmq.run_source import RunRecords


def prepare_continuation(run: str, records: RunRecords, round_number: int, name: str, trusted_keys: Path | None) -> Path:
    """Write the folder of a run `name`: its run file, and a checkpoint to be led with `--resume`; return the folder.

    Raises:
        SettingsError: the settings are unknown, or the name or folder is taken.
        ArchiveError: the round does not agree with its record.
    """
    if records.settings is None:
        raise SettingsError("the run's settings are neither on the broker nor in its folder: name the folder with --out")
    if name == run:
        raise SettingsError("--continue: the new run needs a name of its own")
    settings = parse_settings(records.settings.model_dump() | {"run": name}, source="--continue")
    folder = check_out_dir(records.out_dir.parent / name)
    store = CheckpointStore(folder / "state", settings)
    replay = Replay(run, records.source, find_trusted_keys(trusted_keys, records.out_dir))
    end = replay.write_end(round_number, store.write)
    store.save(Position(epoch=0, round_number=1, cohort=(), global_digest=end.digest, state_digest=end.state_digest))
    (folder / "run.toml").write_text(tomli_w.dumps(settings.model_dump(mode="json")), encoding="utf-8")
    return folder
