"""The peak resident size of processes, as the kernel keeps it (VmHWM): right however seldom it is read."""

from __future__ import annotations

from pathlib import Path

import psutil


def peak_bytes(process_id: int) -> int:
    """Return a process's peak resident size in bytes; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{process_id}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def peaks_of_family(process_id: int) -> dict[int, int]:
    """Return process -> its peak in bytes, of a process and everything under it; empty once it is gone."""
    try:
        family = [psutil.Process(process_id), *psutil.Process(process_id).children(recursive=True)]
    except psutil.NoSuchProcess:
        return {}
    return {process.pid: peak_bytes(process.pid) for process in family}
