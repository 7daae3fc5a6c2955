"""What `fedmq watch` knows of a run: fed by the broker's messages, drawn as tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from federation import topics
from federation.condition import NodeCondition, RunCondition, condition_of_node, condition_of_run
from federation.errors import RemoteProtocolError
from federation.messages import MetricsReport, NodeOutcome, NodeStatus, RoundResult, RunState, parse

SHOWN_ROUNDS = 12
"""What fits beside the rest on a terminal of 40 lines."""

BARS = "▁▂▃▄▅▆▇█"
RUN_COLOURS = {
    RunCondition.PAUSED: "yellow",
    RunCondition.WAITING: "magenta",
    RunCondition.TRAINING: "blue",
    RunCondition.EVALUATING: "blue",
    RunCondition.FINISHED: "green",
    RunCondition.STOPPED: "bright_black",
    RunCondition.FAILED: "red",
}
NODE_COLOURS = {
    NodeCondition.OFFLINE: "red",
    NodeCondition.SILENT: "yellow",
    NodeCondition.UNFIT: "magenta",
    NodeCondition.ONLINE: "green",
}
"""As on the Grafana pages, as near as a terminal's colours come."""


@dataclass(slots=True, kw_only=True)
class WatchState:
    """The last word on everything of one run."""

    run: str
    state: RunState | None = None
    statuses: dict[str, NodeStatus] = field(default_factory=dict)
    results: dict[int, RoundResult] = field(default_factory=dict)
    figures: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """Node -> measurement (and engine) -> the last fields."""
    num_ignored: int = 0
    """Messages that are not of the protocol."""
    monotonic: Callable[[], float] = time.monotonic
    heard_at: dict[str, float] = field(default_factory=dict)
    """Node -> when it last reported something."""

    def take(self, topic: str, payload: bytes) -> None:
        """Take in one message; what does not parse is counted and ignored."""
        if not payload:
            return
        try:
            parsed = topics.parse_topic(topic)
            match parsed:
                case topics.StateTopic(run=self.run):
                    self.state = parse(RunState, payload)
                case topics.StatusTopic(run=self.run):
                    self.statuses[parsed.node] = parse(NodeStatus, payload)
                case topics.ResultTopic(run=self.run):
                    self.results[parsed.round_number] = parse(RoundResult, payload)
                case topics.MetricsTopic(run=self.run):
                    self._take_report(parsed.node, parse(MetricsReport, payload))
        except RemoteProtocolError:
            self.num_ignored += 1

    @property
    def has_ended(self) -> bool:
        """Whether the run has."""
        return self.state is not None and condition_of_run(self.state).has_ended

    def condition_of(self, node: str) -> NodeCondition:
        """Return what state a node is in."""
        now = self.monotonic()
        return condition_of_node(self.statuses[node], silent_seconds=now - self.heard_at.get(node, now))

    def to_json(self) -> dict[str, Any]:
        """Return everything as one JSON document."""
        rounds = [self.results[number].model_dump(mode="json") for number in sorted(self.results)]
        return {
            "run": self.run,
            "state": {**self.state.model_dump(mode="json"), "state": condition_of_run(self.state).word} if self.state else None,
            "nodes": [{**self.statuses[n].model_dump(mode="json"), "state": self.condition_of(n).word} for n in sorted(self.statuses)],
            "rounds": rounds,
            "figures": self.figures,
        }

    def render(self) -> RenderableType:
        """Return the screen."""
        parts: list[RenderableType] = [self._head(), self._rounds(), self._nodes()]
        if any(name.startswith("inference") for known in self.figures.values() for name in known):
            parts.append(self._latencies())
        return Group(*parts)

    def _take_report(self, node: str, report: MetricsReport) -> None:
        self.heard_at[node] = self.monotonic()
        known = self.figures.setdefault(node, {})
        for point in report.points:
            name = f"inference {point.tags.get('engine', '')}" if point.measurement == "inference" else point.measurement
            known[name] = dict(point.fields)

    def _head(self) -> RenderableType:
        state = self.state
        if state is None:
            return Panel(f"waiting for run {self.run} to appear on the broker", title="FedMQ", border_style="yellow")
        condition = condition_of_run(state)
        colour = RUN_COLOURS[condition]
        scores = [result.evaluation.accuracy for _, result in sorted(self.results.items()) if result.evaluation]
        best = f"   best {max(scores):.4f}" if scores else ""
        line = Text.assemble(
            (condition.word, f"bold {colour}"), f"   round {state.round_number} of {state.num_rounds}   {state.method}", best
        )
        if state.reason:
            line.append(f"   {state.reason}", style="dim")
        done = max(self.results, default=0)
        body = Table.grid()
        body.add_row(line)
        body.add_row(ProgressBar(total=state.num_rounds, completed=done, width=60))
        body.add_row(f"accuracy {sparkline(scores)}")
        if self.results and (told := setback_sentence(self.results[done])):
            body.add_row(Text(told, style="red"))
        return Panel(body, title=f"FedMQ: run {self.run}", border_style=colour)

    def _rounds(self) -> RenderableType:
        table = Table(title="rounds", title_justify="left", box=box.SIMPLE_HEAD, expand=True)
        for column in ("round", "accuracy", "F1 macro", "AUC", "loss", "accepted", "rejected", "discarded", "train s", "seconds", "MB up"):
            table.add_column(column, justify="right")
        for number in sorted(self.results)[-SHOWN_ROUNDS:]:
            result = self.results[number]
            scores = result.evaluation
            table.add_row(
                str(number),
                *(_figure(getattr(scores, name, None), ".4f") for name in ("accuracy", "f1_macro", "auc", "loss")),
                _counted(result.accepted, "green"),
                _counted(result.rejected, "red"),
                _counted(result.discarded, "yellow"),
                f"{result.phase_seconds.get('train', 0.0):.2f}",
                f"{result.seconds:.2f}",
                f"{result.bytes_up / 1e6:.2f}",
            )
        return table

    def _nodes(self) -> RenderableType:
        table = Table(title="nodes", title_justify="left", box=box.SIMPLE_HEAD, expand=True)
        table.add_column("node")
        table.add_column("state")
        for column in ("images", "weight", "distance", "loss", "images/s", "local accuracy", "cpu", "memory", "°C"):
            table.add_column(column, justify="right")
        last = self.results[max(self.results)].outcomes if self.results else []
        outcomes = {outcome.node: outcome for outcome in last}
        for node, status in sorted(self.statuses.items()):
            known = self.figures.get(node, {})
            train, device = known.get("train", {}), known.get("device", {})
            condition = self.condition_of(node)
            told = f": {status.problem}" if condition is NodeCondition.UNFIT else ""
            state = Text(condition.word + told, NODE_COLOURS[condition])
            table.add_row(
                node,
                state,
                str(status.num_examples or "-"),
                *_contribution(outcomes.get(node)),
                _figure(train.get("loss"), ".3f"),
                _figure(train.get("samples_per_second"), ",.0f"),
                _figure(train.get("validation_accuracy"), ".4f"),
                _figure(device.get("cpu"), ".0%"),
                _figure(device.get("memory_used"), ".0%"),
                _figure(device.get("temperature_celsius"), ".0f"),
            )
        return table

    def _latencies(self) -> RenderableType:
        table = Table(title="one image, by engine (ms)", title_justify="left", box=box.SIMPLE_HEAD, expand=True)
        table.add_column("node")
        table.add_column("engine")
        for column in ("p50", "p95", "p99", "images/s", "speed-up", "accuracy", "KB", "in use"):
            table.add_column(column, justify="right")
        for node, known in sorted(self.figures.items()):
            for name, figures in known.items():
                if not name.startswith("inference "):
                    continue
                kilobytes = figures["model_bytes"] / 1000 if "model_bytes" in figures else None
                table.add_row(
                    node,
                    name.removeprefix("inference "),
                    *(_figure(figures.get(key), ".3f") for key in ("p50_ms", "p95_ms", "p99_ms")),
                    _figure(figures.get("images_per_second"), ",.0f"),
                    _figure(figures.get("speedup"), ".2f"),
                    _figure(figures.get("accuracy"), ".4f"),
                    _figure(kilobytes, ",.0f"),
                    "yes" if figures.get("is_current") else "",
                )
        return table


