"""docs/failures.md names a test for everything it promises; each must exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.faults.protocol_step import KINDS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "failures.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[a-z_/]+\.py)::(test_\w+)`", PAGE)))
FAILURES = re.findall(r"^### ([^\n]+)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_named_test_exists(file: str, name: str) -> None:
    path = ROOT / file
    assert path.exists()
    assert re.search(rf"^def {name}\(", path.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize(("failure", "text"), FAILURES, ids=[failure for failure, _ in FAILURES])
def test_every_failure_says_what_happens_what_is_seen_and_what_shows_it(failure: str, text: str) -> None:
    parts = re.findall(r"^(Then|Seen|Shown by): \S", text, re.MULTILINE)
    assert parts == ["Then", "Seen", "Shown by"], failure
    assert "::test_" in text.partition("Shown by: ")[2]


def test_page_is_linked_and_its_steps_are_steps() -> None:
    for page in ("README.md", "docs/architecture.md"):
        assert "failures.md" in (ROOT / page).read_text(encoding="utf-8")
    steps = re.findall(r"`(?:before|after|received):([a-z-]+):\d`", PAGE)
    assert steps
    assert {*steps} <= {*KINDS}
