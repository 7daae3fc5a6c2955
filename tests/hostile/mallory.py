"""An enrolled node that does as a seed says: it knows the protocol, holds a real certificate and key, and means harm.

It draws how it answers each round's plan (`UPDATES`) and what it does beside (`ASIDES`), mutates what it publishes, and
reconnects whenever it is thrown out.
"""

from __future__ import annotations

import secrets
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from federation import topics
from federation.chunks import ChunkedFile, parse_chunk
from federation.codec import decode, encode
from federation.errors import FedMQError
from federation.learning.exchange import capabilities
from federation.messages import GlobalManifest, LocalMetrics, NodeStatus, RoundPlan, RunState, UpdateManifest, parse
from federation.params import Array
from federation.signing import Signer
from tests.faults.federation import NODES, RUN
from tests.hostile.federation import MALLORY
from tests.hostile.mutation import mutate_json, random_bytes

TICK_SECONDS = 0.1
NUM_CLASSES, IMAGE_SHAPE = 10, [1, 8, 8]
CHUNK_BYTES = 64 * 1024
LONG_TOPIC_BYTES = 60_000

SPIED = [f"nodes/{node}" for node in NODES] + [f"updates/{node}" for node in NODES] + [f"metrics/{node}" for node in NODES]
"""What no node may ever be sent of another's."""


@dataclass(slots=True)
class Round:
    """What mallory knows of one round."""

    plan: RoundPlan
    manifest: GlobalManifest | None = None
    chunks: dict[int, bytes] = field(default_factory=dict)
    is_answered: bool = False

    @property
    def params(self) -> dict[str, Array] | None:
        """The round's global model, once all of it has come."""
        if self.manifest is None or len(self.chunks) < len(self.manifest.chunk_sha256):
            return None
        return decode(b"".join(self.chunks[index] for index in range(len(self.chunks))), None)


