"""Whether a process's loop still turns, judged from outside by the file it touches: the containers' health checks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

HEARTBEAT_NAME = "heartbeat"

PROBLEM_NAME = "problem"
"""Why a process that runs does nothing useful, as a sentence; such a process has no heartbeat."""

MAX_AGE_SECONDS = 60.0
"""The loop touches it every 5 s; a swapping Pi may take longer, a hung loop for ever."""


def describe_heartbeat(environ: Mapping[str, str], *, now: float) -> str:
    """Return what is wrong with the process of this environment, or an empty text.

    Args:
        environ: `os.environ`, for `FEDMQ_STATE_DIR`.
        now: seconds since 1970, the clock files are stamped with.
    """
    folder = environ.get("FEDMQ_STATE_DIR", "")
    if not folder:
        return "FEDMQ_STATE_DIR is not set: the process was not started as FedMQ's containers start it"
    problem = Path(folder) / PROBLEM_NAME
    if problem.exists():
        return problem.read_text(encoding="utf-8")
    path = Path(folder) / HEARTBEAT_NAME
    try:
        age = now - path.stat().st_mtime
    except OSError as error:
        return f"no heartbeat yet ({error.strerror}): {path}"
    return f"the loop has not turned for {age:.0f} s" if age > MAX_AGE_SECONDS else ""


def say_problem(folder: Path, problem: str) -> Path | None:
    """Return the heartbeat of a process without a problem; for one with a problem leave the sentence in its place, and return None."""
    note, heartbeat = folder / PROBLEM_NAME, folder / HEARTBEAT_NAME
    if not problem:
        if note.exists():  # a read-only disk refuses even to remove what is not there
            note.unlink()
        return heartbeat
    heartbeat.unlink(missing_ok=True)
    note.write_text(problem, encoding="utf-8")
    return None
