"""What the commands share: how runs, folders and brokers are named on the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from federation.environment import BrokerEnvironment, read_environment
from federation.errors import SettingsError
from federation.settings import RunSettings, load_run_file, parse_settings

HostOption = Annotated[str | None, typer.Option(help="Broker's host; default FEDMQ_BROKER_HOST or localhost.")]
PortOption = Annotated[int | None, typer.Option(help="Broker's port; default FEDMQ_BROKER_PORT, 8883 with TLS, else 1883.")]
UserOption = Annotated[str | None, typer.Option(help="MQTT user name; default FEDMQ_BROKER_USERNAME.")]
PasswordOption = Annotated[Path | None, typer.Option(help="File of the MQTT password; default FEDMQ_BROKER_PASSWORD_FILE.")]

DEFAULT_CACHE_DIR = Path("~/.cache/fedmq").expanduser()


class CommandEnvironment(BrokerEnvironment):
    """What a command takes from the environment."""

    data_dir: Path | None = None
    cache_dir: Path = DEFAULT_CACHE_DIR


def command_environment(**overrides: object) -> CommandEnvironment:
    """Return the environment's settings; overrides that are not None win.

    Raises:
        SettingsError: a variable or override is wrong.
    """
    given = {f"FEDMQ_{name.upper()}": str(value) for name, value in overrides.items() if value is not None}
    environment = read_environment(CommandEnvironment, {**os.environ, **given})
    if environment.data_dir is not None and not environment.data_dir.is_dir():
        raise SettingsError(f"FEDMQ_DATA_DIR: {environment.data_dir} is not a folder; unset it, or name the folder of your data sets")
    return environment


def new_folder(parent: Path, name: str) -> Path:
    """Return a folder that does not exist yet: `parent/name-1`, `-2`, ..."""
    number = 1
    while (parent / f"{name}-{number}").exists():
        number += 1
    return parent / f"{name}-{number}"


def check_out_dir(path: Path) -> Path:
    """Make an output folder and return it; it holds no run yet.

    Raises:
        SettingsError: it holds one, or can't be made.
    """
    if (path / "summary.json").exists():
        raise SettingsError(f"--out: {path} holds a run already; name another folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--out: {path} can't be made a folder ({error.strerror}); name another") from None
    return path


def load_settings(run_file: Path, overrides: dict[str, Any] | None = None) -> RunSettings:
    """Return a run file's settings with top-level overrides from flags.

    Raises:
        SettingsError: the file or an override is wrong.
    """
    settings = load_run_file(run_file)
    return parse_settings(settings.model_dump() | (overrides or {}), source=str(run_file)) if overrides else settings


def simulated(settings: RunSettings) -> RunSettings:
    """Return the settings as nodes simulated on this machine run them, `centralised` as a single one that holds everything.

    Raises:
        SettingsError: rounds wait for more nodes than the partition makes.
    """
    if settings.mode == "centralised":
        return _centralised(settings)
    num_nodes, min_nodes = settings.partition.num_nodes, settings.rounds.min_nodes
    if min_nodes > num_nodes:
        raise SettingsError(
            f"rounds.min_nodes is {min_nodes}, but partition.num_nodes is {num_nodes}, so no round would ever begin: "
            f"lower rounds.min_nodes to {num_nodes} or less"
        )
    return settings


def _centralised(settings: RunSettings) -> RunSettings:
    """Return the same recipe on all training data in one place."""
    partition = settings.partition.model_copy(update={"scheme": "iid", "num_nodes": 1, "validation_share": 0.0})
    rounds = settings.rounds.model_copy(update={"participation": 1.0, "min_nodes": 1})
    return settings.model_copy(update={"partition": partition, "rounds": rounds})