class Mallory:
    """One hostile node; a context manager that begins and ends its work.

    Args:
        bundle: what `fedmq node add` gave it.
        port: of the fleet's listener.
        seed: of everything it does.
        folder: for its files.
    """

    def __init__(self, bundle: Path, port: int, seed: int, folder: Path) -> None:
        self._random = Random(seed)
        self.updates, self.asides = draw_plan(seed)
        self.received: set[str] = set()
        """Topics of everything it was sent."""
        self.num_actions = 0
        self._leaves = self._random.random() < 0.8
        self._numpy = np.random.default_rng(seed)
        self._bundle, self._port, self._folder = bundle, port, folder
        self.signer = Signer(bundle / "signing.key")
        self.instance = secrets.token_hex(8)
        self.rounds: dict[int, Round] = {}
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._misbehave, name=MALLORY, daemon=True)
        self._client = self._connect()

    def __enter__(self) -> Mallory:
        """Begin."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """End."""
        self._ending.set()
        self._thread.join(60.0)
        self._close(self._client)

    # --- its link -------------------------------------------------------------------------------

    def _connect(self, client_id: str = MALLORY) -> paho.Client:
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv5)
        client.tls_set(
            str(self._bundle / "ca.crt"),
            str(self._bundle / "node.crt"),
            str(self._bundle / "node.key"),
            tls_version=ssl.PROTOCOL_TLS_CLIENT,
        )
        client.reconnect_delay_set(1, 3)
        client.on_connect = self._on_connect
        client.on_message = self._on_message
        client.connect("localhost", self._port, keepalive=30)
        client.loop_start()
        return client

    @staticmethod
    def _close(client: paho.Client) -> None:
        client.disconnect()
        client.loop_stop()

    def _on_connect(self, client: paho.Client, *_facts: object) -> None:
        wanted = [
            str(topics.StateTopic(RUN)),
            topics.plan_filter(RUN),
            f"{topics.PREFIX}/{RUN}/rounds/+/global/#",
            f"{topics.PREFIX}/{RUN}/rounds/+/acks/{MALLORY}",
        ]
        for name in wanted:
            client.subscribe(name, qos=1)
        client.publish(str(topics.StatusTopic(RUN, MALLORY)), self.status().to_payload(), qos=1, retain=True)

    def _on_message(self, client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        with suppress(FedMQError, UnicodeDecodeError):
            self.received.add(message.topic)
            topic = topics.parse_topic(message.topic)
            payload = bytes(message.payload)
            if not payload:
                return
            if isinstance(topic, topics.StateTopic) and parse(RunState, payload).phase == "finished" and self._leaves:
                # Most go when the others do; one that never does costs the ended run a minute.
                self._ending.set()
                client.publish(str(topics.StatusTopic(RUN, MALLORY)), self.status(online=False).to_payload(), qos=1, retain=True)
            elif isinstance(topic, topics.StateTopic):
                # What an aggregator asks of every node before it draws it.
                client.publish(str(topics.StatusTopic(RUN, MALLORY)), self.status().to_payload(), qos=1, retain=True)
            with self._lock:
                if isinstance(topic, topics.PlanTopic):
                    plan = parse(RoundPlan, payload)
                    known = self.rounds.get(plan.round_number)
                    if known is None or known.plan.global_digest != plan.global_digest:
                        self.rounds[plan.round_number] = Round(plan)
                elif isinstance(topic, topics.GlobalManifestTopic) and topic.round_number in self.rounds:
                    self.rounds[topic.round_number].manifest = parse(GlobalManifest, payload)
                elif isinstance(topic, topics.GlobalChunkTopic) and topic.round_number in self.rounds:
                    self.rounds[topic.round_number].chunks[topic.index] = bytes(parse_chunk(payload).data)

    def say(self, topic: topics.Topic | str, payload: bytes, *, retain: bool = True, properties: Properties | None = None) -> None:
        """Publish at QoS 1, whether or not the broker likes it."""
        with suppress(ValueError, RuntimeError, OSError):
            self._client.publish(str(topic), payload, qos=1, retain=retain, properties=properties)

    def status(self, **changes: object) -> NodeStatus:
        """Return a status as an honest node with digits has it."""
        facts = NodeStatus(
            node=MALLORY,
            online=True,
            instance=self.instance,
            num_examples=10**12 if any("weight" in name for name in self.updates) else 480,
            image_shape=IMAGE_SHAPE,
            num_classes=NUM_CLASSES,
            capabilities=capabilities(),
        )
        return facts.model_copy(update=changes)

    # --- what it does ---------------------------------------------------------------------------

    def _misbehave(self) -> None:
        while not self._ending.wait(TICK_SECONDS):
            with self._lock:
                current = max(self.rounds.values(), key=lambda entry: entry.plan.round_number, default=None)
            if current is not None and not current.is_answered and MALLORY in current.plan.cohort:
                params = current.params
                if params is not None:
                    current.is_answered = True
                    name = self.updates[current.plan.round_number % len(self.updates)]
                    UPDATES[name](self, current, params)
                    self.num_actions += 1
            if self._random.random() < 0.3:
                ASIDES[self._random.choice(self.asides)](self)
                self.num_actions += 1

    def send_update(
        self,
        current: Round,
        params: dict[str, Array],
        *,
        num_examples: int = 480,
        change: Callable[[UpdateManifest], UpdateManifest] = lambda manifest: manifest,
        indices: Callable[[int], int] = lambda index: index,
        is_signed: bool = True,
        skips: int = 0,
    ) -> UpdateManifest:
        """Publish an update: its chunks under `indices` of their numbers, then its manifest, `change`d before it is signed."""
        path = self._folder / f"update-{current.plan.round_number}-{secrets.token_hex(4)}.safetensors"
        path.write_bytes(encode(params))
        return self.send_file(current, path, num_examples=num_examples, change=change, indices=indices, is_signed=is_signed, skips=skips)

    def send_file(
        self,
        current: Round,
        path: Path,
        *,
        num_examples: int,
        change: Callable[[UpdateManifest], UpdateManifest],
        indices: Callable[[int], int],
        is_signed: bool,
        skips: int = 0,
    ) -> UpdateManifest:
        """Publish whatever a file holds as an update."""
        number = current.plan.round_number
        source = ChunkedFile(path, CHUNK_BYTES)
        for index in range(skips, source.num_chunks):
            self.say(topics.UpdateChunkTopic(RUN, number, MALLORY, indices(index) % source.num_chunks), source.payload(index))
        manifest = UpdateManifest(
            run=RUN,
            round_number=number,
            node=MALLORY,
            total_bytes=source.total_bytes,
            chunk_bytes=source.chunk_bytes,
            sha256=source.sha256,
            chunk_sha256=list(source.chunk_sha256),
            base_digest=current.plan.global_digest,
            num_examples=num_examples,
            metrics=LocalMetrics(loss=0.01, download_seconds=0.1, train_seconds=0.5, samples_per_second=900.0),
        )
        changed = change(manifest)
        manifest = self.signer.sign(changed) if is_signed else changed
        self.say(topics.UpdateManifestTopic(RUN, number, MALLORY), manifest.to_payload())
        return manifest

    def noise(self, params: dict[str, Array], scale: float) -> dict[str, Array]:
        """Return a model that is `scale` times a plausible step away."""
        return {
            name: (array + scale * 0.01 * self._numpy.standard_normal(array.shape)).astype(np.float32) for name, array in params.items()
        }

    @property
    def random(self) -> Random:
        """Its chances."""
        return self._random

    def second_session(self) -> None:
        """Connect once more under this identity, which throws the first out."""
        second = self._connect()
        time.sleep(0.3)
        self._close(second)


def _filled(params: dict[str, Array], value: float) -> dict[str, Array]:
    return {name: np.full_like(array, value) for name, array in params.items()}


def _flipped(mallory: Mallory, current: Round, params: dict[str, Array]) -> None:
    """Undo the last round ten times over."""
    earlier = mallory.rounds.get(current.plan.round_number - 1)
    before = earlier.params if earlier is not None else None
    step = (
        {name: array - before[name] for name, array in params.items()} if before else {name: array * 0.2 for name, array in params.items()}
    )
    mallory.send_update(current, {name: (array - 10.0 * step[name]).astype(np.float32) for name, array in params.items()})


def _flipped_and_heavy(mallory: Mallory, current: Round, params: dict[str, Array]) -> None:
    """Undo what is there a little, with a weight that was declared beforehand."""
    mallory.send_update(current, {name: (array * np.float32(0.7)) for name, array in params.items()}, num_examples=10**12)


def _poisoned_and_heavy(mallory: Mallory, current: Round, params: dict[str, Array]) -> None:
    mallory.send_update(current, mallory.noise(params, 30.0), num_examples=10**12)


def _overwritten(mallory: Mallory, current: Round, params: dict[str, Array]) -> None:
    """A plausible update; once a later round is on, one of its old chunks, without a manifest."""
    mallory.send_update(current, mallory.noise(params, 0.1))
    number = current.plan.round_number - 1
    if number >= 1:
        mallory.say(topics.UpdateChunkTopic(RUN, number, MALLORY, 0), random_bytes(mallory.random, 1000))


def _not_a_model(mallory: Mallory, current: Round, params: dict[str, Array]) -> None:
    path = mallory._folder / "not-a-model"
    path.write_bytes(random_bytes(mallory.random, len(encode(params))))
    mallory.send_file(current, path, num_examples=480, change=lambda manifest: manifest, indices=lambda index: index, is_signed=True)


def _mutated_manifest(mallory: Mallory, current: Round, params: dict[str, Array]) -> None:
    manifest = mallory.send_update(current, mallory.noise(params, 0.1), is_signed=False)
    for _ in range(5):
        topic = topics.UpdateManifestTopic(RUN, current.plan.round_number, MALLORY)
        mallory.say(topic, mutate_json(mallory.random, manifest.to_payload()))


def _replayed(mallory: Mallory, current: Round, params: dict[str, Array]) -> None:
    """Last round's update as this round's, and this round's as the next one's and the last one's."""
    manifest = mallory.send_update(current, mallory.noise(params, 0.1), change=lambda own: own.model_copy(update={"round_number": 1}))
    for number in (1, current.plan.round_number + 1, current.plan.round_number + 1000):
        mallory.say(topics.UpdateManifestTopic(RUN, number, MALLORY), manifest.to_payload())


