"""The app of a current Flower federation that trains nothing; `benchmarks/flower_current.py` gives it to Flower.

Imports nothing of FedMQ: it runs where only Flower is installed.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

client_app = ClientApp()
server_app = ServerApp()


@client_app.train()  # type: ignore[untyped-decorator]
def return_model(message: Any, context: Any) -> Any:  # noqa: ARG001 - Flower's signature
    """Return the global model plus one random number.

    SuperLink keeps objects by digest and asks for none it has: weights that came back as they were would not be sent.
    """
    (weights,) = message.content["arrays"].to_numpy_ndarrays()
    arrays = ArrayRecord([weights + np.float32(np.random.default_rng().normal())])
    return Message(content=RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)


class TimedFedAvg(FedAvg):  # type: ignore[misc]
    """FedAvg that notes when each round was aggregated, and ends the run if a client failed."""

    times: list[float]

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        """Aggregate, then note the time."""
        answers = [reply for reply in replies if not reply.has_error()]
        if len(answers) != self.min_train_nodes:
            raise RuntimeError(f"round {server_round}: {len(answers)} of {self.min_train_nodes} clients answered")
        aggregated = super().aggregate_train(server_round, answers)
        self.times.append(time.time())
        return aggregated


@server_app.main()  # type: ignore[untyped-decorator]
def serve(grid: Any, context: Any) -> None:
    """Run all rounds and write their times and this process's peak memory."""
    config = context.run_config
    # Random, as objects of equal bytes are kept and sent once.
    weights = np.random.default_rng(0).standard_normal(config["model-bytes"] // 4, dtype=np.float32)
    strategy = TimedFedAvg(fraction_evaluate=0.0, min_train_nodes=config["num-nodes"], min_available_nodes=config["num-nodes"])
    strategy.times = []
    strategy.start(grid=grid, initial_arrays=ArrayRecord([weights]), num_rounds=config["num-rounds"])
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    peak_bytes = next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    figures = {"times": strategy.times, "peak_bytes": peak_bytes, "process_id": os.getpid()}
    Path(config["output-file"]).write_text(json.dumps(figures), encoding="utf-8")
