"""The pages and rules are current, whole, and of the shape Grafana 12 reads."""

from __future__ import annotations

import copy
import inspect
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import alerting, barchart, dashboard, statetimeline, table, timeseries, xychart

from federation.condition import RUN_SILENT_SECONDS, NodeCondition, RunCondition
from federation.metric_schema import MEASUREMENTS, markdown_table
from grafana.source.__main__ import LANGUAGES, files
from grafana.source.alerts import ALERTS
from grafana.source.dashboard import UIDS
from grafana.source.fields import ALIVE, RUN_STATES
from grafana.source.queries import SILENT_SECONDS
from grafana.source.translation import seen_words
from tests.telemetry import influx_query
from tests.telemetry.grafana import ALERTING, DATABASES, FOLDER, PAGES, load, panels, provisioned, rules

HOURLY = {"device_hourly": "device", "broker_hourly": "broker"}
"""Measurements that the database makes of samples."""

FIELD_CONFIGS = {
    "timeseries": timeseries.FieldConfig,
    "table": table.FieldConfig,
    "xychart": xychart.FieldConfig,
    "barchart": barchart.FieldConfig,
    "state-timeline": statetimeline.FieldConfig,
}

every_page = pytest.mark.parametrize("page", PAGES)


@pytest.fixture(scope="module", autouse=True)
def models() -> None:
    """Let grafana-foundation-sdk know all panel kinds, and our queries."""
    plugins.register_default_plugins()
    influx_query.register()


