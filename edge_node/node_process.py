"""An edge node's process, from its settings to its goodbye; `__main__` starts it."""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Collection, Mapping
from importlib.metadata import version
from math import ceil
from pathlib import Path

import psutil

from edge_node.config import EdgeNodeConfig
from edge_node.device import DeviceSampler
from edge_node.device_report import DeviceReporter
from edge_node.discovery import RunFinder, RunFollower
from edge_node.events import Stop, TimePassed
from edge_node.inference import OnnxDeployer
from edge_node.learner import LocalLearner, NodeData, load_node_data
from edge_node.participant import Participant
from edge_node.prediction_server import start_prediction_server
from edge_node.service import EdgeNodeService, will_payload
from edge_node.spool import Spool
from federation import topics
from federation.ending import Ending
from federation.environment import read_environment
from federation.errors import DataError, SettingsError
from federation.heartbeat import say_problem
from federation.images import named_classes
from federation.learning.exchange import capabilities
from federation.messages import NodeStatus
from federation.mqtt import BrokerAddress, MqttTransport
from federation.process import SYSTEM_CLOCK, Process, set_up_logging
from federation.signing import Signer
from federation.transport import Will

logger = logging.getLogger("edge_node")

MEASURE_SECONDS = 1.0
"""About how long a round's ONNX measurements may take: most nodes wait that long for the slowest one anyway."""

MODELS_FOLDER = "models"
"""Where the node keeps the model it uses, inside its state folder."""

CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")

STOP_SECONDS = 10.0
"""How long a stopping node tries to say goodbye."""


def run_node(environ: Mapping[str, str], ending: Ending) -> int:
    """Run one node until its run ends; return the exit status.

    Args:
        environ: `os.environ`.
        ending: of the process.
    """
    try:
        config = read_environment(EdgeNodeConfig, environ)
        set_up_logging(config.log_level)
        signer = Signer(config.signing_key) if config.signing_key else None
        # Before anything else: what its owner has named and can't be used is a sentence.
        capabilities(config.extensions)
        data, problem = _load_data(config)
        config.state_dir.mkdir(parents=True, exist_ok=True)
        heartbeat = say_problem(config.state_dir, problem)
        server = start_prediction_server(config.serve, config.state_dir / MODELS_FOLDER) if config.serve else None
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"the disk failed ({error}): make room or mend it, then start again\n")
        return 1
    try:
        return _serve_runs(config, data, problem, signer, ending, heartbeat)
    finally:
        if server is not None:
            server.close()


def _serve_runs(
    config: EdgeNodeConfig, data: NodeData | None, problem: str, signer: Signer | None, ending: Ending, heartbeat: Path | None
) -> int:
    """Take part in the run this node was told of, or in one after the other; return the exit status."""
    if config.run is not None:
        return _take_part(config, config.run, data, problem, signer, ending, heartbeat)
    # A node told no run serves one after the other, for as long as it is on.
    run: str | None = None
    while not ending.is_due and (run := _find_run(config, ending, heartbeat, avoid=run)) is not None:
        if status := _take_part(config, run, data, problem, signer, ending, heartbeat):
            return status
    return 0


def _find_run(config: EdgeNodeConfig, ending: Ending, heartbeat: Path | None, *, avoid: str | None) -> str | None:
    """Return an active run's name; None when the process must end or the broker refused us."""
    process = Process(ending, heartbeat=heartbeat)
    transport = MqttTransport(BrokerAddress.from_environment(config), client_id=f"{config.node}-finder", on_event=process.put)
    finder = RunFinder(transport, avoid=avoid)
    transport.start()
    process.run(finder, time_passed=TimePassed())
    process.drain()
    transport.stop(ending.limit(STOP_SECONDS))
    if finder.run is None and finder.stopped:
        logger.error("broker=refused reason=%r", finder.stopped)
    return finder.run


def _load_data(config: EdgeNodeConfig) -> tuple[NodeData | None, str]:
    """Return the node's images; a node without usable ones says why in its status and sits the rounds out."""
    try:
        return load_node_data(config), ""
    except DataError as error:
        logger.warning("data=unusable reason=%r", str(error))
        return None, str(error)[:500]


def _take_part(
    config: EdgeNodeConfig,
    run: str,
    data: NodeData | None,
    problem: str,
    signer: Signer | None,
    ending: Ending,
    heartbeat: Path | None,
) -> int:
    process = Process(ending, heartbeat=heartbeat)
    status = describe_node(config.node, data, problem, config.extensions)
    will = Will(topic=str(topics.StatusTopic(run, config.node)), payload=will_payload(status))
    transport = MqttTransport(BrokerAddress.from_environment(config), client_id=f"{run}-{config.node}", on_event=process.put, will=will)
    service = EdgeNodeService(
        participant=Participant(node=config.node),
        transport=transport,
        spool=Spool(config.state_dir, run),
        learner=LocalLearner(node=config.node, data=data, shares_label_counts=config.share_label_counts),
        deployer=_deployer(config, data),
        status=status,
        run=run,
        background=process.background,
        clock=SYSTEM_CLOCK,
        signer=signer,
    )
    sampler = DeviceSampler(state_dir=config.state_dir, certificate=config.tls_certificate)
    reporter = DeviceReporter(sampler, transport, run=run, node=config.node, clock=SYSTEM_CLOCK)
    transport.start()
    reporter.start()
    follower = None if config.run else RunFollower(service, run=run, transport=transport)
    process.run(follower or service, time_passed=TimePassed())
    process.drain()
    reporter.stop()
    transport.stop(ending.limit(STOP_SECONDS), final=service.offline_status())
    stopped = service.stopped
    reason = ending.failure or ending.signal_name if stopped is None else stopped.reason
    logger.info("node=%s run=%s stopped reason=%r", config.node, run, reason)
    return 0 if stopped is None or isinstance(stopped, Stop) else 1


def _deployer(config: EdgeNodeConfig, data: NodeData | None) -> OnnxDeployer | None:
    if data is None:
        return None
    return OnnxDeployer(
        validation=data.validation,
        calibration=data.training,
        class_names=data.class_names,
        folder=config.state_dir / MODELS_FOLDER,
        num_threads=config.cores or available_cores(),
        time_ns=SYSTEM_CLOCK.time_ns,
        budget_seconds=MEASURE_SECONDS,
    )


def available_cores() -> int:
    """Return how many cores this process may use: its affinity, and its container's quota, rounded up."""
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CGROUP_QUOTA.read_text(encoding="ascii").split()
        return max(1, min(num_cores, ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        # No cgroup v2, or no limit ("max").
        return num_cores


def describe_node(node: str, data: NodeData | None, problem: str, extensions: Collection[str] = ()) -> NodeStatus:
    """Return what this node is.

    Raises:
        SettingsError: a method or codec of one's own can't be used here.
    """
    packages = ("torch", "numpy", "paho-mqtt", "onnxruntime")
    return NodeStatus(
        node=node,
        online=True,
        instance=secrets.token_hex(8),
        num_examples=data.num_examples if data else 0,
        image_shape=list(data.training.image_shape) if data else [],
        num_classes=len(data.class_names) if data else 0,
        class_names=list(named_classes(data.class_names)) if data else [],
        num_cores=available_cores(),
        memory_bytes=psutil.virtual_memory().total,
        software={"fedmq": version("fedmq"), "python": sys.version.split()[0], **{name: version(name).split("+")[0] for name in packages}},
        capabilities=capabilities(extensions),
        problem=problem,
    )