UPDATES: dict[str, Callable[[Mallory, Round, dict[str, Array]], object]] = {
    "largest floats and weight": lambda m, r, p: m.send_update(r, _filled(p, 3.4e38), num_examples=10**12),
    "flipped tenfold": _flipped,
    "backwards with all the weight": _flipped_and_heavy,
    "noise with all the weight": _poisoned_and_heavy,
    "noise": lambda m, r, p: m.send_update(r, m.noise(p, 100.0)),
    "zeros": lambda m, r, p: m.send_update(r, _filled(p, 0.0)),
    "NaN": lambda m, r, p: m.send_update(r, _filled(p, float("nan"))),
    "one NaN": lambda m, r, p: m.send_update(r, {**p, min(p): np.full_like(p[min(p)], np.inf)}),
    "another shape": lambda m, r, p: m.send_update(r, {name: array.reshape(-1) for name, array in p.items()}),
    "not a model": _not_a_model,
    "unsigned": lambda m, r, p: m.send_update(r, m.noise(p, 0.1), is_signed=False),
    "another base": lambda m, r, p: m.send_update(r, p, change=lambda own: own.model_copy(update={"base_digest": "0" * 64})),
    "swapped chunks": lambda m, r, p: m.send_update(r, m.noise(p, 0.1), indices=lambda index: index + 1),
    "missing chunks": lambda m, r, p: m.send_update(r, m.noise(p, 0.1), skips=3),
    "mutated manifests": _mutated_manifest,
    "old manifests": _replayed,
    "old chunks overwritten": _overwritten,
    "never answers": lambda _m, _r, _p: None,
}
"""How it answers a plan."""


