"""docs/run-files.md and the JSON Schema beside it, made from the settings: `python -m tests.cli.run_file_page` writes both anew."""

from __future__ import annotations

import json
from pathlib import Path

from fedmq.run_file_reference import json_schema, reference_page

PAGE = Path(__file__).resolve().parents[2] / "docs" / "run-files.md"
SCHEMA = PAGE.with_name("run-file.schema.json")


def page() -> str:
    """Return what the page must be."""
    return reference_page()


def schema() -> str:
    """Return what the schema's file must be."""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    SCHEMA.write_text(schema(), encoding="utf-8")
