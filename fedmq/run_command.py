"""`fedmq run`: an aggregator against a broker that exists already."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from federation.broker_address import BrokerAddress
from fedmq import console
from fedmq.console import EXIT_INTERRUPTED, JsonOption, print_json, sentences
from fedmq.live_line import LiveFeed, LiveLine, connect_to
from fedmq.options import HostOption, PasswordOption, PortOption, UserOption, check_out_dir, command_environment, load_settings
from fedmq.progress import RunProgress, read_summary

POLL_SECONDS = 0.2


def run(
    run_file: Annotated[Path, typer.Argument(help="The TOML run file.")],
    *,
    host: HostOption = None,
    port: PortOption = None,
    username: UserOption = None,
    password_file: PasswordOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; default out/RUN.")] = None,
    state: Annotated[Path | None, typer.Option(help="Folder for checkpoints; default OUT/state.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run from its checkpoint.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Lead a run over an existing broker; nodes join with `python -m edge_node`."""
    with sentences():
        settings = load_settings(run_file)
        folder = out or Path("out") / settings.run
        if not resume:
            check_out_dir(folder)
        environment = command_environment(broker_host=host, broker_port=port, broker_username=username, broker_password_file=password_file)
        variables = {
            "FEDMQ_BROKER_HOST": environment.broker_host,
            "FEDMQ_BROKER_PORT": str(environment.port),
            "FEDMQ_BROKER_USERNAME": environment.broker_username or "",
            "FEDMQ_BROKER_PASSWORD_FILE": str(environment.broker_password_file or ""),
            "FEDMQ_RUN_FILE": str(run_file),
            "FEDMQ_OUT_DIR": str(folder),
            "FEDMQ_STATE_DIR": str(state or folder / "state"),
            "FEDMQ_RESUME": "1" if resume else "0",
        }
        folder.mkdir(parents=True, exist_ok=True)
        line = LiveLine(run=settings.run, num_nodes=settings.rounds.min_nodes)
        onlooker = nullcontext() if as_json else LiveFeed(line, connect_to(BrokerAddress.from_environment(environment)), time.monotonic)
        with onlooker as feed:
            status = _lead(variables, folder, settings.num_rounds, is_shown=not as_json, live=feed.text if feed else None)
    if status:
        advice = "; continue the run with --resume" if status == EXIT_INTERRUPTED else ""
        console.err.print(f"the aggregator ended early{advice}; its log is {folder / 'aggregator.log'}", markup=False)
        raise typer.Exit(status)
    summary = read_summary(folder / "summary.json")
    from fedmq.figures import draw_curves

    draw_curves(summary, folder / "curves.png")
    if as_json:
        print_json(summary)
    else:
        console.print_summary(summary)


def _lead(variables: dict[str, str], folder: Path, num_rounds: int, *, is_shown: bool, live: Callable[[], str | None] | None) -> int:
    """Run the aggregator's process to its end; return its exit status."""
    with (folder / "aggregator.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "aggregator"],
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    before = {number: signal.signal(number, lambda *_: process.terminate()) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with RunProgress(folder, num_rounds, is_shown=is_shown, live=live) as progress:
            while process.poll() is None:
                progress.update()
                time.sleep(POLL_SECONDS)
            progress.update()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if process.returncode in {1, 2}:
        tail = (folder / "aggregator.log").read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
        console.err.print("\n".join(tail), markup=False)
    # Killed from outside, by the system short of memory perhaps: the checkpoint is good, so it can be continued.
    return process.returncode if process.returncode >= 0 else EXIT_INTERRUPTED
