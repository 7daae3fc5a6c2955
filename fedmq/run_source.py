"""Where a run's finished rounds are read from: its broker, its folder, or whichever has them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from aggregator.archive import Archive
from aggregator.broker_rounds import BrokerRounds
from aggregator.replay import RoundSource
from aggregator.round_folder import RoundFolder
from federation.broker_address import BrokerAddress
from federation.errors import ArchiveError, RemoteProtocolError, SettingsError, TransportError
from federation.messages import RunState
from federation.settings import RunSettings, parse_settings
from federation.signing import TrustedKeys
from fedmq.retained_reader import RetainedReader

Origin: TypeAlias = Literal["broker", "archive", "auto"]


class EitherSource:
    """The broker's rounds, and for those it has cleared, the archive's."""

    def __init__(self, broker: BrokerRounds, archive: Archive) -> None:
        self._broker = broker
        self._archive = archive
        self._on_broker = frozenset(broker.round_numbers())

    def round_numbers(self) -> list[int]:
        """Return the rounds that are in either, in order."""
        return sorted(self._on_broker | {*self._archive.round_numbers()})

    def extract(self, round_number: int, into: Path) -> RoundFolder:
        """Write a round's record into an empty folder, from the broker where it has it."""
        source: RoundSource = self._broker if round_number in self._on_broker else self._archive
        return source.extract(round_number, into)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecords:
    """A run's rounds, and what else is known of it."""

    source: RoundSource
    state: RunState | None
    """As the broker holds it; None without a broker."""
    settings: RunSettings | None
    out_dir: Path
    class_names: tuple[str, ...]
    """In label order; none where the run's folder is not here."""
    is_archived: bool
    """Whether there is an archive to be read, which holds a run from its first round on."""

    def numbers(self, wanted: str) -> list[int]:
        """Return the round numbers of `all`, `N` or `A-B`.

        Raises:
            SettingsError: it is none of these.
            ArchiveError: there are no such rounds.
        """
        found = self.source.round_numbers()
        if not found:
            raise ArchiveError(f"there is no finished round; name the run's folder with --out (it is {self.out_dir} now)")
        if wanted == "all":
            # A gap is a fault that replay has to name, not to step over; a broker alone may have cleared its oldest rounds.
            return list(range(1 if self.is_archived else found[0], found[-1] + 1))
        first, _, last = wanted.partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not last)):
            raise SettingsError(f"--round: {wanted!r} is neither a number, nor a range such as 3-7, nor all")
        numbers = list(range(int(first), int(last or first) + 1))
        if not numbers or numbers[0] < 1:
            raise SettingsError(f"--round: {wanted!r} is no range; rounds count from 1")
        return numbers


@contextmanager
def open_records(run: str, origin: Origin, address: BrokerAddress, out_dir: Path) -> Iterator[RunRecords]:
    """Give access to a run's rounds.

    Args:
        run: the run's name.
        origin: where to look; `auto` goes without a broker that does not answer.
        address: the broker, with an identity that may read the run.
        out_dir: the run's folder.

    Raises:
        TransportError: the broker was asked for, and can't be reached.
        ArchiveError: it does not hold the run.
    """
    archive = Archive(out_dir / "rounds")
    source: RoundSource = archive
    state: RunState | None = None
    with ExitStack() as stack:
        if origin != "archive":
            try:
                reader = stack.enter_context(RetainedReader(address))
                broker = BrokerRounds(run, reader.read)
                state = broker.state()
            except (TransportError, ArchiveError, RemoteProtocolError):
                if origin == "broker" or not archive.round_numbers():
                    raise
            else:
                source = broker if origin == "broker" else EitherSource(broker, archive)
        is_archived = origin != "broker" and bool(archive.round_numbers())
        yield RunRecords(
            source=source,
            state=state,
            settings=_settings_of(state, out_dir),
            out_dir=out_dir,
            class_names=read_class_names(out_dir),
            is_archived=is_archived,
        )


def locate_run(run: str, out: Path | None, origin: Origin) -> tuple[str, Path, Origin]:
    """Return a run's name, its folder and where to read its rounds, from what a user named: the run, or the folder itself.

    A folder's rounds are its archive's: which broker they came from is not known.

    Raises:
        SettingsError: a folder is named that holds no run.
    """
    if out is not None or "/" not in run:
        return run, out or Path("out") / run, origin
    folder = Path(run)
    settings = _settings_of(None, folder)
    if settings is None:
        raise SettingsError(f"{folder} holds no run: name a run, or the folder of one, as `fedmq demo` prints it")
    return settings.run, folder, "archive" if origin == "auto" else origin


def find_trusted_keys(stated: Path | None, out_dir: Path) -> TrustedKeys | None:
    """Return the keys to check signatures with: those stated, else those that a demo left in its folder."""
    if stated is not None:
        return TrustedKeys(stated)
    left = out_dir / "trusted_keys"
    return TrustedKeys(left) if left.is_dir() else None


def read_class_names(out_dir: Path) -> tuple[str, ...]:
    """Return the classes' names in label order, as a run's folder says; none where it does not."""
    try:
        names = json.loads((out_dir / "settings.json").read_bytes())["class_names"]
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    return tuple(str(name) for name in names) if isinstance(names, list) else ()


def _settings_of(state: RunState | None, out_dir: Path) -> RunSettings | None:
    if state is not None and (settings := state.run_settings()) is not None:
        return settings
    try:
        described = json.loads((out_dir / "settings.json").read_bytes())
    except (OSError, ValueError):
        return None
    return parse_settings(described["settings"], source=str(out_dir / "settings.json"))
