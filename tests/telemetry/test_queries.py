"""Every query of every page, asked of a real database for runs of every state and size: what a person then sees."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from aggregator.database_address import DatabaseAddress
from fedmq.journal_import import import_journal
from grafana.source.korean import KOREAN
from tests.requirements import require
from tests.telemetry.grafana import DATABASES, PAGES, Range, filled, load, panel_of, panels, seen, shown, variables_of
from tests.telemetry.influx import InfluxServer
from tests.telemetry.run_fixture import NUM_ROUNDS, RUN, MeasuredRun
from tests.telemetry.scripted_run import NAMES, SECOND, Script, age, play
from tests.telemetry.transformations import rows

pytestmark = [pytest.mark.slow, pytest.mark.database]

DAY = 86_400
SLOWEST_SECONDS = 3.0
"""Ten times what a query may take on an idle machine (300 ms); the tests' machine is shared."""

ENDED = 600
"""Runs that have ended did so this long ago."""


AHEAD = 1800
"""Runs that go on are recorded so much further: the home page asks as of the database's own now, whenever its test comes."""


def scripts(now_ns: int) -> list[Script]:
    """Return a run of every state: those that go on do so now."""

    def began(seconds: float) -> int:
        return now_ns - int(seconds * SECOND)

    short = 5 * 20
    rich: dict[str, Any] = {"num_classes": 8, "num_nodes": 6}
    return [
        Script(run="finished", started_ns=began(ENDED + short), **rich),
        Script(run="stopped", started_ns=began(ENDED + 60), num_done=3, ends="stopped"),
        Script(run="failed", started_ns=began(ENDED + 40), num_done=2, ends="failed"),
        Script(run="silent", started_ns=began(ENDED + 90), num_done=4, ends="silent", lasts_seconds=10),
        Script(run="waiting", started_ns=began(61), num_done=0, ends="waiting", lasts_seconds=60 + AHEAD),
        Script(run="paused", started_ns=began(100), num_done=2, ends="paused", lasts_seconds=60 + AHEAD),
        Script(
            run="training",
            started_ns=began(240),
            num_done=5,
            num_rounds=12,
            ends="training",
            lasts_seconds=140 + AHEAD,
            offline=frozenset({"pi-0"}),
            quiet=frozenset({"pi-1"}),
            unfit=frozenset({"pi-2"}),
            **rich,
        ),
        Script(run="two-classes", started_ns=began(ENDED + short), num_classes=2),
        Script(run="many-classes", started_ns=began(ENDED + short), num_classes=32, num_nodes=4),
        Script(run="old", started_ns=began(40 * DAY), round_seconds=1500, sample_seconds=60, **rich),
        Script(run="before", started_ns=began(ENDED + short), **rich),
        Script(run="demo", started_ns=began(2 * DAY)),
    ]