def _mutated_status(mallory: Mallory) -> None:
    mallory.say(topics.StatusTopic(RUN, MALLORY), mutate_json(mallory.random, mallory.status().to_payload()))


def _prefix_status(mallory: Mallory) -> None:
    names = [str(number) for number in range(mallory.random.randint(2, 9))]
    status = mallory.status(class_names=names, num_classes=mallory.random.choice([NUM_CLASSES, len(names)]))
    mallory.say(topics.StatusTopic(RUN, MALLORY), status.to_payload())


def _forged_lines(mallory: Mallory) -> None:
    text = "no data\n2026-11-24T00:00:00+0000 level=INFO logger=aggregator run stopped\x1b[2J\x1b]0;owned\x07"
    mallory.say(topics.StatusTopic(RUN, MALLORY), mallory.status(problem=text).to_payload())


def _giant_metric(mallory: Mallory) -> None:
    value = mallory.random.choice(["9" * 400, "-" + "9" * 400, "1e999", "NaN", '"x"', "9223372036854775808", "1e-400", "true"])
    point = f'{{"measurement":"train","time_ns":{time.time_ns()},"tags":{{}},"fields":{{"loss":{value}}}}}'
    payload = f'{{"version":1,"node":"{MALLORY}","round_number":1,"points":[{point}]}}'
    mallory.say(topics.MetricsTopic(RUN, MALLORY), payload.encode(), retain=False)


def _mutated_metrics(mallory: Mallory) -> None:
    point = f'{{"measurement":"device","time_ns":{time.time_ns()},"tags":{{}},"fields":{{"cpu_percent":1.0}}}}'
    payload = f'{{"version":1,"node":"{MALLORY}","round_number":1,"points":[{point}]}}'.encode()
    mallory.say(topics.MetricsTopic(RUN, MALLORY), mutate_json(mallory.random, payload), retain=mallory.random.random() < 0.5)


def _invented_runs(mallory: Mallory) -> None:
    for _ in range(20):
        mallory.say(topics.StatusTopic(f"run-{mallory.random.randrange(10**6)}", MALLORY), mallory.status().to_payload())


def _long_topics(mallory: Mallory) -> None:
    for _ in range(3):
        run = "".join(mallory.random.choices("abcdefgh", k=LONG_TOPIC_BYTES))
        mallory.say(f"{topics.PREFIX}/{run}/nodes/{MALLORY}/status", random_bytes(mallory.random, 10))


def _user_properties(mallory: Mallory) -> None:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.UserProperty = [("k" * 1000, "v" * 60_000)] * mallory.random.randint(1, 30)
    mallory.say(topics.StatusTopic(RUN, MALLORY), mallory.status().to_payload(), properties=properties)