def sparkline(values: Sequence[float]) -> str:
    """Return shares as a line of bars, the last sixty."""
    return "".join(BARS[min(len(BARS) - 1, max(0, int(value * len(BARS))))] for value in values[-60:])


def setback_sentence(result: RoundResult) -> str:
    """Return what an operator is told of a round's setback; empty where it had none."""
    if result.setback is None:
        return ""
    fall = f"round {result.round_number}: setback to {result.setback.accuracy:.4f}, the best was {result.setback.best_accuracy:.4f}"
    left_out = [outcome.node for outcome in result.outcomes if outcome.weight == 0]
    whom = f"left out: {', '.join(left_out)}" if left_out else "nobody found"
    return f"{fall}; {whom}" if result.aggregated else f"{fall}; {whom}: the model stays"


def _counted(count: int, style: str) -> Text:
    return Text(str(count), style=style if count else "dim")


def _contribution(outcome: NodeOutcome | None) -> tuple[Text, Text]:
    """Return weight and distance of a node's last update; red where the protection left it out, yellow where it was lowered."""
    if outcome is None or outcome.weight is None:
        return Text("-"), Text("-")
    style = "red" if outcome.weight == 0 else "yellow" if outcome.protection else ""
    return Text(str(outcome.weight), style=style), Text(_figure(outcome.distance, ".3g"), style=style)


def _figure(value: object, pattern: str) -> str:
    return format(value, pattern) if isinstance(value, (int, float)) else "-"
