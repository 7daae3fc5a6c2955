"""Messages as a hostile or broken sender makes them: well formed but for one thing, on the topics of the protocol and beside them.

Random bytes never get past a parser; a valid message with one absurd value does. The same seed gives the same messages.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from random import Random
from typing import Any

from federation import topics
from federation.chunk_format import HEADER, pack_header
from federation.messages import MAX_MESSAGE_BYTES

RUN = "pair"
HONEST = "n0"
SENDER = "n9"
"""The node whose identity the sender has."""

DIGEST = "a" * 64
METRICS = {"loss": 1.0, "download_seconds": 0.0, "train_seconds": 1.0, "samples_per_second": 1.0}
MODEL = {"name": "simple_cnn"}

ABSURD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**53,
    2**63 - 1,
    2**63,
    10**18,
    10**400,
    -(10**400),
    0.0,
    -0.0,
    0.5,
    1e-320,
    3.4e38,
    1.7e308,
    -1e308,
    float("nan"),
    float("inf"),
    "",
    "0",
    "nan",
    "n0",
    "é",
    "a\nb\x1b[2J",
    "\x00",
    "\ud800",
    "x" * 501,
    "x" * 100_000,
    "../../x",
    DIGEST,
    [],
    {},
    [[]],
    [None],
    [0] * 1000,
    ["a"],
    ["a", "b", "c"],
    ["b", "a"],
    [1, 8, 8],
    [2**53] * 3,
    {"a": {"b": {}}},
    {"loss": 10**400},
    {"loss": 1.0, "cpu": "much"},
)


def valid_messages() -> dict[str, dict[str, Any]]:
    """Return a valid message of each kind, as JSON values, by the topic it goes to."""
    transfer = {"run": RUN, "round_number": 1, "codec": "safetensors", "total_bytes": 19_400, "chunk_bytes": 3000}
    transfer |= {"sha256": DIGEST, "chunk_sha256": [DIGEST] * 7}
    status = {"node": SENDER, "online": True, "instance": "i9", "num_examples": 10, "image_shape": [1, 8, 8], "num_classes": 2}
    status |= {"class_names": ["a", "b"], "num_cores": 4, "memory_bytes": 1 << 30, "software": {"fedmq": "0.1.0"}, "problem": ""}
    update = {**transfer, "node": SENDER, "base_digest": DIGEST, "num_examples": 10, "metrics": METRICS}
    point = {"measurement": "train", "time_ns": 10**12, "tags": {}, "fields": {"loss": 1.0, "train_seconds": 2.0}}
    device = {"measurement": "device", "time_ns": 10**12, "tags": {}, "fields": {"cpu": 0.5, "memory_used_bytes": 5, "throttled": True}}
    state = {"run": RUN, "phase": "training", "round_number": 1, "num_rounds": 3, "epoch": 1, "method": "fedavg", "model": MODEL}
    training = {"local_epochs": 1, "batch_size": 32, "learning_rate": 0.01}
    plan = {"run": RUN, "round_number": 1, "epoch": 1, "cohort": [HONEST], "deadline_seconds": 10.0, "seed": 7, "model": MODEL}
    plan |= {"training": training, "learning_rate": 0.01, "global_digest": DIGEST, "global_bytes": 100}
    ack = {"run": RUN, "round_number": 1, "epoch": 1, "node": HONEST, "outcome": "accepted", "sha256": DIGEST}
    return {
        str(topics.StatusTopic(RUN, SENDER)): status,
        str(topics.MetricsTopic(RUN, SENDER)): {"node": SENDER, "round_number": 1, "points": [point, device]},
        str(topics.UpdateManifestTopic(RUN, 1, SENDER)): update,
        str(topics.UpdateManifestTopic(RUN, 2, SENDER)): update | {"round_number": 2},
        str(topics.StateTopic(RUN)): state,
        str(topics.ControlTopic(RUN)): {"run": RUN, "wanted": "pause", "reason": ""},
        str(topics.PlanTopic(RUN, 1)): plan,
        str(topics.GlobalManifestTopic(RUN, 1)): transfer,
        str(topics.AckTopic(RUN, 1, HONEST)): ack,
        str(topics.ResultTopic(RUN, 1)): {"run": RUN, "round_number": 1, "epoch": 1},
    }


def messages(seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield topic and payload, without end."""
    random = Random(seed)
    valid = valid_messages()
    chunk_topics = [str(topics.UpdateChunkTopic(RUN, number, SENDER, index)) for number in (1, 2) for index in (0, 1, 6, 7)]
    chunk_topics += [str(topics.GlobalChunkTopic(RUN, 1, index)) for index in (0, 1)]
    while True:
        if random.random() < 0.15:
            topic, payload = random.choice(chunk_topics), _chunk(random)
        else:
            topic = random.choice(list(valid))
            payload = _json(random, valid[topic])
        if random.random() < 0.05:
            topic = _other_topic(random, topic)
        if random.random() < 0.05:
            payload = _damaged(random, payload)
        yield topic, payload


