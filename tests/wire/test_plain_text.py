"""Text from outside writes no log line, moves no cursor and turns no text around."""

from __future__ import annotations

import io
import logging

import pytest

from federation.messages import NodeStatus, parse
from federation.plain_text import LineFormatter, printable

FORGED = "no images\n2026-11-24 level=INFO logger=aggregator node=n1 accepted\r\x1b[2K\x1b]0;owned\x07\u202e"


def test_controls_become_one_harmless_character_each() -> None:
    clean = printable(FORGED)
    assert clean.isprintable()
    assert len(clean) == len(FORGED)
    assert printable("Düsseldorf 染色体 \N{SNOWMAN}") == "Düsseldorf 染色体 \N{SNOWMAN}"


def test_text_of_a_message_is_clean_once_it_is_parsed_and_is_read_again_as_it_is() -> None:
    status = parse(NodeStatus, NodeStatus.model_construct(node="n1", online=True, instance="i", problem=FORGED).model_dump_json().encode())
    assert status.problem == printable(FORGED)
    assert parse(NodeStatus, status.to_payload()) == status


def test_log_line_stays_one_line() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter("%(levelname)s %(message)s"))
    log = logging.Logger("test")
    log.addHandler(handler)
    log.warning("node=%s", FORGED)
    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()
    log.error("failed", exc_info=ValueError(FORGED))
    assert "\x1b" not in stream.getvalue()
    assert "ValueError" in stream.getvalue()


@pytest.mark.parametrize("text", ["", "plain", "a b"])
def test_plain_text_is_left_alone(text: str) -> None:
    assert printable(text) is text
