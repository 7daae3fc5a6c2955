"""Seeded schedules of faults: what breaks, when, and for how long."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tests.faults.federation import AGGREGATOR, NODES, PARTS
from tests.faults.protocol_step import KINDS
from tests.faults.shipped import ShippedFederation

MEND_SECONDS = 1.0
"""An aggregator that ended within so long of the broker's death may have ended without noticing it."""

FREEZE_SECONDS = 4.0
EXPIRY_SECONDS = 1.0
"""After so long in silence the link lets the broker give a client up, as it does by itself after 1.5 keep-alives of 30 s."""

AGGREGATOR_STEPS = ("state", "plan", "global-chunk", "global-manifest", "ack", "result")
NODE_STEPS = ("status", "update-chunk", "update-manifest")
AGGREGATOR_HEARS = ("status", "update-chunk", "update-manifest", "state")
NODE_HEARS = ("state", "plan", "global-chunk", "global-manifest", "ack")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong."""

    kind: str
    part: str = ""
    round_number: int = 0
    """It happens in this round; 0: from the beginning on, or when the named step comes."""
    wait_seconds: float = 0.0
    """After the round's opening."""
    seconds: float = 0.0
    """How long it lasts."""
    step: str = ""
    """`kill` and `terminate`: the step of the protocol at which it happens (tests/faults/protocol_step.py)."""

    def __str__(self) -> str:
        facts = {"part": self.part, "step": self.step, "round": self.round_number, "seconds": round(self.seconds, 2)}
        return " ".join([self.kind, *(f"{name}={value}" for name, value in facts.items() if value)])


def draw_schedule(seed: int, *, num_rounds: int) -> list[Fault]:
    """Return the 1 to 5 faults of a seed."""
    random = Random(seed)
    return [_draw_fault(random, num_rounds) for _ in range(random.randint(1, 5))]


def _draw_fault(random: Random, num_rounds: int) -> Fault:
    kind = random.choice(sorted(_DRAW))
    return _DRAW[kind](random, random.randint(1, num_rounds), random.uniform(0.0, 0.4))


def _at_step(kind: str) -> Callable[[Random, int, float], Fault]:
    def draw(random: Random, _round_number: int, _wait: float) -> Fault:
        part = random.choice([AGGREGATOR, *NODES])
        moment = random.choice(["before", "after", "received"])
        says, hears = (AGGREGATOR_STEPS, AGGREGATOR_HEARS) if part == AGGREGATOR else (NODE_STEPS, NODE_HEARS)
        name = random.choice(hears if moment == "received" else says)
        assert name in KINDS
        return Fault(kind=kind, part=part, step=f"{moment}:{name}:{random.randint(1, 8)}")

    return draw


def _on_part(kind: str, longest_seconds: float) -> Callable[[Random, int, float], Fault]:
    def draw(random: Random, round_number: int, wait: float) -> Fault:
        seconds = random.uniform(0.2, 1.0) * longest_seconds
        return Fault(kind=kind, part=random.choice(PARTS), round_number=round_number, wait_seconds=wait, seconds=seconds)

    return draw


def _on_broker(kind: str) -> Callable[[Random, int, float], Fault]:
    def draw(random: Random, round_number: int, wait: float) -> Fault:
        return Fault(kind=kind, round_number=round_number, wait_seconds=wait, seconds=random.uniform(0.0, 1.0))

    return draw


_DRAW: dict[str, Callable[[Random, int, float], Fault]] = {
    "kill": _at_step("kill"),
    "kill now": _on_part("kill now", 0.0),
    "terminate": _at_step("terminate"),
    "terminate now": _on_part("terminate now", 0.0),
    "power cut": _on_part("power cut", 0.0),
    "server's power cut": _on_broker("server's power cut"),
    "freeze": _on_part("freeze", FREEZE_SECONDS),
    "cut": _on_part("cut", 0.0),
    "half-open": _on_part("half-open", 4.0),
    "deaf": _on_part("deaf", 4.0),
    "mute": _on_part("mute", 4.0),
    "slow": _on_part("slow", 3.0),
    "broker killed": _on_broker("broker killed"),
    "broker wiped": _on_broker("broker wiped"),
    "broker truncated": _on_broker("broker truncated"),
    "broker restarted": _on_broker("broker restarted"),
    "duplicates": lambda random, _round, _wait: Fault(kind="duplicates", part=random.choice(PARTS)),
    "clock": lambda random, _round, _wait: Fault(kind="clock", part=random.choice(PARTS), seconds=random.choice([-1, 1]) * 365 * 86_400.0),
}