def _json(random: Random, message: Mapping[str, Any]) -> bytes:
    """Return a message of the kind with no, one or a few things changed."""
    copied: dict[str, Any] = json.loads(json.dumps({"version": 2, **message}))
    for _ in range(random.choice((0, 1, 1, 1, 1, 2, 4))):
        random.choice(_CHANGES)(random, *_some_place(random, copied))
    text = json.dumps(copied)
    if random.random() < 0.02:
        text = text.replace(": 1", ": " + "1" * random.choice((20, 400, 5000)), 1)
    if random.random() < 0.01:
        text = "[" * random.choice((10, 1000, 100_000)) + text
    return text.encode()[: MAX_MESSAGE_BYTES + 10]


def _some_place(random: Random, message: dict[str, Any]) -> tuple[Any, Any]:
    """Return a container in the message, itself perhaps, and a key or index in it."""
    container: Any = message
    while True:
        keys = list(container) if isinstance(container, dict) else list(range(len(container)))
        key = random.choice(keys)
        inner = container[key]
        if not (isinstance(inner, dict | list) and inner) or random.random() < 0.3:
            return container, key
        container = inner


def _replace(random: Random, container: Any, key: Any) -> None:
    container[key] = deepcopy(random.choice(ABSURD))


def _remove(_random: Random, container: Any, key: Any) -> None:
    if len(container) > 1:
        container.pop(key)


def _add(random: Random, container: Any, key: Any) -> None:
    if isinstance(container, dict):
        container[random.choice(("x", "version", "__class__", "", "node", "é" * 70))] = deepcopy(random.choice(ABSURD))
    else:
        container.insert(key, deepcopy(random.choice(ABSURD)))


def _repeat(random: Random, container: Any, key: Any) -> None:
    if isinstance(container, list):
        container.extend([container[key]] * random.choice((1, 2, 1001)))
    elif isinstance(container[key], str):
        container[key] = container[key] * random.choice((2, 70))
    elif isinstance(container[key], list):
        container[key] = container[key][: random.randrange(len(container[key]) + 1)]


def _scale(random: Random, container: Any, key: Any) -> None:
    if isinstance(container[key], int | float) and not isinstance(container[key], bool):
        container[key] = container[key] * random.choice((-1, 0, 2, 10, 1000, 10**9))


_CHANGES: tuple[Callable[[Random, Any, Any], None], ...] = (_replace, _replace, _remove, _add, _repeat, _scale)


def _chunk(random: Random) -> bytes:
    """Return a chunk whose header is sound or lies in one field."""
    index, size = random.choice((0, 1, 6)), random.choice((3000, 1400, 0, 1))
    header = bytearray(pack_header(index, num_chunks=7, total_bytes=19_400, chunk_bytes=3000, transfer_sha256=DIGEST))
    if random.random() < 0.6:
        offset, code = random.choice(((4, ">B"), (8, ">I"), (12, ">I"), (16, ">Q"), (24, ">I"), (28, ">I")))
        limit = 256 ** struct.calcsize(code)
        struct.pack_into(code, header, offset, random.choice((0, 1, 7, 1024, 3001, limit - 1, limit // 2)) % limit)
    assert len(header) == HEADER.size
    return bytes(header) + random.randbytes(size)


def _other_topic(random: Random, topic: str) -> str:
    """Return a topic beside the protocol's, or of another run, round or node."""
    levels = topic.split("/")
    place = random.randrange(len(levels))
    levels[place] = random.choice(("", "+", "#", "other", "0", "01", "99999999999999999999", "..", "é", "N9", "x" * 200, "\x1b[2J"))
    return "/".join(levels if random.random() < 0.8 else [*levels, "more"])


def _damaged(random: Random, payload: bytes) -> bytes:
    if not payload or random.random() < 0.2:
        return random.randbytes(random.randrange(300))
    if random.random() < 0.5:
        return payload[: random.randrange(len(payload))]
    flipped = bytearray(payload)
    flipped[random.randrange(len(flipped))] ^= 1 << random.randrange(8)
    return bytes(flipped)
