"""Everything known of one run, from its folder or from a broker: what reports and tables are made of."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from federation import topics
from federation.broker_address import BrokerAddress
from federation.condition import RunCondition
from federation.errors import DataError, MessageError, RemoteProtocolError
from federation.messages import RoundResult, RunState, parse
from federation.metrics import Point, parse_line
from fedmq.derived_points import History
from fedmq.observer import read_retained


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """One run."""

    summary: Mapping[str, Any]
    """As summary.json holds it."""
    points: Sequence[Point]
    """Of metrics.jsonl; none for a run read from a broker."""
    settings: Mapping[str, Any] | None = None
    """As settings.json holds them; None for a run read from a broker."""

    def of(self, measurement: str, **tags: str) -> Iterator[Point]:
        """Yield the points of a measurement that have these tags, in order of arrival."""
        for point in self.points:
            if point.measurement == measurement and all(point.tags.get(name) == value for name, value in tags.items()):
                yield point

    def last_known(self) -> tuple[RunCondition, str] | None:
        """Return what state the run was last in, and what it waited for or why it had ended; None without any point."""
        points = [*self.of("run_summary")] or [*History(self.points).summaries()]
        return (RunCondition(int(points[-1].fields["state"])), str(points[-1].fields["note"])) if points else None

    @property
    def class_names(self) -> list[str]:
        """The classes' names, or their numbers."""
        named = self.summary.get("class_names") or []
        return [str(name) for name in named] or [f"class {index}" for index in range(len(self.summary["final"]["class_accuracy"]))]


def read_run(folder: Path) -> RunData:
    """Return the run of a folder that `demo`, `run` or `simulate` wrote.

    Raises:
        DataError: there is no run in it, or its summary is damaged.
    """
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        assert_is_summary(summary, folder)
    except FileNotFoundError:
        raise DataError(f"{folder} holds no summary.json: name the folder of a run, as `fedmq demo` prints it") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / 'summary.json'} can't be read: {error}") from None
    settings = folder / "settings.json"
    return RunData(
        summary=summary,
        points=list(read_points([folder / "metrics.1.jsonl", folder / "metrics.jsonl"])),
        settings=json.loads(settings.read_text(encoding="utf-8")) if settings.exists() else None,
    )


def assert_is_summary(value: Any, folder: Path) -> None:
    """Raise unless this is a run's summary.

    Raises:
        DataError: it lacks what every summary has.
    """
    if not isinstance(value, dict) or not {"run", "strategy", "rounds", "final"} <= value.keys():
        raise DataError(f"{folder / 'summary.json'} is not a run's summary")


def read_points(files: Sequence[Path], *, without: Collection[str] = ()) -> Iterator[Point]:
    """Yield the points of metrics.jsonl files that exist; a line that is none is passed over.

    Args:
        files: oldest first.
        without: measurements that are passed over, unread: most of a journal is samples.
    """
    unread = tuple(b'{"measurement":"%s",' % name.encode() for name in without)
    for path in files:
        if not path.exists():
            continue
        with path.open("rb") as file:
            for line in file:
                if line.startswith(unread):
                    continue
                with suppress(MessageError):
                    yield parse_line(line)


def fetch_run(address: BrokerAddress, run: str) -> RunData:
    """Return a run as a broker retains it: its results, without the nodes' metrics.

    Raises:
        TransportError: the broker can't be reached or refuses us.
        DataError: it holds no such run.
    """
    _, messages = read_retained(address, [str(topics.StateTopic(run)), topics.result_filter(run)])
    results: dict[int, RoundResult] = {}
    strategy = ""
    for name, payload in messages.items():
        try:
            match topics.parse_topic(name):
                case topics.ResultTopic(round_number=number):
                    results[number] = parse(RoundResult, payload)
                case topics.StateTopic():
                    strategy = parse(RunState, payload).method
        except RemoteProtocolError:
            continue
    if not results:
        raise DataError(f"{address!r} holds no result of a run {run!r}: `fedmq status` lists the runs it knows")
    return RunData(summary=summarise([results[number] for number in sorted(results)], run, strategy), points=[])


def summarise(results: Sequence[RoundResult], run: str, strategy: str) -> dict[str, Any]:
    """Return the summary of a run's results, in round order; what only its folder knows is left empty."""
    rounds: list[dict[str, Any]] = []
    final: dict[str, Any] = dict.fromkeys(("accuracy", "f1_macro", "f1_weighted", "auc")) | {"class_accuracy": [], "confusion_matrix": []}
    scores: dict[str, float | None] = dict.fromkeys(("accuracy", "f1_macro", "f1_weighted", "auc", "loss"))
    for result in results:
        if result.evaluation is not None:
            scores = {name: getattr(result.evaluation, name) for name in scores}
            final = {name: getattr(result.evaluation, name) for name in final}
        counts = ("accepted", "rejected", "discarded", "stragglers", "bytes_up", "bytes_down", "seconds")
        rounds.append({"round_number": result.round_number, **scores, **{name: getattr(result, name) for name in counts}})
    nodes = {outcome.node for result in results for outcome in result.outcomes}
    return {
        "run": run,
        "strategy": strategy or results[-1].method,
        "data": "",
        "num_nodes": len(nodes),
        "seed": None,
        "global_digest": results[-1].next_global_digest,
        "rounds": rounds,
        "final": final,
        "class_names": [],
    }
