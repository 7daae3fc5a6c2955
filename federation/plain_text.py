"""Foreign text made harmless: the one place that says what may reach a log line, a terminal or a page."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import TypeAlias

REPLACEMENT = "\ufffd"
"""One character for one, so that a text's length and its bounds stay as they were."""

ExceptionInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def printable(text: str) -> str:
    """Return a text without line breaks, terminal controls and marks of direction: each becomes a space or U+FFFD.

    A newline in a node's `problem` would write a log line of its own; ESC, a terminal's colours, title or clipboard.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else " " if character.isspace() else REPLACEMENT for character in text)


class LineFormatter(logging.Formatter):
    """Writes one line a record, whatever went into it; a traceback keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the record's line."""
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: ExceptionInfo) -> str:  # noqa: N802 - logging's name
        """Return a traceback."""
        return "\n".join(printable(line) for line in super().formatException(ei).split("\n"))