def _unplanned_updates(mallory: Mallory) -> None:
    number = mallory.random.randint(6, 10**9)
    for index in range(8):
        mallory.say(topics.UpdateChunkTopic(RUN, number, MALLORY, index), random_bytes(mallory.random, 200_000))


def _random_chunks(mallory: Mallory) -> None:
    number = max(mallory.rounds, default=1)
    mallory.say(topics.UpdateChunkTopic(RUN, number, MALLORY, mallory.random.randrange(20)), random_bytes(mallory.random, 5000))


def _spying(mallory: Mallory) -> None:
    filters = ["#", "$SYS/#", "+/+/+/#", f"{topics.PREFIX}/+/nodes/+/status", f"{topics.PREFIX}/+/rounds/+/updates/#"]
    filters += [f"{topics.PREFIX}/+/metrics/+", f"{topics.PREFIX}/{RUN}/rounds/+/acks/+", f"$share/x/{topics.PREFIX}/#"]
    with suppress(ValueError, OSError):
        mallory._client.subscribe([(mallory.random.choice(filters), SubscribeOptions(qos=1))])


def _forbidden(mallory: Mallory) -> None:
    other = mallory.random.choice(NODES)
    number = max(mallory.rounds, default=1)
    for topic in (
        topics.StateTopic(RUN),
        topics.ControlTopic(RUN),
        topics.PlanTopic(RUN, number),
        topics.ResultTopic(RUN, number),
        topics.AckTopic(RUN, number, other),
        topics.StatusTopic(RUN, other),
        topics.UpdateManifestTopic(RUN, number, other),
        topics.MetricsTopic(RUN, other),
        "$SYS/broker/uptime",
    ):
        mallory.say(topic, mallory.random.choice([b"", b"{}", random_bytes(mallory.random, 50)]))


def _flapping(mallory: Mallory) -> None:
    for is_online in (False, True, False, True):
        mallory.say(topics.StatusTopic(RUN, MALLORY), mallory.status(online=is_online).to_payload())


def _new_instances(mallory: Mallory) -> None:
    mallory.say(topics.StatusTopic(RUN, MALLORY), mallory.status(instance=secrets.token_hex(8)).to_payload())


def _ghost(mallory: Mallory) -> None:
    """Online for ever by its retained status, with nobody behind it for a while."""
    mallory.say(topics.StatusTopic(RUN, MALLORY), mallory.status().to_payload())
    mallory._close(mallory._client)
    time.sleep(mallory.random.uniform(0.5, 5.0))
    with suppress(OSError):
        mallory._client = mallory._connect()


def _cleared(mallory: Mallory) -> None:
    number = max(mallory.rounds, default=1)
    for topic in (
        topics.StatusTopic(RUN, MALLORY),
        topics.UpdateManifestTopic(RUN, max(1, number - 1), MALLORY),
        topics.UpdateChunkTopic(RUN, max(1, number - 1), MALLORY, 0),
    ):
        mallory.say(topic, b"")


ASIDES: dict[str, Callable[[Mallory], object]] = {
    "mutated statuses": _mutated_status,
    "prefix of the class names": _prefix_status,
    "forged log lines": _forged_lines,
    "giant metrics": _giant_metric,
    "mutated metrics": _mutated_metrics,
    "invented runs": _invented_runs,
    "long topics": _long_topics,
    "user properties": _user_properties,
    "unplanned updates": _unplanned_updates,
    "random chunks": _random_chunks,
    "spying": _spying,
    "forbidden topics": _forbidden,
    "flapping": _flapping,
    "new instances": _new_instances,
    "twin sessions": Mallory.second_session,
    "ghost": _ghost,
    "cleared retained messages": _cleared,
}
"""What it does beside the rounds."""


def draw_plan(seed: int) -> tuple[list[str], list[str]]:
    """Return how the node of a seed answers plans, in turn, and what it does beside."""
    random = Random(f"plan {seed}")
    return random.sample(sorted(UPDATES), random.randint(1, 3)), random.sample(sorted(ASIDES), random.randint(2, 5))