@pytest.mark.parametrize("path", [pytest.param(path, id=f"{path.parent.name}/{path.name}") for path in files()])
def test_the_files_are_what_their_source_writes(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == files()[path], "run `python -m grafana.source`"


def test_there_are_six_pages_in_each_language_and_no_stray_file() -> None:
    for language in LANGUAGES:
        found = sorted((FOLDER / "dashboards" / language).iterdir())
        assert [path.stem for path in found] == sorted(PAGES)
        assert {load(page, language)["uid"] for page in PAGES} == set(UIDS.values())
    assert sorted(path.name for path in (FOLDER / "dashboards").iterdir()) == sorted(LANGUAGES)
    assert sorted(path.name for path in ALERTING.iterdir()) == ["contact-points.yaml", "rules.yaml"]


def lost(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """Yield where what was read back lacks something of ours; what is empty may be left out."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            if key in theirs:
                yield from lost(value, theirs[key], f"{path}/{key}")
            elif value not in (None, {}, [], "", False):
                yield f"{path}/{key}"
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from lost(one, other, f"{path}[{index}]")
    elif ours != theirs:
        yield path


def unmixed(page: dict[str, Any]) -> dict[str, Any]:
    """Return a page whose panels of several sources name one: by it the model chooses how a query is read."""
    page = copy.deepcopy(page)
    for panel in panels(page):
        if panel.get("datasource", {}).get("type") == "datasource":
            panel["datasource"] = panel["targets"][0]["datasource"]
    return page


def read_back(page: dict[str, Any]) -> Any:
    """Return a page as Grafana 12's models write it after they have read it."""
    return json.loads(JSONEncoder(sort_keys=True).encode(dashboard.Dashboard.from_json(page)))


@every_page
@pytest.mark.parametrize("language", LANGUAGES)
def test_grafanas_own_models_know_every_key_of_a_page(page: str, language: str) -> None:
    """Generated from Grafana 12's schemas by its makers: what they do not know they drop."""
    ours = unmixed(load(page, language))
    assert list(lost(ours, read_back(ours))) == []


def test_a_key_that_grafana_does_not_know_is_found() -> None:
    page = unmixed(load("federation"))
    page["panels"][0]["options"]["colourMode"] = "value"
    page["panels"][0]["targets"][0]["queri"] = "SELECT"
    page["panels"][6]["fieldConfig"]["defaults"]["custom"]["thickness"] = 3
    found = list(lost(page, read_back(page)))
    assert found == [
        "/panels[0]/options/colourMode",
        "/panels[0]/targets[0]/queri",
        "/panels[6]/fieldConfig/defaults/custom/thickness",
    ]


@every_page
def test_overrides_set_what_a_panel_has(page: str) -> None:
    # `min` and `max` are Python's own names: the model has `min_val` and `max_val`.
    parameters = inspect.signature(dashboard.FieldConfig).parameters
    common = {snake_of(name).removesuffix("_val") for name in parameters}
    for panel in panels(load(page)):
        own = FIELD_CONFIGS.get(panel["type"])
        custom = {snake_of(name) for name in inspect.signature(own).parameters} if own else set()
        for override in panel.get("fieldConfig", {}).get("overrides", []):
            for entry in override["properties"]:
                kind, _, name = entry["id"].rpartition(".")
                assert snake_of(name) in (custom if kind else common), (panel["title"], entry["id"])


def snake_of(name: str) -> str:
    """Return a name in snake case: the models' own."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def test_grafanas_own_models_know_every_key_of_a_rule() -> None:
    for rule in rules():
        read = json.loads(JSONEncoder().encode(alerting.Rule.from_json(rule)))
        assert list(lost(rule, read)) == [], rule["uid"]


def test_grafanas_own_models_know_contact_points_and_policy() -> None:
    content = provisioned("contact-points.yaml")
    for point in content["contactPoints"]:
        for receiver in point["receivers"]:
            read = json.loads(JSONEncoder().encode(alerting.ContactPoint.from_json(receiver)))
            assert list(lost(receiver, read)) == []
    [policy] = content["policies"]
    read = json.loads(JSONEncoder().encode(alerting.NotificationPolicy.from_json(policy)))
    # `orgId` is the file's own, and matchers are lists of three there.
    assert [entry for entry in lost(policy, read) if not entry.endswith(("orgId", "object_matchers[0]"))] == []
    names = {mute["name"] for mute in content["muteTimes"]}
    assert names == {"always", "always-not"}
    assert {receiver["receiver"] for receiver in policy["routes"]} == {point["name"] for point in content["contactPoints"]}


@every_page
def test_panels_have_places_of_their_own(page: str) -> None:
    content = load(page)
    found = list(panels(content))
    assert len({panel["id"] for panel in found}) == len(found)
    groups = [content["panels"], *(panel["panels"] for panel in content["panels"] if panel.get("panels"))]
    for group in groups:
        places = [panel["gridPos"] for panel in group]
        for place in places:
            assert place["x"] >= 0
            assert 0 < place["w"] <= 24 - place["x"]
            assert place["h"] > 0
        for one, other in itertools.combinations(places, 2):
            apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
            assert apart or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"], (one, other)


@every_page
def test_the_first_screen_is_state_number_and_trend(page: str) -> None:
    """Tiles three high in the first row, but on the page that compares; what is rarely looked at is collapsed."""
    content = load(page)
    first = [panel for panel in content["panels"] if panel["gridPos"]["y"] == 0]
    if page == "compare":
        return
    assert all(panel["gridPos"]["h"] == 3 for panel in first)
    assert sum(panel["gridPos"]["w"] for panel in first) == 24
    assert all(len(panel["title"]) <= 11 for panel in first) or page in {"onnx", "server"}
    if page not in {"runs", "onnx"}:
        assert first[0]["title"] == "State"


@every_page
def test_every_panel_that_can_be_empty_says_why(page: str) -> None:
    for panel in panels(load(page)):
        if panel["type"] in {"row", "text", "alertlist", "state-timeline"}:
            continue  # they say their own words
        assert panel["fieldConfig"]["defaults"]["noValue"], panel["title"]


@every_page
def test_wherever_a_state_is_drawn_it_has_a_word_and_a_colour(page: str) -> None:
    """With `mergeValues` and colour mode `thresholds` Grafana ignores the mappings of a timeline."""
    for panel in panels(load(page)):
        options, config = panel.get("options", {}), panel.get("fieldConfig", {"defaults": {}})
        if options.get("mergeValues"):
            assert config["defaults"]["color"]["mode"] == "fixed"
            assert config["defaults"]["mappings"]
        for override in config.get("overrides", []):
            if override["matcher"]["options"] in {"State", "Served"}:
                mappings = next(entry["value"] for entry in override["properties"] if entry["id"] == "mappings")
                assert all(result["text"] and result["color"] for result in mappings[0]["options"].values())
        if panel["title"] == "State":
            assert config["defaults"]["mappings"] == [RUN_STATES]


def test_every_state_of_a_run_and_of_a_node_is_mapped() -> None:
    mapped = RUN_STATES["options"]
    for condition in RunCondition:
        alive, quiet = mapped[str(ALIVE + condition)]["text"], mapped[str(int(condition))]["text"]
        assert condition.word in alive.lower()
        assert quiet == (alive if condition.has_ended else "? Silent")
    [timeline] = [panel for panel in panels(load("devices")) if panel["type"] == "state-timeline"]
    nodes = timeline["fieldConfig"]["defaults"]["mappings"][0]["options"]
    assert {key: result["text"].split()[-1] for key, result in nodes.items()} == {
        **{str(int(condition)): condition.word for condition in NodeCondition},
        "-1": "unknown",
    }
    assert SILENT_SECONDS == RUN_SILENT_SECONDS


@every_page
def test_links_lead_to_pages_and_carry_what_they_can(page: str) -> None:
    content = load(page)
    assert [link["url"] for link in content["links"]] == [f"/d/{uid}" for uid in UIDS.values()]
    of_one_run = {f"/d/{UIDS[name]}" for name in ("federation", "devices", "onnx", "server")}
    carries = {link["url"] for link in content["links"] if link["includeVars"] and link["keepTime"]}
    assert carries == (of_one_run if f"/d/{content['uid']}" in of_one_run else set())
    for text in re.findall(r'"url": "(/d/[^"]+)"', json.dumps(content)):
        uid, _, query = text.removeprefix("/d/").partition("?")
        assert uid in UIDS.values()
        known = {entry["name"] for entry in load(next(name for name, value in UIDS.items() if value == uid))["templating"]["list"]}
        assert set(re.findall(r"var-(\w+)=", query)) <= known


@every_page
def test_variables_are_those_that_queries_use(page: str) -> None:
    content = load(page)
    names = [entry["name"] for entry in content["templating"]["list"]]
    texts = [target["query"] for panel in panels(content) for target in panel.get("targets", [])]
    texts += [entry["query"] for entry in content["templating"]["list"] if entry["type"] == "query"]
    titles = [panel["title"] for panel in panels(content)]
    used = {first or second for text in [*texts, *titles] for first, second in re.findall(r"\$\{(\w+)\}|\$([a-z]\w*)", text)}
    assert used - {"timeFilter", "__interval", "__from", "__to"} == set(names) - {"newest"} | ({"newest"} & set(names))
    if "run" in names:
        [run] = [entry for entry in content["templating"]["list"] if entry["name"] == "run"]
        assert (run["sort"], run["current"]) == (0, {}), "the newest run is first, and so chosen"


def asked() -> Iterator[tuple[str, str, str]]:
    """Yield every query of every page, variable and rule: where, text, database."""
    for page in PAGES:
        content = load(page)
        for panel in panels(content):
            for target in panel.get("targets", []):
                yield f"{page}: {panel['title']} {target['refId']}", target["query"], DATABASES[target["datasource"]["uid"]]
        for entry in content["templating"]["list"]:
            if entry["type"] == "query":
                yield f"{page}: ${entry['name']}", entry["query"], DATABASES[entry["datasource"]["uid"]]
    for rule in rules():
        for data in rule["data"]:
            if data["datasourceUid"] in DATABASES:
                yield f"{rule['uid']} {data['refId']}", data["model"]["query"], DATABASES[data["datasourceUid"]]


@pytest.mark.parametrize(("text", "database"), [pytest.param(text, database, id=name) for name, text, database in asked()])
def test_queries_ask_for_what_is_measured(text: str, database: str) -> None:
    names = re.findall(r'FROM "(\w+)"', text)
    assert names
    known = {"run", "strategy"}
    for name in names:
        measurement = MEASUREMENTS[HOURLY.get(name, name)]
        keep = "rounds" if name in HOURLY else measurement.keep
        assert database == ("fedmq" if keep == "rounds" else "fedmq_samples")
        known |= {*measurement.tags, *measurement.by_name}
    aliases = set(re.findall(r'AS "([^"]+)"', text))
    # `last("none")` asks for a field that is not there on purpose, see grafana/source/queries.py.
    assert set(re.findall(r'"([^"]+)"', text)) - set(names) - aliases - {"none"} <= known


def test_rules_are_complete() -> None:
    found = rules()
    assert len(found) == len(ALERTS) == 17
    assert len({rule["uid"] for rule in found}) == len(found)
    old = {"node-offline", "no-round", "accuracy-fell", "messages-dropped", "disk-node", "disk-server", "certificate"}
    assert {f"fedmq-{name}" for name in old} <= {rule["uid"] for rule in found}, "a uid that changes stops Grafana"
    ids = {page: {str(panel["id"]) for panel in panels(load(page))} for page in PAGES}
    for rule in found:
        refs = [entry["refId"] for entry in rule["data"]]
        assert len(set(refs)) == len(refs)
        assert rule["condition"] == refs[-1]
        math = rule["data"][-1]["model"]["expression"]
        assert set(re.findall(r"\$(\w+)", math)) <= set(refs)
        assert rule["annotations"]["summary"][-1] in ".?"
        assert rule["noDataState"] == "OK"
        page = next(name for name, uid in UIDS.items() if uid == rule["annotations"]["__dashboardUid__"])
        assert rule["annotations"]["__panelId__"] in ids[page]
    assert [rule["uid"] for rule in found if rule["execErrState"] != "OK"] == ["fedmq-database"]


def test_each_rule_leads_to_a_sentence_that_says_what_to_do() -> None:
    text = (FOLDER.parent / "docs" / "alerts.md").read_text(encoding="utf-8")
    headings = {re.sub(r"[^a-z0-9 ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^## (.+)$", text, re.M)}
    for rule in rules():
        page, _, anchor = rule["annotations"]["what_to_do"].partition("#")
        assert page == "docs/alerts.md"
        assert anchor in headings
    assert len(headings) == len(ALERTS) + 2, "where they go, and how soon"


def test_the_korean_pages_leave_no_word_in_english() -> None:
    words = LANGUAGES["ko"]
    missing = {text for page in PAGES for text in seen_words(load(page)) if re.search("[A-Za-z]{3}", text) and text not in words}
    assert missing == set()


def test_the_data_sources_hold_no_secret() -> None:
    text = (FOLDER / "provisioning" / "datasources" / "influxdb.yaml").read_text(encoding="utf-8")
    assert text.count("httpHeaderValue1: Token $__file{/run/secrets/influxdb_token}") == 2
    assert text.count("url: http://influxdb:8086") == 2
    assert "password" not in text.lower()
    found = dict(zip(re.findall(r"^\s+uid: (\S+)$", text, re.M), re.findall(r"^\s+dbName: (\S+)$", text, re.M), strict=True))
    assert found == DATABASES


def test_the_metrics_page_has_the_current_table() -> None:
    page = (FOLDER.parent / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert markdown_table() in page, "put the output of `fedmq metrics fields --markdown` into docs/metrics.md"


def test_compose_mounts_what_is_provisioned() -> None:
    compose = (FOLDER.parent / "docker-compose.yml").read_text(encoding="utf-8")
    provider = (FOLDER / "provisioning" / "dashboards" / "fedmq.yaml").read_text(encoding="utf-8")
    assert "./grafana/provisioning:/etc/grafana/provisioning:ro" in compose
    assert "source: ./grafana/dashboards/${FEDMQ_LANG:-en}\n        target: /etc/grafana/dashboards\n" in compose
    assert "path: /etc/grafana/dashboards" in provider
    assert "./influxdb:/docker-entrypoint-initdb.d:ro" in compose
    script = FOLDER.parent / "influxdb" / "first-start.sh"
    assert script.stat().st_mode & 0o111
    assert "samples=${bucket}_samples" in script.read_text(encoding="utf-8")


def test_compose_makes_runs_the_home_page_and_gives_every_contact_point_an_address() -> None:
    compose = (FOLDER.parent / "docker-compose.yml").read_text(encoding="utf-8")
    assert "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH: /etc/grafana/dashboards/runs.json" in compose
    asked_for = set(re.findall(r"\$(FEDMQ_\w+)", json.dumps(provisioned("contact-points.yaml"))))
    given = dict(re.findall(r"^      (FEDMQ_ALERT_\w+): (\S+)$", compose, re.M))
    assert asked_for == set(given)
    for name, value in given.items():
        # Empty, Grafana would not start; unset, nothing is sent.
        unset = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", re.sub(r"\$\{\w+:\+[^}]*\}", "", value))
        assert unset
        if name.endswith("_MUTED"):
            assert unset == "always"
            assert value.endswith(":+-not}")
