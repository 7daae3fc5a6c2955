"""The aggregator's process, from its settings to its end; `__main__` starts it."""

from __future__ import annotations

import logging
import secrets
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress

from aggregator.config import AggregatorConfig
from aggregator.database import Database
from aggregator.events import TimePassed
from aggregator.forwarder import Forwarder
from aggregator.presence import Presence
from aggregator.record import RunRecord
from aggregator.telemetry import SESSION_SECONDS, Telemetry
from aggregator.wiring import build_service
from federation.data import load_dataset
from federation.ending import Ending
from federation.environment import read_environment
from federation.errors import CheckpointError, DataError, SettingsError
from federation.heartbeat import say_problem
from federation.mqtt import BrokerAddress, MqttTransport
from federation.process import SYSTEM_CLOCK, Process, set_up_logging
from federation.settings import load_run_file
from federation.signing import Signer, TrustedKeys
from federation.transport import OnEvent, Will

logger = logging.getLogger("aggregator")

STOP_SECONDS = 60.0
"""How long a stopping aggregator tries to send what is pending: the final model, over a slow link."""

INTERRUPTED_SECONDS = 5.0
"""How long one that could not go on writes points yet: the rest waits on disk for the next."""

GOODBYE_SECONDS = 1.0
"""How long an interrupted one tries to take its leave of the broker: whoever continues the run publishes what did not get through."""

SESSION_EXPIRY_SECONDS = 300
"""How long the broker queues updates for an aggregator that is gone."""

INTERRUPTED = 3
"""Exit status when a signal came before the run's end."""


def lead_run(environ: Mapping[str, str], ending: Ending) -> int:
    """Run the aggregator until its run ends; return the exit status.

    Args:
        environ: `os.environ`.
        ending: of the process.
    """
    config: AggregatorConfig | None = None
    try:
        config = read_environment(AggregatorConfig, environ)
        set_up_logging(config.log_level)
        settings = load_run_file(config.run_file)
        config.state_dir.mkdir(parents=True, exist_ok=True)
        process = Process(ending, heartbeat=say_problem(config.state_dir, ""))
        presence = Presence(settings.run, instance=secrets.token_hex(8))
        transport = _connect(config, settings.run, presence.watch(process.put), presence.will)
        service = build_service(
            settings=settings,
            dataset=load_dataset(settings.data, data_dir=config.data_dir, cache_dir=config.cache_dir),
            state_dir=config.state_dir,
            out_dir=config.out_dir,
            is_resuming=config.resume,
            transport=transport,
            background=process.background,
            aside=process.aside,
            measures_onnx=True,
            signer=Signer(config.signing_key) if config.signing_key else None,
            trusted_keys=TrustedKeys(config.trusted_keys) if config.trusted_keys else None,
            clock=SYSTEM_CLOCK,
        )
    except (SettingsError, DataError, CheckpointError) as error:
        return _give_up(str(error), 2, config, ending)
    except OSError as error:
        return _give_up(f"the disk failed ({error}): make room or mend it, then start again", 1, config, ending)
    telemetry = build_telemetry(config, service.record, is_superseded=lambda: service.is_superseded)
    telemetry.start()
    presence.start(transport)
    transport.start()
    process.run(service, time_passed=TimePassed())
    process.drain()
    stopped = service.stopped
    presence.stop()
    # Fenced off, it leaves the last word to its successor.
    goodbye = None if stopped and stopped.is_fenced else (presence.will.topic, presence.will.payload)
    transport.stop(ending.limit(STOP_SECONDS if stopped else GOODBYE_SECONDS), final=goodbye)
    # Where it could not go on, nobody was asked to leave, and whoever resumes the run takes the session up.
    has_ended = stopped is not None and not stopped.failed
    telemetry.stop(ending.limit(STOP_SECONDS if has_ended else INTERRUPTED_SECONDS), has_ended=has_ended)
    if stopped is None:
        logger.warning("run=%s interrupted reason=%r; continue it with FEDMQ_RESUME=1", settings.run, ending.failure or ending.signal_name)
        return INTERRUPTED
    logger.info("run=%s stopped reason=%r", settings.run, stopped.reason)
    return 1 if stopped.failed else 0


def _give_up(problem: str, status: int, config: AggregatorConfig | None, ending: Ending) -> int:
    """Say what is wrong; end, or stay where a restart would only find the same again and again."""
    sys.stderr.write(f"{problem}\n")
    if config is not None and config.hold:
        with suppress(OSError):
            say_problem(config.state_dir, problem)
        logger.error("event=held reason=%r; mend it, then restart this process", problem)
        ending.wait()
    return status


def _connect(config: AggregatorConfig, run: str, on_event: OnEvent, will: Will) -> MqttTransport:
    # An identity of its own for each process: a zombie must not throw its successor off the broker, but read there that it
    # has been succeeded. What is missed without a session is retained.
    client_id = f"{run}-aggregator-{secrets.token_hex(4)}"
    address = BrokerAddress.from_environment(config)
    return MqttTransport(address, client_id=client_id, on_event=on_event, will=will, session_expiry_seconds=SESSION_EXPIRY_SECONDS)


def build_telemetry(config: AggregatorConfig, record: RunRecord, *, is_superseded: Callable[[], bool] = lambda: False) -> Telemetry:
    """Return what measures the run beside it."""
    address = BrokerAddress.from_environment(config)

    def connect(on_event: OnEvent) -> MqttTransport:
        return MqttTransport(
            address,
            client_id=f"{record.settings.run}-telemetry",
            on_event=on_event,
            session_expiry_seconds=SESSION_SECONDS,
            keeps_session=True,
            manual_ack=True,
        )

    forwarder = Forwarder(record.journal, Database(config.database)) if config.database else None
    return Telemetry(record=record, connect=connect, forwarder=forwarder, clock=SYSTEM_CLOCK, is_superseded=is_superseded)
