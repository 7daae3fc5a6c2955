"""Reads the shipped pages and rules, and does what Grafana does: fills queries in, asks them, and names their answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.telemetry.influx import InfluxServer
from tests.telemetry.transformations import Frame, frame_of_table, frames_of_series, transformed

FOLDER = Path(__file__).resolve().parent.parent.parent / "grafana"
PAGES = ("runs", "federation", "devices", "onnx", "server", "compare")
ALERTING = FOLDER / "provisioning" / "alerting"
DATABASES = {"fedmq": "fedmq", "fedmq-samples": "fedmq_samples"}
"""Data source -> database; a test compares them with the provisioning file."""


PANEL_PIXELS = 900
"""Width of half a page on a common screen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A chosen time, in milliseconds since 1970."""

    since_ms: int
    until_ms: int
    interval: str = "10s"

    def of_panel(self, panel: Mapping[str, Any]) -> Range:
        """Return the range with the step that Grafana chooses for a panel: a dot a pixel, but none shorter than the panel's own."""
        own = panel.get("interval", "1s")
        seconds = max(int(own[:-1]) * {"s": 1, "m": 60}[own[-1]], (self.until_ms - self.since_ms) // 1000 // PANEL_PIXELS)
        return replace(self, interval=f"{seconds}s")


def load(page: str, language: str = "en") -> dict[str, Any]:
    """Return a page."""
    dashboard: dict[str, Any] = json.loads((FOLDER / "dashboards" / language / f"{page}.json").read_text(encoding="utf-8"))
    return dashboard


def panels(page: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every panel of a page, those of collapsed rows too."""
    for panel in page["panels"]:
        yield panel
        yield from panel.get("panels", ())


def panel_of(page: str, title: str) -> dict[str, Any]:
    """Return the first panel of a title."""
    return next(panel for panel in panels(load(page)) if panel["title"] == title)


def provisioned(name: str) -> dict[str, Any]:
    """Return a provisioning file of alerting: JSON below a line of comment."""
    lines = (ALERTING / name).read_text(encoding="utf-8").splitlines()
    content: dict[str, Any] = json.loads("\n".join(line for line in lines if not line.startswith("#")))
    return content


def rules() -> list[dict[str, Any]]:
    """Return the alert rules."""
    return [rule for group in provisioned("rules.yaml")["groups"] for rule in group["rules"]]


def filled(text: str, variables: Mapping[str, str | list[str]], chosen: Range) -> str:
    """Return a query with the macros and variables that Grafana replaces; several values become a regular expression."""
    text = text.replace("$timeFilter", f"time >= {chosen.since_ms}ms and time <= {chosen.until_ms}ms").replace(
        "$__interval", chosen.interval
    )
    known = {**variables, "__from": str(chosen.since_ms), "__to": str(chosen.until_ms)}

    def value(found: re.Match[str]) -> str:
        named = known[found[1] or found[2]]
        return named if isinstance(named, str) else f"({'|'.join(named)})" if len(named) != 1 else named[0]

    # A lone `$` ends a regular expression.
    return re.sub(r"\$\{(\w+)\}|\$([A-Za-z_]\w*)", value, text)


def variables_of(page: str, server: InfluxServer, chosen: Mapping[str, str], time: Range) -> dict[str, str | list[str]]:
    """Return a page's variables: what was chosen, else what Grafana chooses, the first, or all of several."""
    found: dict[str, str | list[str]] = {}
    for variable in load(page)["templating"]["list"]:
        name = variable["name"]
        if name in chosen:
            found[name] = chosen[name]
        elif variable["type"] == "custom":
            found[name] = variable["current"]["value"]
        else:
            options = options_of(variable, server, found, time)
            found[name] = options if variable["multi"] else next(iter(options), "")
    return found


def options_of(variable: Mapping[str, Any], server: InfluxServer, known: Mapping[str, str | list[str]], time: Range) -> list[str]:
    """Return the values of a variable, in order, each once: of its answer's first column that is not the time."""
    series = server.query(filled(variable["query"], known, time), database=DATABASES[variable["datasource"]["uid"]])
    values = [row[1] for entry in series for row in entry["values"] if row[1] is not None]
    options = [str(int(value)) if isinstance(value, float) else str(value) for value in values]
    unique = list(dict.fromkeys(options))
    return sorted(unique) if variable["sort"] == 1 else unique


def answers(panel: Mapping[str, Any], server: InfluxServer, variables: Mapping[str, str | list[str]], time: Range) -> list[Frame]:
    """Return what a panel's queries answer, before its transformations."""
    frames: list[Frame] = []
    for target in panel["targets"]:
        text = filled(target["query"], variables, time.of_panel(panel))
        series = server.query(text, database=DATABASES[target["datasource"]["uid"]])
        if target["resultFormat"] == "table":
            frames += [frame_of_table(series)] if series else []
        else:
            frames += frames_of_series(series, target["alias"])
    return frames


def seen(panel: Mapping[str, Any], server: InfluxServer, variables: Mapping[str, str | list[str]], time: Range) -> list[Frame]:
    """Return what a panel draws: its answers, transformed."""
    return transformed(answers(panel, server, variables, time), panel["transformations"])


def shown(panel: Mapping[str, Any], column: str, value: object) -> str:
    """Return the words that a value is shown as, by the mappings of its column or of the panel."""
    found = panel["fieldConfig"]["defaults"].get("mappings", [])
    for override in panel["fieldConfig"]["overrides"]:
        if override["matcher"]["options"] == column:
            found = next((entry["value"] for entry in override["properties"] if entry["id"] == "mappings"), found)
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    for mapping in found:
        if mapping["type"] == "value" and text in mapping["options"]:
            return str(mapping["options"][text]["text"])
        if mapping["type"] == "special" and (value is None if mapping["options"]["match"] == "null" else value == ""):
            return str(mapping["options"]["result"]["text"])
    return text