class Player:
    """Makes a schedule happen to a federation.

    Args:
        federation: entered, not started.
        faults: what goes wrong.
    """

    def __init__(self, federation: ShippedFederation, faults: list[Fault]) -> None:
        self._federation = federation
        self._waiting = [fault for fault in faults if fault.round_number]
        self._opened_at: dict[int, float] = {}
        self._ends: list[tuple[float, Callable[[], None]]] = []
        self._broke_broker_at = float("-inf")
        self._aggregator_left_at = float("inf")
        for fault in (fault for fault in faults if not fault.round_number):
            part = federation.parts[fault.part]
            match fault.kind:
                case "kill" | "terminate":
                    part.steps.append(f"{fault.kind} {fault.step}")
                case "duplicates":
                    federation.proxies[fault.part].link.duplicates = 0.3
                case "clock":
                    part.clock_offset_seconds = fault.seconds

    @property
    def is_broker_mended(self) -> bool:
        """Whether the aggregator was still there when the broker was last broken: nobody else gives it back what it lost."""
        return self._broke_broker_at + MEND_SECONDS < self._aggregator_left_at

    def play(self, timeout_seconds: float) -> None:
        """Start the federation and look after it until its run is over, breaking things on the way.

        Raises:
            AssertionError: it does not come to its end.
        """
        federation = self._federation
        federation.start()
        give_up_at = time.monotonic() + timeout_seconds
        while not federation.is_over:
            now = time.monotonic()
            assert now < give_up_at, f"not over after {timeout_seconds:.0f} s\n{federation.describe()}"
            self._opened_at.setdefault(federation.round_number, now)
            # Once the aggregator has left, nobody is there to mend a broker: docs/failures.md says what then.
            for fault in list(self._waiting) if federation.parts[AGGREGATOR].status is None else []:
                opened_at = self._opened_at.get(fault.round_number)
                if opened_at is not None and now >= opened_at + fault.wait_seconds:
                    self._waiting.remove(fault)
                    self._begin(fault, now)
            for end in [end for end in self._ends if now >= end[0]]:
                self._ends.remove(end)
                end[1]()
            federation.look_after()
            if federation.parts[AGGREGATOR].status is not None:
                self._aggregator_left_at = min(self._aggregator_left_at, now)
            time.sleep(0.02)
        for _, end_fault in self._ends:
            end_fault()
        federation.proxies[AGGREGATOR].step = None

    def _begin(self, fault: Fault, now: float) -> None:
        federation = self._federation
        if fault.kind.startswith(("broker", "server")):
            self._break_broker(fault, now)
            return
        proxy = federation.proxies[fault.part]
        link = proxy.link
        match fault.kind:
            case "kill now":
                federation.kill(fault.part)
            case "terminate now":
                federation.terminate(fault.part)
            case "power cut":
                federation.cut_power(fault.part)
            case "freeze":
                self._freeze(fault, now)
            case "cut":
                federation.proxies[fault.part].cut()
            case "half-open" | "deaf" | "mute":
                directions = {"half-open": ("up", "down"), "deaf": ("down",), "mute": ("up",)}[fault.kind]
                link.stalled.update(directions)  # type: ignore[arg-type]
                self._ends.append((now + fault.seconds, link.stalled.clear))
                if fault.kind != "deaf" and fault.seconds > EXPIRY_SECONDS:
                    # The broker hears nothing of this client any more.
                    self._expire(fault, now)
            case "slow":
                link.delay_seconds, link.jitter_seconds, link.bytes_per_second = 0.05, 0.05, 400_000.0
                self._ends.append((now + fault.seconds, lambda: _speed_up(federation, fault.part)))

    def _freeze(self, fault: Fault, now: float) -> None:
        part = self._federation.parts[fault.part]
        process = part.process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGSTOP)

        def wake() -> None:
            process.send_signal(signal.SIGCONT)
            if part.terminated_at is not None:
                part.terminated_at = max(part.terminated_at, time.monotonic())

        self._ends.append((now + fault.seconds, wake))
        if fault.seconds > EXPIRY_SECONDS:
            self._expire(fault, now)

    def _expire(self, fault: Fault, now: float) -> None:
        proxy = self._federation.proxies[fault.part]

        def notice() -> None:
            proxy.link.is_expired = False

        self._ends.append((now + EXPIRY_SECONDS, proxy.expire))
        self._ends.append((now + fault.seconds, notice))

    def _is_leaving(self) -> bool:
        """Return whether the run has finished, so that everyone leaves as soon as the final model is with the nodes.

        What a broker loses of its last ten seconds after that (broker/mosquitto.conf, autosave_interval) nobody is
        there to put back; the archive has it.
        """
        return bool(self._federation.position.get("finished"))

    def _break_broker(self, fault: Fault, now: float) -> None:
        broker = self._federation.broker
        if broker.process_id is None or self._is_leaving():
            return
        self._broke_broker_at = now
        if fault.kind == "broker restarted":
            broker.stop()
        else:
            broker.kill()
        if fault.kind == "server's power cut":
            # Mosquitto syncs what it saves and renames it, so its file is the one before or this one.
            self._federation.cut_power(AGGREGATOR)
        saved = broker.folder / "broker.db"
        if fault.kind == "broker wiped":
            saved.unlink(missing_ok=True)
        elif fault.kind == "broker truncated" and saved.exists():
            os.truncate(saved, saved.stat().st_size // 2)
        self._ends.append((now + fault.seconds, broker.start))


def _speed_up(federation: ShippedFederation, part: str) -> None:
    link = federation.proxies[part].link
    link.delay_seconds = link.jitter_seconds = 0.0
    link.bytes_per_second = None
