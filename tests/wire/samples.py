"""One valid message of each type, and small tensor sets."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from federation import messages as m
from federation.chunks import ChunkedFile
from federation.codec import write_params
from federation.params import Array
from federation.settings import ModelSettings, TrainingSettings

DIGEST = hashlib.sha256(b"").hexdigest()

METRICS = m.LocalMetrics(loss=0.5, download_seconds=0.1, train_seconds=2.0, samples_per_second=100.0, validation_accuracy=0.75)
EVALUATION = m.Evaluation(
    num_examples=4, accuracy=0.5, f1_macro=0.4, f1_weighted=0.6, loss=1.25, class_accuracy=[1.0, 0.0], confusion_matrix=[[2, 0], [2, 0]]
)

MESSAGES: tuple[m.Message, ...] = (
    m.RunState(run="run", phase="training", round_number=3, num_rounds=20, epoch=1, method="fedavg", model=ModelSettings()),
    m.NodeStatus(node="node-0", online=True, instance="a1", num_examples=10, image_shape=[3, 28, 28], software={"torch": "2.13.0"}),
    m.RoundPlan(
        run="run",
        round_number=3,
        epoch=1,
        cohort=["node-0", "node-1"],
        deadline_seconds=60.0,
        seed=0,
        model=ModelSettings(),
        training=TrainingSettings(),
        learning_rate=0.001,
        method=m.Choice(name="fedavg"),
        codec=m.Choice(name="float32"),
        num_nodes=2,
        global_digest=DIGEST,
        global_bytes=394_404,
    ),
    m.GlobalManifest(run="run", round_number=3, total_bytes=1500, chunk_bytes=1024, sha256=DIGEST, chunk_sha256=[DIGEST, DIGEST]),
    m.UpdateManifest(
        run="run",
        round_number=3,
        total_bytes=10,
        chunk_bytes=1024,
        sha256=DIGEST,
        chunk_sha256=[DIGEST],
        node="node-0",
        base_digest=DIGEST,
        num_examples=10,
        metrics=METRICS,
    ),
    m.Ack(run="run", round_number=3, epoch=1, node="node-0", outcome="incomplete", sha256=DIGEST, missing=[1, 5]),
    m.RoundResult(
        run="run",
        round_number=3,
        epoch=1,
        previous_result_digest=DIGEST,
        method="fedavg",
        aggregated=True,
        global_digest=DIGEST,
        next_global_digest=DIGEST,
        outcomes=[m.NodeOutcome(node="node-0", outcome="accepted", num_examples=10, update_digest=DIGEST, metrics=METRICS)],
        evaluation=EVALUATION,
        accepted=1,
        rejected=0,
        discarded=0,
        stragglers=0,
        seconds=1.5,
        phase_seconds={"training": 1.0},
        bytes_up=10,
        bytes_down=20,
    ),
    m.MetricsReport(node="node-0", points=[m.MetricPoint(measurement="device", time_ns=1, fields={"cpu": 0.5, "throttled": False})]),
)
"""One of each type."""

MESSAGE_TYPES = tuple(type(message) for message in MESSAGES)


def small_params(seed: int = 0, *, num_values: int = 3000) -> dict[str, Array]:
    """Return three tensors, one of them a scalar, `num_values` and a few values in all."""
    generator = np.random.default_rng(seed)
    return {
        "fc.weight": generator.standard_normal((num_values // 10, 10)).astype(np.float32),
        "conv.bias": generator.standard_normal(7).astype(np.float32),
        "num_batches": np.array(3.0, np.float32),
    }


def chunked_params(folder: Path, *, seed: int = 0, chunk_bytes: int = 1024, num_values: int = 3000) -> ChunkedFile:
    """Write `small_params` to a file of `folder` and describe it as a transfer."""
    path = folder / f"params-{seed}.safetensors"
    write_params(path, small_params(seed, num_values=num_values), durable=False)
    return ChunkedFile(path, chunk_bytes)


def manifest_of(source: ChunkedFile) -> m.GlobalManifest:
    """Return the true manifest of a transfer."""
    return m.GlobalManifest(
        run="run",
        round_number=1,
        total_bytes=source.total_bytes,
        chunk_bytes=source.chunk_bytes,
        sha256=source.sha256,
        chunk_sha256=list(source.chunk_sha256),
    )
