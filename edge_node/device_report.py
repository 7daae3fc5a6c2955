"""Publishes the device's figures every few seconds, beside whatever the node is doing."""

from __future__ import annotations

import logging
import threading

from edge_node.device import SAMPLE_SECONDS, DeviceSampler
from federation import topics
from federation.clock import Clock
from federation.messages import MetricsReport
from federation.transport import Transport

logger = logging.getLogger("edge_node")

MAX_PENDING = 1000
"""Publishes waiting for a broker that is away; beyond, no more figures are taken: an hour and a half of them, 1 MB."""


class DeviceReporter:
    """Samples on a thread of its own: training holds the others.

    Args:
        sampler: of this device.
        transport: takes publishes from any thread.
        run: the run's name.
        node: this node's name.
        clock: what time it is.
        sample_seconds: time between samples.
    """

    def __init__(
        self, sampler: DeviceSampler, transport: Transport, *, run: str, node: str, clock: Clock, sample_seconds: float = SAMPLE_SECONDS
    ) -> None:
        self._sampler = sampler
        self._transport = transport
        self._topic = str(topics.MetricsTopic(run, node))
        self._node = node
        self._clock = clock
        self._sample_seconds = sample_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def stop(self) -> None:
        """Sample a last time, and end."""
        self._stopping.set()
        self._thread.join(self._sample_seconds)

    def _run(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._stopping.wait(self._sample_seconds)
            try:
                self._report()
            except Exception:  # figures of a device must never cost it its rounds
                logger.exception("device=unmeasured")

    def _report(self) -> None:
        if self._transport.num_pending < MAX_PENDING:
            report = MetricsReport(node=self._node, points=[self._sampler.sample(self._clock.time_ns())])
            self._transport.publish(self._topic, report.to_payload())