STATES = {
    "finished": "✓ Finished",
    "stopped": "■ Stopped",
    "failed": "✕ Failed",
    "silent": "? Silent",
    "waiting": "◌ Waiting",
    "paused": "‖ Paused",
    "training": "● Training",
    "two-classes": "✓ Finished",
    "many-classes": "✓ Finished",
    "old": "✓ Finished",
    "before": "✓ Finished",
}
"""Run -> what the pages say of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A database with runs."""

    server: InfluxServer
    now_ms: int
    demo: str
    """What the run `demo` is called there."""

    def range_of(self, run: str) -> Range:
        """Return the range of a run, as the link on the Runs page has it."""
        query = 'SELECT last("started_ms"), last("until") FROM "run_summary" WHERE "run" = \'{}\''
        [series] = self.server.query(query.format(run), database="fedmq")
        _, started_ms, until = series["values"][0]
        return Range(since_ms=int(started_ms), until_ms=self.now_ms if until == "now" else int(until))

    def see(self, page: str, title: str, run: str, language: str = "en", **chosen: str) -> list[dict[str, list[Any]]]:
        """Return what a panel draws for a run."""
        panel = next(panel for panel in panels(load(page, language)) if panel["title"] == title)
        span = self.range_of(run)
        variables = variables_of(page, self.server, {"run": run, **chosen}, span)
        return seen(panel, self.server, variables, span)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A database with a run of every state, imported as a person would."""
    folder = tmp_path_factory.mktemp("site")
    server = InfluxServer(folder / "influx", require("database"))
    server.start()
    try:
        server.create("fedmq", "fedmq_samples")
        address = DatabaseAddress(url=server.url, token="secret")
        now_ns = time.time_ns()
        demo = ""
        for script in scripts(now_ns):
            out_dir = play(folder, script)
            if script.run in {"before", "demo"}:
                age(out_dir)
            imported = import_journal([out_dir / "metrics.jsonl"], address)
            demo = imported.renamed.get("demo", demo)
        yield Site(server=server, now_ms=now_ns // 10**6, demo=demo)
    finally:
        server.stop()


def ask_all(site: Site, page: str, run: str, language: str = "en") -> float:
    """Ask every query of a page for a run; return the seconds of the slowest."""
    span = site.range_of(run)
    variables = variables_of(page, site.server, {"run": run} if page not in {"runs", "compare"} else {}, span)
    slowest = 0.0
    for panel in panels(load(page, language)):
        for target in panel.get("targets", []):
            text = filled(target["query"], variables, span.of_panel(panel))
            began = time.monotonic()
            series = site.server.query(text, database=DATABASES[target["datasource"]["uid"]])
            slowest = max(slowest, time.monotonic() - began)
            numbers = [value for entry in series for row in entry["values"] for value in row if isinstance(value, float)]
            assert all(math.isfinite(number) for number in numbers)
        frames = seen(panel, site.server, variables, span) if panel.get("targets") else []
        for frame in frames:
            assert len({len(values) for values in frame.values()}) <= 1, panel["title"]
    return slowest


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("run", STATES)
def test_every_query_of_every_page_answers(site: Site, page: str, run: str) -> None:
    if page in {"runs", "compare"} and run != "finished":
        return  # they show all runs at once
    assert ask_all(site, page, run) < SLOWEST_SECONDS


@pytest.mark.parametrize("run", STATES)
def test_the_state_is_the_same_on_every_page(site: Site, run: str) -> None:
    for page in ("federation", "devices", "server"):
        panel = panel_of(page, "State")
        [frame] = site.see(page, "State", run)
        assert shown(panel, "state", frame["state"][0]) == STATES[run]


def test_the_home_page_lists_every_run_newest_first_with_its_state(site: Site) -> None:
    panel = panel_of("runs", "Runs, newest first")
    [frame] = site.see("runs", "Runs, newest first", "finished")
    found = {row["Run"]: row for row in rows(frame)}
    assert {run: shown(panel, "State", row["State"]) for run, row in found.items()} == {**STATES, site.demo: "✓ Finished"}
    assert list(frame)[:7] == ["Run", "State", "Rounds", "Done", "Accuracy", "Worst class", "Its recall"]
    assert (found["training"]["Rounds"], found["training"]["Online"]) == ("5 of 12", "5 of 6")
    assert found["finished"]["Online"] is None, "how many nodes an ended run had online is no news"
    assert found["silent"]["Online"] is None
    assert found["training"]["Done"] == pytest.approx(5 / 12)
    assert found["finished"]["Worst class"] == "0 basophil"
    assert found["finished"]["Length"] == pytest.approx(100, abs=0.1)
    counts = {
        title: next(iter(frames), {"n": [0]})["n"][0]
        for title in ("Going on", "Waiting", "Silent", "Failed", "Runs in all")
        for frames in [site.see("runs", title, "finished")]
    }
    assert counts == {"Going on": 1, "Waiting": 2, "Silent": 1, "Failed": 1, "Runs in all": len(STATES) + 1}


def test_the_newest_run_is_chosen(site: Site) -> None:
    span = Range(since_ms=0, until_ms=site.now_ms)
    assert variables_of("federation", site.server, {}, span)["run"] == "waiting"
    assert variables_of("compare", site.server, {}, span)["dataset"] == "bloodmnist"
    assert len(variables_of("compare", site.server, {}, span)["runs"]) == 6


@pytest.mark.parametrize("run", ["finished", "before", "old"])
def test_the_matrices_are_the_runs(site: Site, run: str) -> None:
    """For a run of today, one recorded before there were labels, and one whose samples are gone."""
    labels = [f"{index} {name}" for index, name in enumerate(NAMES)]
    [matrix] = site.see("federation", "Confusion matrix", run)
    assert list(matrix) == ["true ↓   taken for →", *map(str, range(8))]
    assert matrix["true ↓   taken for →"] == labels
    for index in range(8):
        row = [matrix[str(column)][index] for column in range(8)]
        assert sum(row) == pytest.approx(100)
        assert row[index] == pytest.approx(90, abs=1.01)
    [recall] = site.see("federation", "Recall of each class by round", run)
    assert list(recall) == ["class ↓   newest →", "5", "4", "3", "2", "1"]
    assert recall["class ↓   newest →"] == labels
    assert recall["5"][0] == pytest.approx(90)
    [classes] = site.see("federation", "Classes, worst first", run)
    first = next(row for row in rows(classes) if row["Class"] == "0 basophil")
    assert first == {"Class": "0 basophil", "Recall": 0.9, "Mostly taken for": "1 eosinophil", "How often": pytest.approx(0.1)}


@pytest.mark.parametrize(("run", "num_classes"), [("two-classes", 2), ("many-classes", 32)])
def test_few_and_many_classes_keep_their_order(site: Site, run: str, num_classes: int) -> None:
    [matrix] = site.see("federation", "Confusion matrix", run)
    width = 1 if num_classes < 11 else 2
    assert matrix["true ↓   taken for →"] == [f"{index:0{width}d}" for index in range(num_classes)]
    assert len(matrix) == num_classes + 1
    [recall] = site.see("federation", "Recall of each class by round", run)
    assert recall["class ↓   newest →"] == matrix["true ↓   taken for →"]


def test_what_a_run_waits_for_is_said(site: Site) -> None:
    notes = {}
    for run in STATES:
        frames = site.see("federation", "Waits for", run)
        notes[run] = [value for frame in frames for name in ("note", "silent since") for value in frame.get(name, [])]
    assert notes["waiting"] == ["2 more nodes"]
    assert notes["training"] == ["pi-5 to train"]
    assert notes["paused"] == ["by the operator"]
    assert notes["finished"] == ["all rounds done"]
    assert notes["failed"][0].startswith("5 rounds in a row")
    [since] = notes["silent"]
    assert since == pytest.approx(site.now_ms - ENDED * 1000, abs=30_000)


def test_a_figure_that_is_no_news_is_not_shown(site: Site) -> None:
    tile = panel_of("federation", "Time left")
    expected = {"training": (["5 of 6"], ["140"]), "silent": ([], []), "finished": (["–"], ["–"]), "paused": (["3 of 3"], ["–"])}
    for run, (nodes, left) in expected.items():
        frames = site.see("federation", "Nodes", run)
        assert [value for frame in frames for value in frame["nodes"]] == nodes
        frames = site.see("federation", "Time left", run)
        assert [shown(tile, "seconds_left", value) for frame in frames for value in frame["seconds_left"]] == left


def test_nodes_are_counted_and_shown_by_state(site: Site) -> None:
    counts = [frame["n"][0] for frame in site.see("devices", "Nodes", "training")]
    assert counts == [3, 1, 1, 1], "online, unfit, silent, offline"
    panel = panel_of("devices", "Every node, trouble first")
    [frame] = site.see("devices", "Every node, trouble first", "training")
    states = {row["Node"]: shown(panel, "State", row["State"]) for row in rows(frame)}
    assert states == {"pi-0": "✕ offline", "pi-1": "? silent", "pi-2": "! unfit", **{f"pi-{n}": "● online" for n in (3, 4, 5)}}
    assert list(frame)[:5] == ["Node", "State", "Last seen", "Temp", "Slowed"]
    by_node = {row["Node"]: row for row in rows(frame)}
    assert by_node["pi-0"]["CPU"] is None, "older than two minutes"
    assert by_node["pi-3"]["Training speed"] == 403.0
    assert sum(value for frame in site.see("devices", "Need a look", "training") for value in frame["n"]) == 0


def test_an_ended_runs_nodes_are_unknown_and_its_hours_are_kept(site: Site) -> None:
    panel = panel_of("devices", "Every node, trouble first")
    span = Range(since_ms=site.now_ms - 60_000, until_ms=site.now_ms)
    variables = variables_of("devices", site.server, {"run": "finished"}, span)
    [frame] = seen(panel, site.server, variables, span)
    assert {shown(panel, "State", value) for value in frame["State"]} == {"– unknown"}
    [hours] = site.see("devices", "Over the whole run", "old")
    assert sorted(hours["Node"]) == [f"pi-{index}" for index in range(6)]
    assert all(0.1 <= value <= 0.9 for value in hours["CPU"]), "an hour may have a single sample"
    assert all("CPU" not in frame for frame in site.see("devices", "Every node, trouble first", "old")), "its samples are gone"
    assert len(site.see("server", "Clients, hourly", "old")[0]["connected"]) >= 2


def test_onnx_figures_are_medians_that_rounds_agree_on(site: Site) -> None:
    [tile] = site.see("onnx", "ONNX Runtime is faster by", "finished")
    assert tile["median"][0] == pytest.approx(3.0, rel=0.05)
    [medians] = site.see("onnx", "One image: median over rounds", "finished")
    panel = panel_of("onnx", "One image: median over rounds")
    found = {shown(panel, "Node", row["Node"]): row for row in rows(medians)}
    assert set(found) == {"server", *(f"pi-{index}" for index in range(6))}
    assert {shown(panel, "Served", row["Served"]) for row in found.values()} == {"ONNX"}
    assert found["pi-0"]["PyTorch"] == pytest.approx(3.0, rel=0.05)
    assert found["server"]["int8"] is None
    [against] = site.see("onnx", "Against PyTorch: speed-up, its spread over rounds, predictions", "finished")
    row = next(row for row in rows(against) if row["Node"] == "pi-1")
    assert row["ONNX ×"] == pytest.approx(3.0, rel=0.05)
    assert 0 < row["ONNX spread"] < 0.1
    assert row["Rounds"] == 5
    # Two rounds can't tell a loaded measurement.
    assert site.see("onnx", "ONNX Runtime is faster by", "failed") == []


def test_runs_are_compared_by_round(site: Site) -> None:
    span = Range(since_ms=0, until_ms=site.now_ms)
    variables = variables_of("compare", site.server, {"runs": "(finished|stopped|many-classes)"}, span)
    [side] = seen(panel_of("compare", "Side by side"), site.server, variables, span)
    found = {row["Run"]: row for row in rows(side)}
    assert set(found) == {"finished", "stopped", "many-classes"}
    assert found["finished"]["reached"] == 4
    assert found["finished"]["Best"] == pytest.approx(0.9)
    [curve] = seen(panel_of("compare", "Accuracy by round"), site.server, variables, span)
    assert curve["round"] == [1, 2, 3, 4, 5]
    assert curve["stopped"][2:] == [pytest.approx(0.7), None, None]


def test_a_run_that_was_once_called_demo_has_a_name_of_its_own(site: Site) -> None:
    assert site.demo.startswith("demo-20")


@pytest.mark.parametrize("page", PAGES)
def test_the_korean_pages_ask_and_show_the_same(site: Site, page: str) -> None:
    run = "training"
    ask_all(site, page, run, "ko")
    span = site.range_of(run)
    variables = variables_of(page, site.server, {"run": run} if page not in {"runs", "compare"} else {}, span)
    for english, korean in zip(panels(load(page)), panels(load(page, "ko")), strict=True):
        if english["type"] != "table":
            continue
        ours = seen(english, site.server, variables, span)
        theirs = seen(korean, site.server, variables, span)
        expected = [[name if name in STATES else KOREAN.get(name, name) for name in frame] for frame in ours]
        assert expected == [list(frame) for frame in theirs], english["title"]
        assert [list(frame.values()) for frame in ours] == [list(frame.values()) for frame in theirs]


def test_a_database_without_a_run_says_nothing_wrong(influx: InfluxServer) -> None:
    """Before the first run: no error, and each panel's own sentence."""
    influx.create("fedmq", "fedmq_samples")
    span = Range(since_ms=0, until_ms=time.time_ns() // 10**6)
    for page in PAGES:
        variables = variables_of(page, influx, {}, span)
        for panel in panels(load(page)):
            assert [frame for frame in seen(panel, influx, variables, span) if any(frame.values())] == [] if panel.get("targets") else True


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A database with one run of 500 rounds, 50 nodes and 32 classes that ends now."""
    folder = tmp_path_factory.mktemp("large")
    server = InfluxServer(folder / "influx", require("database"))
    server.start()
    try:
        server.create("fedmq", "fedmq_samples")
        now_ns = time.time_ns()
        num_rounds, seconds = 500, 20
        script = Script(
            run="large",
            started_ns=now_ns - (num_rounds * seconds + 10) * SECOND,
            num_rounds=num_rounds,
            num_nodes=50,
            num_classes=32,
            round_seconds=seconds,
            sample_seconds=20,
            has_local_classes=False,
        )
        out_dir = play(folder, script)
        import_journal([out_dir / "metrics.jsonl"], DatabaseAddress(url=server.url, token="secret"))
        yield Site(server=server, now_ms=now_ns // 10**6, demo="")
    finally:
        server.stop()


def test_five_hundred_rounds_and_fifty_nodes_answer(large: Site, record_property: Any) -> None:
    for page in PAGES:
        slowest = ask_all(large, page, "large")
        record_property(f"slowest_{page}_seconds", slowest)
        assert slowest < SLOWEST_SECONDS, page
    [recall] = large.see("federation", "Recall of each class by round", "large")
    assert 10 <= len(recall) - 1 <= 12, "one column a tenth of the run"
    [frame] = large.see("devices", "Every node, trouble first", "large")
    assert len(frame["Node"]) == 50


@pytest.mark.mosquitto
def test_the_pages_show_a_real_runs_summary(measured: MeasuredRun) -> None:
    """Three node processes on a real broker, through the forwarder."""
    final, rounds_done = measured.summary["final"], measured.summary["rounds"]
    site = Site(server=measured.server, now_ms=measured.until_ns // 10**6, demo="")
    for page in PAGES:
        ask_all(site, page, RUN)
    [accuracy] = site.see("federation", "Accuracy by round", RUN)
    assert accuracy["test accuracy"] == [entry["accuracy"] for entry in rounds_done]
    [matrix] = site.see("federation", "Confusion matrix", RUN)
    for index, row in enumerate(final["confusion_matrix"]):
        assert [matrix[str(column)][index] for column in range(10)] == pytest.approx([100 * count / sum(row) for count in row])
    [state] = site.see("federation", "State", RUN)
    assert shown(panel_of("federation", "State"), "state", state["state"][0]) == "✓ Finished"
    [notes] = site.see("federation", "Waits for", RUN)
    assert notes["note"] == ["all rounds done"]
    [updates] = site.see("federation", "Updates of each node", RUN)
    assert updates["Accepted"] == [NUM_ROUNDS] * 3
    [engines] = site.see("onnx", "One image: median over rounds", RUN)
    assert sorted(engines["Node"]) == ["aggregator", "node-0", "node-1", "node-2"]
    [events] = site.see("federation", "What happened", RUN)
    assert any("run finished" in text for text in events["Event"])


def test_every_point_of_a_real_run_is_in_the_database_once(measured: MeasuredRun) -> None:
    import json

    lines = [json.loads(line) for line in (measured.out_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for name in {line["measurement"] for line in lines}:
        stored = max(measured.server.count(name, database) for database in ("fedmq", "fedmq_samples"))
        assert stored == sum(line["measurement"] == name for line in lines), name
