"""`fedmq watch`: a run live in the terminal, as the broker tells it."""

from __future__ import annotations

import queue
import secrets
import time
from collections.abc import Callable
from typing import Annotated

import typer
from rich.live import Live

from federation import topics
from federation.broker_address import BrokerAddress
from federation.condition import condition_of_run
from federation.errors import DataError, RemoteProtocolError, TransportError
from federation.messages import RunState, parse
from federation.mqtt import MqttTransport
from federation.transport import Connected, Delivered, Disconnected, Refused, TransportEvent
from fedmq.console import JsonOption, out, print_json, sentences
from fedmq.observer import read_retained
from fedmq.options import HostOption, PasswordOption, PortOption, UserOption, command_environment
from fedmq.watch_state import WatchState

REFRESH_SECONDS = 0.5
CONNECT_SECONDS = 15.0


def watch(
    run: Annotated[str | None, typer.Argument(help="The run; default the only one, or the one that is training.", metavar="RUN")] = None,
    *,
    host: HostOption = None,
    port: PortOption = None,
    username: UserOption = None,
    password_file: PasswordOption = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="Leave after so long; default when the run ends, or Ctrl-C.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a run live: rounds, nodes, latencies. With --json, what is known after --seconds (2 by default)."""
    with sentences():
        environment = command_environment(broker_host=host, broker_port=port, broker_username=username, broker_password_file=password_file)
        address = BrokerAddress.from_environment(environment)
        watcher = Watcher(address, run or find_run(address))
        try:
            if as_json:
                watcher.follow(2.0 if seconds is None else seconds)
                print_json(watcher.state.to_json())
                return
            with Live(watcher.state.render(), console=out, refresh_per_second=4, screen=False) as live:
                watcher.follow(seconds, on_change=lambda: live.update(watcher.state.render()), ends_with_run=True)
        finally:
            watcher.close()


class Watcher:
    """A client of the broker that only listens.

    Args:
        address: the broker, with an identity that may read runs.
        run: which.
    """

    def __init__(self, address: BrokerAddress, run: str) -> None:
        self.state = WatchState(run=run)
        self._address = address
        self._inbox: queue.Queue[TransportEvent] = queue.Queue()
        self._transport = MqttTransport(
            address, client_id=f"watch-{secrets.token_hex(4)}", on_event=self._inbox.put, session_expiry_seconds=0
        )
        self._transport.start()

    def follow(self, seconds: float | None, *, on_change: Callable[[], None] | None = None, ends_with_run: bool = False) -> None:
        """Take in what comes.

        Args:
            seconds: for so long; None without end.
            on_change: called after each burst of messages.
            ends_with_run: return once the run has ended.

        Raises:
            TransportError: the broker refuses us, or can't be reached.
        """
        started_at = time.monotonic()
        is_connected = False
        connect_until = started_at + max(CONNECT_SECONDS, seconds or 0.0)
        while seconds is None or not is_connected or time.monotonic() < started_at + seconds:
            try:
                event = self._inbox.get(timeout=REFRESH_SECONDS)
            except queue.Empty:
                if not is_connected and time.monotonic() > connect_until:
                    advice = "check FEDMQ_BROKER_HOST and FEDMQ_BROKER_PORT"
                    raise TransportError(f"the broker {self._address!r} can't be reached: {advice}") from None
                if ends_with_run and self.state.has_ended:
                    return
                continue
            match event:
                case Connected():
                    if not is_connected:
                        # What is known "after so long" counts from here.
                        is_connected, started_at = True, time.monotonic()
                    self._transport.subscribe(filters(self.state.run))
                case Disconnected() if not is_connected:
                    raise TransportError(event.reason)
                case Refused():
                    raise TransportError(event.reason)
                case Delivered():
                    self.state.take(event.topic, event.payload)
            if on_change is not None and self._inbox.empty():
                on_change()

    def close(self) -> None:
        """Leave the broker."""
        self._transport.stop(1.0)


def filters(run: str) -> list[str]:
    """Return what is listened to."""
    return [str(topics.StateTopic(run)), topics.status_filter(run), topics.result_filter(run), topics.metrics_filter(run)]


def find_run(address: BrokerAddress) -> str:
    """Return the run to watch when none is named.

    Raises:
        DataError: there is none, or several and not one of them training.
    """
    _, messages = read_retained(address, [topics.state_filter_of_all_runs()])
    states = []
    for payload in messages.values():
        try:
            states.append(parse(RunState, payload))
        except RemoteProtocolError:
            continue
    active = [state for state in states if not condition_of_run(state).has_ended] or states
    if len(active) == 1:
        return active[0].run
    if not active:
        raise DataError("there is no run on this broker: start one with `fedmq run FILE`")
    raise DataError(f"several runs are on this broker, name one: {', '.join(sorted(state.run for state in active))}")
