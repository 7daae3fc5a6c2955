"""Writes `grafana/dashboards/*.json` and the alert rules; `--check` only says whether they are current."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from grafana.source import broker, compare_runs, edge_nodes, federation, onnx
from grafana.source.alerts import rules_file
from grafana.source.panels import Json

FOLDER = Path(__file__).resolve().parent.parent

NOTE = "# Written by `python -m grafana.source` from grafana/source/alerts.py. JSON, which is YAML too.\n"


def files() -> Mapping[Path, str]:
    """Return every generated file: path -> content."""
    pages: Mapping[str, Json] = {
        "federation": federation.build(),
        "edge-nodes": edge_nodes.build(),
        "onnx": onnx.build(),
        "compare-runs": compare_runs.build(),
        "broker": broker.build(),
    }
    contents = {FOLDER / "dashboards" / f"{name}.json": _text(page) for name, page in pages.items()}
    return contents | {FOLDER / "provisioning" / "alerting" / "rules.yaml": NOTE + _text(rules_file())}


def main() -> int:
    """Write the files, or compare them; return the exit status."""
    stale = [path for path, content in files().items() if not path.exists() or path.read_text(encoding="utf-8") != content]
    if "--check" in sys.argv[1:]:
        sys.stderr.write("".join(f"{path.relative_to(FOLDER.parent)} is not current: run python -m grafana.source\n" for path in stale))
        return 1 if stale else 0
    for path, content in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return 0


def _text(value: Json) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.exit(main())
