"""Methods and codecs over a real Mosquitto with real processes and real training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from federation.codec import file_digest
from fedmq.private_broker import PrivateBroker
from tests.end_to_end.processes import Processes, digits_run, read_json, rounds_done, wait_until, write_run_file
from tests.end_to_end.test_continuation import start_workers, undisturbed_digest

NUM_ROUNDS = 3


@pytest.mark.slow
@pytest.mark.parametrize(("method", "codec"), [("scaffold", "topk"), ("fedadam", "float32"), ("fedper", "int8")])
def test_a_run_with_a_killed_node_ends_with_the_simulators_model(
    own_mosquitto: PrivateBroker, tmp_path: Path, run_name: str, method: str, codec: str
) -> None:
    """What a method keeps on a node, the killed one's included, is neither lost nor doubled."""
    sections: dict[str, Any] = {"method": {"name": method}, "codec": {"name": codec}}
    run_file = write_run_file(tmp_path / "run.toml", digits_run(run_name, num_rounds=NUM_ROUNDS, num_nodes=2, **sections))
    out = tmp_path / "out"
    with Processes(tmp_path) as processes:
        run = processes.start_run(own_mosquitto, run_file, out)
        nodes = start_workers(processes, own_mosquitto, run_name, run_file, 0, 1)
        wait_until(lambda: rounds_done(out) >= 1, "round 1", [*nodes, run])
        nodes[1].kill()
        nodes[1].wait()
        nodes[1:] = start_workers(processes, own_mosquitto, run_name, run_file, 1)
        wait_until(lambda: run.poll() is not None, "the run's end")
        assert run.returncode == 0, (tmp_path / "run.log").read_text()
    summary = read_json(out / "summary.json")
    assert [entry["accepted"] for entry in summary["rounds"]] == [2] * NUM_ROUNDS
    assert summary["global_digest"] == undisturbed_digest(run_file, tmp_path / "undisturbed")
    assert file_digest(out / "model.safetensors") == summary.get("model_digest", summary["global_digest"])
