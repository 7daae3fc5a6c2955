"""A TCP proxy on loopback that can be made as bad as a real link: cut, silent, one-way, slow, far away."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from types import TracebackType
from typing import Literal, Self, TypeAlias

from tests.faults.protocol_step import AFTER_SECONDS, PacketReader, ProtocolStep, as_duplicate

Direction: TypeAlias = Literal["up", "down"]

READ_BYTES = 4096
TICK_SECONDS = 0.005


@dataclass(slots=True, kw_only=True)
class LinkSettings:
    """What the link is like now; any thread may change it."""

    stalled: set[Direction] = field(default_factory=set)
    """Directions in which nothing gets through, with the connections open."""
    refuses: bool = False
    """New connections are closed at once."""
    delay_seconds: float = 0.0
    """One way."""
    jitter_seconds: float = 0.0
    bytes_per_second: float | None = None
    """Each way; None for no limit."""
    is_expired: bool = False
    """The broker has given the connections up, as after a keep-alive; this side has not noticed yet."""
    duplicates: float = 0.0
    """Share of messages from the broker that come twice, as QoS 1 allows, at once or after their successor."""


class Proxy:
    """Carries connections to a port on this machine; a context manager.

    Args:
        target_port: where to.
        seed: of the jitter.
    """

    def __init__(self, target_port: int, *, seed: int = 0) -> None:
        self.link = LinkSettings()
        self.carried_bytes: dict[Direction, int] = {"up": 0, "down": 0}
        self.num_connections = 0
        self.step: ProtocolStep | None = None
        """What this link waits for; gone once it has come."""
        self.port = 0
        self._target_port = target_port
        self._random = Random(seed)
        self._writers: set[asyncio.StreamWriter] = set()
        self._target_writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        """Listen."""
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop).result(10.0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Cut all and end."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10.0)
        self._loop.close()

    def cut(self) -> None:
        """Break every connection, once; new ones are let through."""
        self._loop.call_soon_threadsafe(self._cut)

    def expire(self) -> None:
        """Let the broker give every connection up, while this side stays as it is until `link.is_expired` is taken back."""
        self.link.is_expired = True
        self._loop.call_soon_threadsafe(self._expire)

    def _cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    def _expire(self) -> None:
        for writer in list(self._target_writers):
            writer.transport.abort()

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        self._cut()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.link.refuses or self.link.is_expired:
            writer.transport.abort()
            return
        self.num_connections += 1
        try:
            target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        ends = (writer, target_writer)
        self._writers.update(ends)
        self._target_writers.add(target_writer)
        try:
            pumps = [
                asyncio.create_task(self._pump("up", reader, target_writer)),
                asyncio.create_task(self._pump("down", target_reader, writer)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            while self.link.is_expired and not writer.transport.is_closing():
                await asyncio.sleep(TICK_SECONDS)
        except asyncio.CancelledError:
            return  # the proxy is closing; asyncio would log a handler that ends cancelled
        finally:
            self._writers.difference_update(ends)
            self._target_writers.discard(target_writer)
            for end in ends:
                end.transport.abort()

    async def _pump(self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting: deque[tuple[float, bytes]] = deque()
        packets, held = PacketReader(), list[bytes]()
        sender = asyncio.create_task(self._send(direction, waiting, writer))
        try:
            with suppress(OSError):
                while data := await reader.read(READ_BYTES):
                    for packet, topic in packets.feed(data):
                        if self._strike(direction, topic):
                            return
                        self._queue(packet, waiting)
                        while held:
                            self._queue(as_duplicate(held.pop()), waiting)
                        if direction == "down" and topic and self._random.random() < self.link.duplicates:
                            held.append(packet)
                            if self._random.random() < 0.5:
                                self._queue(as_duplicate(held.pop()), waiting)
                    while len(waiting) > 64:
                        await asyncio.sleep(TICK_SECONDS)
                while waiting:
                    await asyncio.sleep(TICK_SECONDS)
        finally:
            sender.cancel()

    def _queue(self, packet: bytes, waiting: deque[tuple[float, bytes]]) -> None:
        delay = self.link.delay_seconds + self._random.uniform(0.0, self.link.jitter_seconds)
        # TCP keeps the order, whatever the delays.
        due = max(self._loop.time() + delay, waiting[-1][0] if waiting else 0.0)
        waiting.extend((due, packet[start : start + READ_BYTES]) for start in range(0, len(packet), READ_BYTES))

    def _strike(self, direction: Direction, topic: str) -> bool:
        """Strike if the awaited step has come; True when its packet must not leave."""
        step = self.step
        if step is None or not topic or not step.is_due(direction, topic):
            return False
        self.step = None
        if step.moment == "after":
            self._loop.call_later(AFTER_SECONDS, step.strike)
            return False
        step.strike()
        return step.swallows and step.moment == "before"

    async def _send(self, direction: Direction, waiting: deque[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while True:
                if not waiting or direction in self.link.stalled or self._loop.time() < waiting[0][0]:
                    await asyncio.sleep(TICK_SECONDS)
                    continue
                _, data = waiting[0]
                if self.link.bytes_per_second is not None:
                    await asyncio.sleep(len(data) / self.link.bytes_per_second)
                writer.write(data)
                await writer.drain()
                self.carried_bytes[direction] += len(data)
                waiting.popleft()


def wait_until(condition: Callable[[], bool], *, timeout_seconds: float, what: str, poll_seconds: float = 0.02) -> None:
    """Wait until a condition holds; fail, saying what was waited for, when it takes too long."""
    give_up = threading.Event()
    timer = threading.Timer(timeout_seconds, give_up.set)
    timer.daemon = True
    timer.start()
    try:
        while not condition():
            if give_up.is_set():
                raise AssertionError(f"waited {timeout_seconds:.0f} s in vain for {what}")
            give_up.wait(poll_seconds)
    finally:
        timer.cancel()
