"""What a method keeps on a node: one step a counted update, whatever happens between."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from edge_node.node_store import NodeMemory, NodeStore
from federation.learning.sets import TensorSet

UPDATES = {number: f"{number:064x}" for number in range(1, 6)}


def memory(value: float) -> NodeMemory:
    tensors = TensorSet({"w": np.full((2, 3), value, np.float32)})
    return NodeMemory(method={"control": tensors}, codec={"model": tensors + tensors})


def value(store: NodeStore) -> float | None:
    kept = store.counted()
    return float(kept.method["control"]["w"][0, 0]) if kept.method else None


def test_a_state_counts_once_its_update_does(tmp_path: Path) -> None:
    store = NodeStore(tmp_path)
    assert value(store) is None
    store.stage(memory(1.0), round_number=1, update_digest=UPDATES[1])
    assert value(store) is None
    assert store.newest().codec["model"]["w"][0, 0] == 2.0
    store.settle(UPDATES[1], round_number=2)
    assert value(store) == 1.0
    assert value(NodeStore(tmp_path)) == 1.0


def test_a_state_whose_update_did_not_count_is_reverted(tmp_path: Path) -> None:
    store = NodeStore(tmp_path)
    store.stage(memory(1.0), round_number=1, update_digest=UPDATES[1])
    store.settle(UPDATES[1], round_number=2)
    store.stage(memory(2.0), round_number=2, update_digest=UPDATES[2])
    store.settle(UPDATES[1], round_number=3)
    assert value(store) == value(NodeStore(tmp_path)) == 1.0
    assert store.newest().method["control"]["w"][0, 0] == 1.0


def test_the_plan_of_the_same_round_again_decides_nothing(tmp_path: Path) -> None:
    store = NodeStore(tmp_path)
    store.stage(memory(1.0), round_number=3, update_digest=UPDATES[1])
    store.settle(None, round_number=3)
    assert store.newest().method
    store.settle(UPDATES[1], round_number=5)
    assert value(store) == 1.0


def test_training_again_begins_where_it_began_before(tmp_path: Path) -> None:
    """The state that counts stays readable while the next one is written, and after the process died in between."""
    store = NodeStore(tmp_path)
    store.stage(memory(1.0), round_number=1, update_digest=UPDATES[1])
    store.settle(UPDATES[1], round_number=2)
    for _ in range(2):
        kept = store.counted()
        kept.method["control"] = kept.method["control"] + kept.method["control"]
        store.stage(kept, round_number=2, update_digest=UPDATES[2])
    store.settle(UPDATES[2], round_number=3)
    assert value(store) == 2.0
    assert len(list((tmp_path / "node").glob("*.safetensors"))) == 1


def test_nothing_kept_stores_nothing(tmp_path: Path) -> None:
    store = NodeStore(tmp_path)
    store.stage(NodeMemory(), round_number=1, update_digest=UPDATES[1])
    store.settle(UPDATES[1], round_number=2)
    assert not (tmp_path / "node").exists()


@pytest.mark.parametrize("damage", ["gone", "short", "no JSON"])
def test_a_damaged_store_begins_anew(tmp_path: Path, damage: str) -> None:
    store = NodeStore(tmp_path)
    store.stage(memory(1.0), round_number=1, update_digest=UPDATES[1])
    store.settle(UPDATES[1], round_number=2)
    folder = tmp_path / "node"
    (state,) = folder.glob("*.safetensors")
    if damage == "gone":
        state.unlink()
    elif damage == "short":
        state.write_bytes(state.read_bytes()[:100])
    else:
        (folder / "store.json").write_text("")
    assert value(store) is None
    store.stage(memory(3.0), round_number=2, update_digest=UPDATES[2])
    store.settle(UPDATES[2], round_number=3)
    assert value(store) == 3.0
    shutil.rmtree(folder)
    assert value(store) is None
