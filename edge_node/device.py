"""The device's own figures: processor, memory, disk, heat, network. One sample takes about a millisecond."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import psutil

from federation.messages import MetricPoint
from federation.metric_types import NUM_CORE_FIELDS

SAMPLE_SECONDS = 5.0
"""A Pi's temperature moves by a degree in that time."""

THERMAL_ZONES = Path("/sys/class/thermal")

CORE_ZONES = ("cpu", "x86_pkg", "soc", "acpitz")
"""Parts of the names of zones that are near a processor: a Pi's is `cpu-thermal`."""

VCGENCMD_SECONDS = 2.0
"""It answers in 5 ms; a hung firmware must not hold the node up."""

THROTTLED_EVERY = 6
"""vcgencmd is a process of its own: asked once in so many samples."""

_UNDER_VOLTAGE, _CAPPED, _THROTTLED, _SOFT_LIMIT = (1 << bit for bit in range(4))
"""Bits of `vcgencmd get_throttled`; the same 16 bits higher: since boot (Raspberry Pi documentation)."""


class DeviceSampler:
    """Samples the device it runs on.

    Args:
        state_dir: on the file system whose space matters.
        certificate: this node's TLS certificate, whose expiry is reported; None without TLS.
    """

    def __init__(self, *, state_dir: Path, certificate: Path | None = None) -> None:
        self._state_dir = state_dir
        self._process = psutil.Process()
        self._zone = _hottest_zone(THERMAL_ZONES)
        self._vcgencmd = shutil.which("vcgencmd")
        self._expires_at = _expiry(certificate) if certificate is not None else None
        self._flags: dict[str, int] = {}
        self._num_samples = 0
        # The first call of each only sets the mark that the second measures from.
        psutil.cpu_percent(percpu=True)
        self._process.cpu_percent()

    def sample(self, time_ns: int) -> MetricPoint:
        """Return one `device` point.

        Args:
            time_ns: of the point, nanoseconds since 1970.
        """
        cores = [percent / 100 for percent in psutil.cpu_percent(percpu=True)]
        memory = psutil.virtual_memory()
        disk = psutil.disk_usage(str(self._state_dir))
        with self._process.oneshot():
            process_memory_bytes = self._process.memory_info().rss
            process_cpu = self._process.cpu_percent() / 100
        fields: dict[str, float | int] = {
            "cpu": sum(cores) / max(len(cores), 1),
            **{f"cpu_core_{index}": share for index, share in enumerate(cores[:NUM_CORE_FIELDS])},
            "load_1m": psutil.getloadavg()[0],
            "memory_used_bytes": memory.total - memory.available,
            "memory_used": 1 - memory.available / memory.total,
            "process_memory_bytes": process_memory_bytes,
            "process_cpu": process_cpu,
            "disk_used": disk.percent / 100,
            "disk_free_bytes": disk.free,
            **_network_bytes(),
            **self._throttling(),
        }
        temperature = _read_celsius(self._zone)
        if temperature is not None:
            fields["temperature_celsius"] = temperature
        if self._expires_at is not None:
            fields["certificate_days"] = (self._expires_at - time_ns / 1e9) / 86_400
        self._num_samples += 1
        return MetricPoint(measurement="device", time_ns=time_ns, fields=fields)

    def _throttling(self) -> Mapping[str, int]:
        if self._vcgencmd is not None and self._num_samples % THROTTLED_EVERY == 0:
            self._flags = read_throttling(self._vcgencmd)
        return self._flags


def read_throttling(vcgencmd: str) -> dict[str, int]:
    """Return what the Pi's firmware says of heat and voltage; empty where it says nothing."""
    try:
        result = subprocess.run(
            [vcgencmd, "get_throttled"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=VCGENCMD_SECONDS, check=True
        )
        flags = int(result.stdout.strip().removeprefix("throttled="), 16)
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}
    slowed = _CAPPED | _THROTTLED | _SOFT_LIMIT
    return {
        "under_voltage": int(bool(flags & _UNDER_VOLTAGE)),
        "throttled": int(bool(flags & slowed)),
        "throttled_since_boot": int(bool((flags >> 16) & slowed)),
    }


def _hottest_zone(folder: Path) -> Path | None:
    """Return the temperature file of the zone nearest the processor, the hottest where several are."""
    zones = []
    for zone in sorted(folder.glob("thermal_zone*")):
        celsius = _read_celsius(zone / "temp")
        if celsius is None:
            continue
        try:
            kind = (zone / "type").read_text(encoding="ascii", errors="replace").lower()
        except OSError:
            kind = ""
        zones.append((any(part in kind for part in CORE_ZONES), celsius, zone / "temp"))
    return max(zones)[2] if zones else None


def _read_celsius(path: Path | None) -> float | None:
    try:
        return int(path.read_text(encoding="ascii")) / 1000 if path is not None else None
    except (OSError, ValueError):
        return None


def _network_bytes() -> dict[str, int]:
    counters = [entry for name, entry in psutil.net_io_counters(pernic=True).items() if name != "lo"]
    return {
        "network_sent_bytes": sum(entry.bytes_sent for entry in counters),
        "network_received_bytes": sum(entry.bytes_recv for entry in counters),
    }


def _expiry(certificate: Path) -> float | None:
    """Return when a PEM certificate expires, seconds since 1970; None where the reader for it is not installed."""
    try:
        from cryptography import x509
    except ImportError:
        return None
    try:
        expires: datetime = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    except (OSError, ValueError):
        return None
    return expires.timestamp()
