"""Every error FedMQ raises on purpose.

    FedMQError
    ├── SettingsError          a run file, flag or variable is wrong: the text says what to set
    ├── DataError              images or labels can't be used: the text says what to change
    ├── ExportError            a network can't be turned into ONNX: the text and `reason` say why
    ├── ModelFileError         an ONNX file is missing, damaged, or not one of ours
    ├── CheckpointError        what was stored on disk can't be used
    ├── ArchiveError           a round's record does not say what happened: the text names round and place
    ├── TrainingCancelled      local training was told to stop before its end: no fault
    ├── TrainingDivergedError  local training left the finite numbers: the text says what to lower
    ├── TransportError         the broker can't be reached or refuses us
    │   └── IdentityTakenError another client connected under our identity
    ├── FencedError            a newer aggregator leads this run
    ├── LocalProtocolError     we broke the protocol: a bug here
    └── RemoteProtocolError    they broke it: bytes from outside are not what the protocol allows
        ├── TopicError         a topic that is not in docs/protocol.md
        ├── MessageError       a JSON payload that does not validate
        ├── CodecError         tensor bytes that do not decode
        └── ChunkError         a chunk or manifest that contradicts itself or its bounds

A `RemoteProtocolError` never ends a process: its `reason` is counted and the payload is dropped.
"""

from __future__ import annotations

from enum import StrEnum


class FedMQError(Exception):
    """Base of all errors below; the text is fit to show to a user."""


class SettingsError(FedMQError):
    """Settings are wrong. The text lists every problem, one a line."""


class DataError(FedMQError):
    """A data set can't be used."""


class ExportError(FedMQError):
    """A network can't be turned into an ONNX model.

    Args:
        detail: one sentence for the log.
        reason: the kind of fault, for the metrics: lower-case letters and underscores, at most 40.
    """

    def __init__(self, detail: str, *, reason: str) -> None:
        super().__init__(detail)
        self.reason = reason


class ModelFileError(FedMQError):
    """An ONNX file is missing, damaged, or not one of ours."""


class CheckpointError(FedMQError):
    """A stored checkpoint is missing, damaged or belongs to another run."""


class ArchiveError(FedMQError):
    """A round's record is missing, damaged or contradicts itself; the text names the round and the place."""


class TrainingCancelled(FedMQError):  # noqa: N818 - told to stop, which is no error
    """Local training was told to stop before its end; nothing of it is kept."""


class TrainingDivergedError(FedMQError):
    """Local training left the finite numbers."""


class TransportError(FedMQError):
    """The broker can't be reached, or refuses this client."""


class IdentityTakenError(TransportError):
    """Another client connected with this client's identity."""


class FencedError(FedMQError):
    """Another aggregator has taken over this run; this one must stop."""


class LocalProtocolError(FedMQError):
    """This process tried something that its state does not allow: a bug."""


class RejectReason(StrEnum):
    """Why bytes from outside were refused; also the `reason` tag of the metrics."""

    UNKNOWN_TOPIC = "unknown_topic"
    INVALID_MESSAGE = "invalid_message"
    UNSUPPORTED_VERSION = "unsupported_version"
    OVERSIZED = "oversized"
    CORRUPT = "corrupt"
    INVALID_MANIFEST = "invalid_manifest"
    WRONG_SHAPE = "wrong_shape"
    WRONG_DTYPE = "wrong_dtype"
    NON_FINITE = "non_finite"
    FOREIGN_ROUND = "foreign_round"
    FOREIGN_BASE = "foreign_base"
    UNKNOWN_NODE = "unknown_node"
    BAD_SIGNATURE = "bad_signature"
    UNHANDLED = "unhandled"
    """Our own code failed over it: a bug, with a traceback in the log."""


class RemoteProtocolError(FedMQError):
    """Bytes from outside break the protocol.

    Args:
        detail: one sentence for the log.
        reason: the kind of fault, for counters and acks.
    """

    def __init__(self, detail: str, *, reason: RejectReason) -> None:
        super().__init__(detail)
        self.reason = reason


class TopicError(RemoteProtocolError):
    """A topic outside docs/protocol.md."""


class MessageError(RemoteProtocolError):
    """A JSON payload that does not validate."""


class CodecError(RemoteProtocolError):
    """Tensor bytes that do not decode to the expected set."""


class ChunkError(RemoteProtocolError):
    """A chunk or manifest that contradicts itself or its bounds."""
