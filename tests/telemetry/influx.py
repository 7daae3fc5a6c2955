"""A real InfluxDB for tests: Debian's 1.6.7, with the 2.x write interface in front of it.

1.6.7 is the same InfluxQL engine as 1.8 and answers the dashboards' queries; the one thing it lacks, `/api/v2/write`,
nginx rewrites to its `/write`.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

WAIT_SECONDS = 60.0

SAMPLES_RETENTION = "30d"
"""Of docker-compose.yml: what is older is dropped when it is written."""

INFLUXD = """
reporting-disabled = true
bind-address = "127.0.0.1:{rpc}"
[meta]
  dir = "{folder}/meta"
[data]
  dir = "{folder}/data"
  wal-dir = "{folder}/wal"
  index-version = "inmem"
  query-log-enabled = false
[monitor]
  store-enabled = false
[http]
  bind-address = "127.0.0.1:{http}"
  log-enabled = false
[logging]
  level = "error"
"""

NGINX = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log warn;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_max_body_size 64m;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port};
    location = /api/v2/write {{ rewrite ^ /write?db=$arg_bucket&precision=$arg_precision? break; proxy_pass http://127.0.0.1:{http}; }}
    location / {{ proxy_pass http://127.0.0.1:{http}; }}
  }}
}}
"""


class InfluxServer:
    """One InfluxDB on free loopback ports. `stop` and `start` keep its data and ports."""

    def __init__(self, folder: Path, influxd: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._influxd = influxd
        ports = _free_ports(3)
        self._http, self.port, rpc = ports
        values = {"folder": folder, "http": self._http, "port": self.port, "rpc": rpc}
        (folder / "influxd.conf").write_text(INFLUXD.format(**values), encoding="utf-8")
        (folder / "nginx.conf").write_text(NGINX.format(**values), encoding="utf-8")
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        """What a client of InfluxDB 2 is told."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start both processes and return once the database answers."""
        nginx = shutil.which("nginx") or "/usr/sbin/nginx"
        commands = [str(self._influxd), "run", "-config", f"{self._folder}/influxd.conf"], [nginx, "-c", f"{self._folder}/nginx.conf"]
        for command in commands:
            with (self._folder / "processes.log").open("ab") as log:
                self._processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        give_up_at = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < give_up_at:
            with suppress(OSError), urllib.request.urlopen(f"{self.url}/ping", timeout=5) as answer:  # noqa: S310 - our own server
                if answer.status == 204:
                    return
            time.sleep(0.05)
        raise AssertionError((self._folder / "processes.log").read_text(encoding="utf-8", errors="replace")[-2000:])

    def stop(self, *, kill: bool = False) -> None:
        """End both processes; `kill` as a power cut would."""
        for process in self._processes:
            process.kill() if kill else process.terminate()
            process.wait(WAIT_SECONDS)
        self._processes.clear()

    def create(self, *databases: str) -> None:
        """Make databases: what buckets are in InfluxDB 2. Those of samples keep them as long as the shipped one."""
        for name in databases:
            duration = f" WITH DURATION {SAMPLES_RETENTION}" if name.endswith("_samples") else ""
            self.query(f'CREATE DATABASE "{name}"{duration}', method="POST")

    def query(self, text: str, *, database: str = "", method: str = "GET") -> list[dict[str, Any]]:
        """Return the series of one InfluxQL statement, times in nanoseconds."""
        arguments = urllib.parse.urlencode({"q": text, "db": database, "epoch": "ns"})
        request = urllib.request.Request(f"{self.url}/query?{arguments}", method=method)  # noqa: S310 - our own loopback server
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                result = json.load(answer)["results"][0]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{text}: {error.read()[:500]!r}") from None
        assert "error" not in result, f"{text}: {result['error']}"
        series: list[dict[str, Any]] = result.get("series", [])
        return series

    def count(self, measurement: str, database: str) -> int:
        """Return how many points a measurement has: series by series, one row a point."""
        series = self.query(f'SELECT * FROM "{measurement}" GROUP BY *', database=database)  # noqa: S608
        return sum(len(entry["values"]) for entry in series)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for entry in sockets:
            entry.bind(("127.0.0.1", 0))
        return [int(entry.getsockname()[1]) for entry in sockets]
    finally:
        for entry in sockets:
            entry.close()
