"""`fedmq doctor`: what would stop a run on this machine, and what to do about each."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import psutil
import typer

from federation import topics
from federation.broker_address import BrokerAddress
from federation.chunks import DEFAULT_CHUNK_BYTES
from federation.errors import DataError, FedMQError, SettingsError
from federation.messages import RunState, parse
from federation.settings import MIN_PRIVATE_NODES, DataSettings
from fedmq import console
from fedmq.console import EXIT_FAILED, JsonOption, print_json, print_table
from fedmq.observer import read_retained
from fedmq.options import CommandEnvironment, HostOption, PortOption, command_environment

MIN_FREE_BYTES = 1 << 30
"""A Pi's system, its logs and one large model fit in this."""

MIN_MEMORY_BYTES = 1 << 30
"""torch alone takes 300 MB; below this Linux starts to kill processes while training."""

EARLIEST_YEAR = 2026
"""This version's year: a clock before it was never set, and TLS refuses every certificate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found."""

    check: str
    verdict: Literal["ok", "warning", "failed"]
    found: str
    advice: str = ""


def doctor(
    *,
    host: HostOption = None,
    port: PortOption = None,
    data: Annotated[str | None, typer.Option(help="Images to look for; default FEDMQ_DATA.")] = None,
    no_broker: Annotated[bool, typer.Option("--no-broker", help="Leave the broker out.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check this machine: broker, clock, disk, memory, CPU, torch, data. Exit status 1 when a check failed."""
    findings = examine(host=host, port=port, data=data or os.environ.get("FEDMQ_DATA") or None, with_broker=not no_broker)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        rows = [(finding.check, finding.verdict, finding.found) for finding in findings]
        print_table("doctor", ("check", "verdict", "found"), rows)
        for finding in findings:
            if finding.advice:
                console.out.print(f"{finding.check}: {finding.advice}", markup=False)
    if any(finding.verdict == "failed" for finding in findings):
        raise typer.Exit(EXIT_FAILED)


def examine(*, host: str | None, port: int | None, data: str | None, with_broker: bool) -> list[Finding]:
    """Return what every check found, in the order a user should mend them."""
    try:
        environment = command_environment(broker_host=host, broker_port=port)
    except SettingsError as error:
        return [Finding(check="settings", verdict="failed", found=str(error), advice="correct these variables first")]
    checks: list[Callable[[], Finding]] = [_python, _cpu, _memory, lambda: _disk(Path.cwd()), _clock, _torch]
    if with_broker:
        checks.append(lambda: _broker(environment))
    if data is not None:
        checks.append(lambda: _data(data, environment))
    findings = [check() for check in checks]
    if with_broker and all(finding.verdict != "failed" for finding in findings if finding.check == "broker"):
        findings.append(_cohort(environment))
    return findings


def _python() -> Finding:
    bits = 64 if sys.maxsize > 2**32 else 32
    found = f"Python {platform.python_version()}, {bits} bit, {platform.machine()}"
    if bits == 32:
        return Finding(check="python", verdict="failed", found=found, advice="install a 64-bit system: PyTorch has no 32-bit build")
    return Finding(check="python", verdict="ok", found=found)


def _cpu() -> Finding:
    num_cores = os.cpu_count() or 1
    flags = _cpu_flags()
    wanted = {"aarch64": "asimddp", "x86_64": "avx2"}.get(platform.machine())
    found = f"{num_cores} cores, {'with' if wanted in flags else 'without'} {wanted}" if wanted else f"{num_cores} cores"
    if wanted and flags and wanted not in flags:
        advice = "int8 models will be slower than float32 ones here (docs/onnx.md)" if wanted == "asimddp" else "training will be slow"
        return Finding(check="cpu", verdict="warning", found=found, advice=advice)
    return Finding(check="cpu", verdict="ok", found=found)


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split(":", 1)[1].split()}


def _memory() -> Finding:
    available = psutil.virtual_memory().available
    found = f"{available / 2**30:.1f} GiB available"
    if available < MIN_MEMORY_BYTES:
        return Finding(check="memory", verdict="warning", found=found, advice="close other programs, or add swap")
    return Finding(check="memory", verdict="ok", found=found)


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    found = f"{free / 2**30:.1f} GiB free at {folder}"
    if free < MIN_FREE_BYTES:
        return Finding(check="disk", verdict="failed", found=found, advice="free at least 1 GiB: updates and checkpoints are kept on disk")
    return Finding(check="disk", verdict="ok", found=found)


def _clock() -> Finding:
    now = datetime.now(tz=UTC)
    found = now.isoformat(timespec="seconds")
    if now.year < EARLIEST_YEAR:
        return Finding(
            check="clock", verdict="failed", found=found, advice="set the clock: TLS refuses certificates that seem not yet valid"
        )
    return Finding(check="clock", verdict="ok", found=found)


def _torch() -> Finding:
    start = time.monotonic()
    try:
        # Not by name: torch stays in federation's three modules, and here only its being there is asked.
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        return Finding(
            check="torch", verdict="failed", found=str(error), advice="run scripts/test once: it installs the CPU build of PyTorch"
        )
    return Finding(check="torch", verdict="ok", found=f"{torch.__version__}, imported in {time.monotonic() - start:.1f} s")


def _broker(environment: CommandEnvironment) -> Finding:
    try:
        address = BrokerAddress.from_environment(environment)
        connected, _ = read_retained(address, [], timeout_seconds=5.0)
    except (FedMQError, OSError) as error:
        advice = "start the broker, or set FEDMQ_BROKER_HOST and FEDMQ_BROKER_PORT (and FEDMQ_TLS_CA for 8883); --no-broker leaves it out"
        return Finding(check="broker", verdict="failed", found=str(error), advice=advice)
    limit = connected.max_packet_bytes
    found = f"{address!r} speaks MQTT 5, packets up to {limit or 'any number of'} bytes"
    if limit is not None and limit < DEFAULT_CHUNK_BYTES + 1024:
        advice = "chunks will be smaller and rounds slower: raise max_packet_size in the broker's configuration"
        return Finding(check="broker", verdict="warning", found=found, advice=advice)
    return Finding(check="broker", verdict="ok", found=found)


def _cohort(environment: CommandEnvironment) -> Finding:
    """Look at the runs that are on the broker."""
    try:
        _, messages = read_retained(BrokerAddress.from_environment(environment), [topics.state_filter_of_all_runs()], timeout_seconds=5.0)
    except (FedMQError, OSError) as error:
        return Finding(check="cohort", verdict="failed", found=str(error), advice="run it again: the broker was there a moment ago")
    small = {}
    for payload in messages.values():
        try:
            state = parse(RunState, payload)
            settings = state.run_settings()
        except FedMQError:
            continue
        is_active = state.phase not in {"finished", "stopped"}
        if is_active and settings is not None and settings.rounds.min_nodes < MIN_PRIVATE_NODES:
            small[state.run] = settings.rounds.min_nodes
    if not small:
        return Finding(check="cohort", verdict="ok", found=f"no run begins rounds with fewer than {MIN_PRIVATE_NODES} nodes")
    found = ", ".join(f"run {run} begins rounds with {number}" for run, number in sorted(small.items()))
    advice = f"set rounds.min_nodes to {MIN_PRIVATE_NODES}: with fewer, one node can work out another's update, and no median tells a liar"
    return Finding(check="cohort", verdict="warning", found=found, advice=advice)


def _data(name: str, environment: CommandEnvironment) -> Finding:
    from federation.data import load_dataset

    try:
        dataset = load_dataset(DataSettings(name=name), data_dir=environment.data_dir, cache_dir=environment.cache_dir, download=False)
    except DataError as error:
        return Finding(check="data", verdict="failed", found=str(error), advice="`fedmq data list` shows what can be used")
    return Finding(check="data", verdict="ok", found=f"{dataset.name}: {len(dataset.train)} training images, {dataset.num_classes} classes")
