"""What ends a process beside a signal: a thread that died. And what must not: a job nobody waits for."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from fedmq.figures import draw_curves
from tests.end_to_end.processes import WAIT_SECONDS, clean_environment

PROLOGUE = """
    import logging, threading, time
    from federation.ending import Ending
    from federation.process import Process, set_up_logging

    set_up_logging("INFO")
    ending = Ending(status=3)
    process = Process(ending)

    class Service:
        wake_at = None
        stopped = None

        def take(self, item):
            print("took", item, flush=True)
            self.stopped = item if item == "end" else None

    def fail():
        raise ValueError("a bug")
"""


def end_of(script: str, *, number: signal.Signals | None = None) -> tuple[int, str]:
    """Run a process; return its exit status and output. A signal is sent once it says `ready`."""
    text = textwrap.dedent(PROLOGUE) + textwrap.dedent(script)
    process = subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=clean_environment(), cwd=Path.cwd()
    )
    assert process.stdout is not None
    output = ""
    if number is not None:
        while "ready" not in (line := process.stdout.readline()):
            output += line
            assert process.poll() is None or line, output
        process.send_signal(number)
    rest, _ = process.communicate(timeout=WAIT_SECONDS)
    return process.returncode, output + rest


def test_thread_that_dies_ends_the_process_loudly_and_with_status_1() -> None:
    status, output = end_of(
        """
        threading.Thread(target=fail, name="forwarder").start()
        ending.run(lambda: process.run(Service(), time_passed=None) or 3)
        """
    )
    assert status == 1
    assert "event=thread_died thread='forwarder'" in output
    assert "ValueError: a bug" in output


def test_job_that_rounds_wait_for_ends_the_process_when_it_raises() -> None:
    """Or its round would hang for ever."""
    status, output = end_of("process.background(fail); ending.run(lambda: process.run(Service(), time_passed=None) or 0)")
    assert status == 1
    assert "event=thread_died thread='worker'" in output


def test_work_that_raises_ends_the_process_with_status_1() -> None:
    status, output = end_of("ending.run(fail)")
    assert status == 1
    assert "ValueError: a bug" in output


def test_job_that_nobody_waits_for_may_raise_and_the_next_one_is_done() -> None:
    status, output = end_of(
        """
        process.aside(fail)
        process.aside(lambda: "end")
        ending.run(lambda: process.run(Service(), time_passed=None) or 0)
        """
    )
    assert status == 0
    assert "job=failed count=1" in output
    assert "took end" in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_before_anything_has_begun_ends_the_process_at_once(number: signal.Signals) -> None:
    status, output = end_of("print('ready', flush=True); time.sleep(60)", number=number)
    assert (status, "Traceback" in output) == (3, False)


def test_service_that_hangs_is_cut_off() -> None:
    status, output = end_of(
        """
        class Hanging(Service):
            def take(self, item):
                print("ready", flush=True)
                time.sleep(60)

        process.put("begin")
        process.run(Hanging(), time_passed=None)
        """,
        number=signal.SIGTERM,
    )
    assert status == 3
    assert "event=cut_off" in output


def test_curves_of_a_run_that_was_stopped_before_its_first_round(tmp_path: Path) -> None:
    final: dict[str, object] = {"accuracy": None, "f1_macro": None, "f1_weighted": None, "class_accuracy": [], "confusion_matrix": []}
    summary = {"run": "r", "strategy": "fedavg", "data": "digits", "num_nodes": 3, "rounds": [], "final": final, "class_names": ["a", "b"]}
    draw_curves(summary, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 0
