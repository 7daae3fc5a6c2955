"""One process of a legacy Flower federation that trains nothing; run by `benchmarks/flower_legacy.py` with Flower's own Python.

    flower_peer.py server PORT NUM_NODES NUM_ROUNDS MODEL_BYTES OUTPUT_FILE
    flower_peer.py client PORT

Imports nothing of FedMQ: it runs where only Flower is installed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import flwr
import numpy as np

MAX_MESSAGE_BYTES = 1 << 30


class NoTraining(flwr.client.NumPyClient):  # type: ignore[misc]
    """A client that returns the global model as its update."""

    def fit(self, parameters: Any, config: Any) -> tuple[Any, int, dict[str, Any]]:  # noqa: ARG002 - Flower's signature
        """Return the global model."""
        return parameters, 1, {}


class TimedFedAvg(flwr.server.strategy.FedAvg):  # type: ignore[misc]
    """FedAvg that notes when each round was aggregated."""

    times: list[float]

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        """Aggregate, then note the time."""
        aggregated = super().aggregate_fit(server_round, results, failures)
        self.times.append(time.time())
        return aggregated


def serve(port: str, num_nodes: int, num_rounds: int, model_bytes: int, output: Path) -> None:
    """Run a server to the end and write its round times and peak memory."""
    initial = flwr.common.ndarrays_to_parameters([np.zeros(model_bytes // 4, dtype=np.float32)])
    strategy = TimedFedAvg(
        fraction_fit=1.0, fraction_evaluate=0.0, min_fit_clients=num_nodes, min_available_clients=num_nodes, initial_parameters=initial
    )
    strategy.times = []
    flwr.server.start_server(
        server_address=f"127.0.0.1:{port}",
        config=flwr.server.ServerConfig(num_rounds=num_rounds),
        strategy=strategy,
        grpc_max_message_length=MAX_MESSAGE_BYTES,
    )
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    peak_bytes = next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    output.write_text(json.dumps({"times": strategy.times, "peak_bytes": peak_bytes, "version": flwr.__version__}), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "server":
        serve(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]), Path(sys.argv[6]))
    else:
        flwr.client.start_client(
            server_address=f"127.0.0.1:{sys.argv[2]}", client=NoTraining().to_client(), grpc_max_message_length=MAX_MESSAGE_BYTES
        )
