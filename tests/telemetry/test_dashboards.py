"""The dashboards and rules are current, whole, and of the shape Grafana reads."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from federation.metric_schema import MEASUREMENTS
from grafana.source.__main__ import files
from grafana.source.alerts import ALERTS
from tests.telemetry.grafana import DASHBOARD_FILES, FOLDER, PanelQuery, alert_queries, databases, load, queries, rules

UNITS = {"short", "none", "percentunit", "percent", "s", "ms", "bytes", "Bps", "celsius", "sci"}
PANEL_TYPES = {"timeseries", "stat", "table", "text", "row", "state-timeline", "status-history", "xychart"}
KEYWORDS = {"time", "value"}


def dashboards() -> list[Any]:
    """Return every dashboard as a test parameter."""
    return [pytest.param(path, id=path.stem) for path in DASHBOARD_FILES]


@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in files()])
def test_the_files_are_what_their_source_writes(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == files()[path], "run `python -m grafana.source`"


def test_there_are_five_pages_and_no_stray_file() -> None:
    assert [path.stem for path in DASHBOARD_FILES] == ["broker", "compare-runs", "edge-nodes", "federation", "onnx"]
    assert len({load(path)["uid"] for path in DASHBOARD_FILES}) == 5
    assert {path for path in files() if path.parent.name == "dashboards"} == set(DASHBOARD_FILES)


@pytest.mark.parametrize("path", dashboards())
def test_panels_have_places_of_their_own(path: Path) -> None:
    panels = load(path)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
        assert place["w"] > 0
        assert place["h"] > 0
    for one, other in itertools.combinations([panel["gridPos"] for panel in panels], 2):
        apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert apart or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"], (one, other)


@pytest.mark.parametrize("path", dashboards())
def test_panels_say_what_one_sees(path: Path) -> None:
    dashboard = load(path)
    assert dashboard["panels"][0]["type"] == "text"
    assert len(dashboard["panels"][0]["options"]["content"]) > 100
    known = databases()
    for panel in dashboard["panels"]:
        assert panel["type"] in PANEL_TYPES
        if panel["type"] in {"text", "row"}:
            continue
        assert panel["title"]
        assert panel["description"].endswith(".")
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"] in UNITS
        assert defaults["noValue"]
        steps = defaults["thresholds"]["steps"]
        assert steps[0]["value"] is None
        values = [step["value"] for step in steps[1:]]
        assert values == sorted(values)
        assert panel["targets"]
        for target in panel["targets"]:
            assert target["datasource"]["type"] == "influxdb"
            assert target["datasource"]["uid"] in known
            assert target["rawQuery"] is True


@pytest.mark.parametrize("path", dashboards())
def test_variables_that_queries_use_are_there(path: Path) -> None:
    dashboard = load(path)
    names = {entry["name"] for entry in dashboard["templating"]["list"]}
    texts = [target["query"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    texts += [entry["query"] for entry in dashboard["annotations"]["list"]]
    used = {name for text in texts for name in re.findall(r"\$([a-z]\w*)", text)} - {"timeFilter"}
    repeated = {panel["repeat"] for panel in dashboard["panels"] if "repeat" in panel}
    assert used | repeated <= names
    assert "run" in names
    for entry in dashboard["templating"]["list"]:
        assert entry["type"] == "query"
        assert entry["refresh"] in {1, 2}


@pytest.mark.parametrize("path", dashboards())
def test_every_page_links_to_the_others_and_marks_events(path: Path) -> None:
    dashboard = load(path)
    [link] = dashboard["links"]
    assert set(link["tags"]) <= set(dashboard["tags"])
    assert link["includeVars"]
    assert link["keepTime"]
    marks = " ".join(entry["query"] for entry in dashboard["annotations"]["list"])
    for kind in ("round_opened", "node_lost", "aggregator_started"):
        assert kind in marks


@pytest.mark.parametrize("path", dashboards())
def test_grafanas_own_model_reads_the_page(path: Path) -> None:
    """Through the classes that Grafana Labs generates from its schema: what they do not know they would drop."""
    dashboard = load(path)
    read = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(dashboard)))
    for name in ("uid", "title", "tags", "schemaVersion", "time", "editable", "graphTooltip", "refresh"):
        assert read[name] == dashboard[name]
    assert len(read["panels"]) == len(dashboard["panels"])
    for ours, theirs in zip(dashboard["panels"], read["panels"], strict=True):
        assert theirs["type"] == ours["type"]
        assert theirs["gridPos"].items() >= ours["gridPos"].items()
        if "fieldConfig" in ours:
            expected = {name: value for name, value in ours["fieldConfig"]["defaults"].items() if value or value == 0}
            assert (
                theirs["fieldConfig"]["defaults"].items() >= {k: v for k, v in expected.items() if k not in {"mappings", "custom"}}.items()
            )
            assert len(theirs["targets"]) == len(ours["targets"])
    assert [entry["name"] for entry in read["templating"]["list"]] == [entry["name"] for entry in dashboard["templating"]["list"]]
    assert len(read["annotations"]["list"]) == len(dashboard["annotations"]["list"])


@pytest.mark.parametrize("query", [pytest.param(query, id=str(query)) for query in (*queries(), *alert_queries())])
def test_queries_ask_for_what_is_measured(query: PanelQuery) -> None:
    names = re.findall(r'FROM "(\w+)"', query.text)
    assert names
    for name in names:
        measurement = MEASUREMENTS[name]
        assert query.database == ("fedmq" if measurement.keep == "rounds" else "fedmq_samples")
        known = {"run", "strategy", *measurement.tags, *measurement.by_name}
        aliases = set(re.findall(r'AS "([^"]+)"', query.text))
        assert set(re.findall(r'"([^"]+)"', query.text)) - set(MEASUREMENTS) - aliases <= known


def test_rules_are_complete() -> None:
    found = rules()
    assert len(found) == len(ALERTS)
    assert len({rule["uid"] for rule in found}) == len(found)
    for rule in found:
        ids = [entry["refId"] for entry in rule["data"]]
        assert rule["condition"] in ids
        assert rule["data"][0]["datasourceUid"] in databases()
        assert rule["data"][0]["relativeTimeRange"]["from"] > 0
        for entry in rule["data"][1:]:
            assert entry["datasourceUid"] == "__expr__"
            assert entry["model"]["expression"] in ids
        assert rule["annotations"]["summary"].endswith(".")
        tags = {"run", *MEASUREMENTS[re.findall(r'FROM "(\w+)"', rule["data"][0]["model"]["query"])[0]].tags}
        assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= tags
    assert next(rule for rule in found if rule["uid"] == "fedmq-node-offline")["for"] == "5m"


def test_the_data_sources_hold_no_secret() -> None:
    text = (FOLDER / "provisioning" / "datasources" / "influxdb.yaml").read_text(encoding="utf-8")
    assert text.count("httpHeaderValue1: Token $__file{/run/secrets/influxdb_token}") == 2
    assert text.count("url: http://influxdb:8086") == 2
    assert "password" not in text.lower()


def test_the_metrics_page_has_the_current_table() -> None:
    from federation.metric_schema import markdown_table

    page = (FOLDER.parent / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert markdown_table() in page, "put the output of `fedmq metrics fields --markdown` into docs/metrics.md"


def test_compose_mounts_what_is_provisioned() -> None:
    compose = (FOLDER.parent / "docker-compose.yml").read_text(encoding="utf-8")
    provider = (FOLDER / "provisioning" / "dashboards" / "fedmq.yaml").read_text(encoding="utf-8")
    for mount in ("./grafana/provisioning:/etc/grafana/provisioning:ro", "./grafana/dashboards:/etc/grafana/dashboards:ro"):
        assert mount in compose
    assert "path: /etc/grafana/dashboards" in provider
    assert "./influxdb:/docker-entrypoint-initdb.d:ro" in compose
    script = FOLDER.parent / "influxdb" / "first-start.sh"
    assert script.stat().st_mode & 0o111
    assert "samples=${bucket}_samples" in script.read_text(encoding="utf-8")
    assert set(databases().values()) == {"fedmq", "fedmq_samples"}
