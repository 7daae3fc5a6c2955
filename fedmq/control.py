"""`fedmq pause|resume|stop`: what the operator wants of a run, and `fedmq recover`: a lost aggregator's memory."""

from __future__ import annotations

import queue
import secrets
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from federation import topics
from federation.broker_address import BrokerAddress
from federation.errors import ArchiveError, RemoteProtocolError, TransportError
from federation.messages import AggregatorStatus, Control, RunState, parse
from federation.mqtt import MqttTransport
from federation.transport import Connected, Delivered, TransportEvent
from fedmq import console
from fedmq.console import JsonOption, print_json, sentences
from fedmq.options import HostOption, PasswordOption, PortOption, UserOption, command_environment
from fedmq.replay import OutOption, RunArgument
from fedmq.retained_reader import QUIET_SECONDS, RetainedReader

SEND_SECONDS = 15.0
HEED_SECONDS = 5.0
"""How long a living aggregator may take to heed a wish."""

ECHO_SECONDS = 1.0
"""After the broker's acknowledgement a wish it took comes back to us at once; one that its access list refuses never does."""

POLL_SECONDS = 0.1

ReasonOption = Annotated[str, typer.Option(help="Shown in the run's state.")]


def pause(
    run: RunArgument,
    *,
    reason: ReasonOption = "",
    host: HostOption = None,
    port: PortOption = None,
    username: UserOption = None,
    password_file: PasswordOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a run finish its round and open no other until `fedmq resume`. Needs the aggregator's identity."""
    _wish(run, "pause", reason, (host, port, username, password_file), as_json=as_json)


def resume(
    run: RunArgument,
    *,
    reason: ReasonOption = "",
    host: HostOption = None,
    port: PortOption = None,
    username: UserOption = None,
    password_file: PasswordOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a paused run go on. Needs the aggregator's identity."""
    _wish(run, "resume", reason, (host, port, username, password_file), as_json=as_json)


def stop(
    run: RunArgument,
    *,
    reason: ReasonOption = "",
    host: HostOption = None,
    port: PortOption = None,
    username: UserOption = None,
    password_file: PasswordOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a run at once; `fedmq run --resume` continues it, its open round included. Needs the aggregator's identity."""
    _wish(run, "stop", reason, (host, port, username, password_file), as_json=as_json)


def recover(
    run: RunArgument,
    *,
    out: OutOption = None,
    state: Annotated[Path | None, typer.Option(help="Folder for the checkpoint; default OUT/state.")] = None,
    host: HostOption = None,
    port: PortOption = None,
    username: UserOption = None,
    password_file: PasswordOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rebuild the aggregator's checkpoint, archive and summary from what the broker retains, after its disk was lost."""
    import tomli_w

    from aggregator.broker_rounds import BrokerRounds
    from aggregator.recovery import recover as recover_run
    from fedmq.run_source import find_trusted_keys

    folder = out or Path("out") / run
    state_dir = state or folder / "state"
    with sentences():
        environment = command_environment(broker_host=host, broker_port=port, broker_username=username, broker_password_file=password_file)
        with RetainedReader(BrokerAddress.from_environment(environment)) as reader:
            recovered = recover_run(
                run,
                BrokerRounds(run, reader.read),
                state_dir=state_dir,
                out_dir=folder,
                trusted_keys=find_trusted_keys(environment.trusted_keys, folder),
                now_ns=time.time_ns(),
            )
        run_file = folder / "run.toml"
        if not run_file.exists():
            run_file.write_text(tomli_w.dumps(recovered.settings.model_dump(mode="json")), encoding="utf-8")
    position = recovered.position
    if as_json:
        facts = {"round_number": position.round_number, "cohort": position.cohort, "global_digest": position.global_digest}
        damaged = {"repaired": recovered.repaired, "skipped": recovered.skipped}
        print_json({"run": run, "rounds": recovered.num_rounds, "finished": position.finished, **facts, **damaged})
        return
    for sentence in recovered.skipped:
        console.err.print(f"skipped {sentence}", style="yellow", markup=False)
    for number in recovered.repaired:
        console.err.print(f"round {number} is damaged on the broker and whole in the archive: --resume publishes it again", markup=False)
    console.out.print(
        f"recovered {recovered.num_rounds} round(s); the run goes on in round {position.round_number}:\n"
        f"fedmq run {run_file} --out {folder} --state {state_dir} --resume",
        markup=False,
    )


def _wish(
    run: str,
    wanted: Literal["pause", "resume", "stop"],
    reason: str,
    broker: tuple[str | None, int | None, str | None, Path | None],
    *,
    as_json: bool,
) -> None:
    host, port, username, password_file = broker
    with sentences():
        environment = command_environment(broker_host=host, broker_port=port, broker_username=username, broker_password_file=password_file)
        address = BrokerAddress.from_environment(environment)
        is_heeded, is_led = send_wish(address, Control(run=run, wanted=wanted, reason=reason))
    if as_json:
        print_json({"run": run, "wanted": wanted, "heeded": is_heeded, **({} if is_heeded else {"led": is_led})})
    elif is_heeded:
        console.out.print(f"{run}: {wanted} heeded", markup=False)
    else:
        lead = "no aggregator leads this run" if is_led is False else "no aggregator has heeded it yet"
        text = f"{run}: {wanted} is on the broker, but {lead}: the next to lead the run heeds it (`fedmq run FILE --resume`)"
        console.out.print(text, markup=False)


def send_wish(address: BrokerAddress, control: Control) -> tuple[bool, bool | None]:
    """Leave a wish on the broker; return whether an aggregator has heeded it within some seconds, and whether one leads the run.

    The second is None where the broker holds no word of an aggregator.

    Raises:
        TransportError: the broker can't be reached, or does not let this identity lead runs.
        ArchiveError: it holds no such run.
    """
    topic, state_topic = str(topics.ControlTopic(control.run)), str(topics.StateTopic(control.run))
    inbox: queue.Queue[TransportEvent] = queue.Queue()
    transport = MqttTransport(address, client_id=f"operator-{secrets.token_hex(4)}", on_event=inbox.put, session_expiry_seconds=0)
    transport.start()
    try:
        if not isinstance(event := _next(inbox, time.monotonic() + SEND_SECONDS), Connected):
            raise TransportError(f"the broker can't be reached: {getattr(event, 'reason', 'it does not answer')}")
        transport.subscribe([topic, state_topic])
        state = before = _first_state(inbox, state_topic, control.run)
        presence_topic = str(topics.AggregatorTopic(control.run))
        transport.subscribe([presence_topic])
        is_led: bool | None = None
        transport.publish(topic, control.to_payload(), retain=True)
        is_taken = is_cleared = False
        give_up_at, acknowledged_at = time.monotonic() + HEED_SECONDS, None
        while (now := time.monotonic()) < give_up_at:
            if acknowledged_at is None and not transport.num_pending:
                acknowledged_at = now
            if not is_taken and acknowledged_at is not None and now >= acknowledged_at + ECHO_SECONDS:
                break
            event = _next(inbox, time.monotonic() + POLL_SECONDS)
            if isinstance(event, Delivered) and event.topic == state_topic:
                state = event.payload
            elif isinstance(event, Delivered) and event.topic == presence_topic:
                is_led = _is_online(event.payload)
            elif isinstance(event, Delivered):
                # Ours comes back to us as to every subscriber; cleared, it comes as an empty payload.
                is_taken |= event.payload == control.to_payload()
                is_cleared = is_taken and not event.payload
            if _is_heeded(control, parse(RunState, state), is_cleared=is_cleared, has_changed=state != before):
                return True, True
    finally:
        transport.stop(SEND_SECONDS)
    if not is_taken:
        raise TransportError(
            f"the broker did not take it: {control.wanted} needs the aggregator's user name and password (FEDMQ_BROKER_USERNAME)"
        )
    return False, is_led


def _first_state(inbox: queue.Queue[TransportEvent], topic: str, run: str) -> bytes:
    give_up_at = time.monotonic() + QUIET_SECONDS
    while (event := _next(inbox, give_up_at)) is not None:
        if isinstance(event, Delivered) and event.topic == topic:
            return event.payload
    raise ArchiveError(f"the broker holds no run {run!r}; `fedmq status` lists those it holds")


def _next(inbox: queue.Queue[TransportEvent], give_up_at: float) -> TransportEvent | None:
    try:
        return inbox.get(timeout=max(0.0, give_up_at - time.monotonic()))
    except queue.Empty:
        return None


def _is_online(payload: bytes) -> bool | None:
    try:
        return parse(AggregatorStatus, payload).online
    except RemoteProtocolError:
        return None


def _is_heeded(control: Control, state: RunState, *, is_cleared: bool, has_changed: bool) -> bool:
    match control.wanted:
        case "pause":
            return state.phase == "paused"
        case "stop":
            return is_cleared and has_changed and state.phase == "stopped"
        case "resume":
            return is_cleared and state.phase != "paused"
