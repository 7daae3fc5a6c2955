"""Reads the shipped dashboards, and fills a query in as Grafana does before it sends it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent.parent / "grafana"
DASHBOARD_FILES = sorted((FOLDER / "dashboards").glob("*.json"))
RULES_FILE = FOLDER / "provisioning" / "alerting" / "rules.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class PanelQuery:
    """One query of a panel, a variable or an annotation."""

    dashboard: str
    panel: str
    text: str
    database: str

    def __str__(self) -> str:
        """Name it in a test's identifier."""
        return f"{self.dashboard}: {self.panel}"


def load(path: Path) -> dict[str, Any]:
    """Return a dashboard."""
    dashboard: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return dashboard


def databases() -> dict[str, str]:
    """Return data source uid -> database, as the provisioning file says."""
    text = (FOLDER / "provisioning" / "datasources" / "influxdb.yaml").read_text(encoding="utf-8")
    return dict(zip(re.findall(r"^\s+uid: (\S+)$", text, re.M), re.findall(r"^\s+dbName: (\S+)$", text, re.M), strict=True))


def rules() -> list[dict[str, Any]]:
    """Return the alert rules."""
    lines = RULES_FILE.read_text(encoding="utf-8").splitlines()
    content = json.loads("\n".join(line for line in lines if not line.startswith("#")))
    return [rule for group in content["groups"] for rule in group["rules"]]


def queries() -> Iterator[PanelQuery]:
    """Yield every query of every dashboard: panels, variables, annotations."""
    known = databases()
    for path in DASHBOARD_FILES:
        dashboard = load(path)
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                name = f"{panel['title']} {target['refId']}"
                yield PanelQuery(dashboard=path.stem, panel=name, text=target["query"], database=known[target["datasource"]["uid"]])
        for entry in dashboard["templating"]["list"]:
            yield PanelQuery(
                dashboard=path.stem, panel=f"${entry['name']}", text=entry["query"], database=known[entry["datasource"]["uid"]]
            )
        for entry in dashboard["annotations"]["list"]:
            yield PanelQuery(dashboard=path.stem, panel=entry["name"], text=entry["query"], database=known[entry["datasource"]["uid"]])


def alert_queries() -> Iterator[PanelQuery]:
    """Yield the query of every alert rule."""
    for rule in rules():
        data = rule["data"][0]
        yield PanelQuery(dashboard="alerts", panel=rule["uid"], text=data["model"]["query"], database=databases()[data["datasourceUid"]])


def filled(text: str, variables: Mapping[str, str | list[str]], *, since_ns: int, until_ns: int, interval: str = "2s") -> str:
    """Return a query with the macros and variables Grafana replaces; several values become a regular expression's alternatives."""
    text = text.replace("$timeFilter", f"time >= {since_ns // 10**6}ms and time <= {until_ns // 10**6}ms").replace("$__interval", interval)
    for name, value in variables.items():
        chosen = value if isinstance(value, str) else value[0] if len(value) == 1 else f"({'|'.join(value)})"
        text = re.sub(rf"\${name}\b", chosen, text)
    left = re.findall(r"\$[A-Za-z_]\w*", text)
    assert not left, f"nothing to fill {left} in with: {text}"
    return text
