"""Writes the pages, in each language, and the alert rules; `--check` only says whether they are current."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from grafana.source import compare, devices, federation, onnx, runs, server
from grafana.source.alerts import rules_file
from grafana.source.contact_points import contact_points_file
from grafana.source.fields import Json
from grafana.source.korean import KOREAN
from grafana.source.translation import translated

FOLDER = Path(__file__).resolve().parent.parent

NOTE = "# Written by `python -m grafana.source` from grafana/source/{}. JSON, which is YAML too.\n"

LANGUAGES: Mapping[str, Mapping[str, str]] = {"en": {}, "ko": KOREAN}
"""Compose mounts the pages of FEDMQ_LANG."""


def pages() -> Mapping[str, Json]:
    """Return the pages, by file name, in English."""
    built = (runs, federation, devices, onnx, server, compare)
    return {module.__name__.rpartition(".")[2]: module.build() for module in built}


def files() -> Mapping[Path, str]:
    """Return every generated file: path -> content."""
    english = pages()
    alerting = FOLDER / "provisioning" / "alerting"
    contents = {
        FOLDER / "dashboards" / language / f"{name}.json": _text(translated(page, words))
        for language, words in LANGUAGES.items()
        for name, page in english.items()
    }
    return contents | {
        alerting / "rules.yaml": NOTE.format("alerts.py") + _text(rules_file()),
        alerting / "contact-points.yaml": NOTE.format("contact_points.py") + _text(contact_points_file()),
    }


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
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.exit(main())
