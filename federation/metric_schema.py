"""The table of everything FedMQ measures: names, kinds, units, who sends it and when.

The database's rows, metrics.jsonl, the dashboards' queries and docs/metrics.md all follow this one table.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from federation.metric_types import MAX_CONFUSION_CLASSES, NUM_CORE_FIELDS, Measurement
from federation.metric_types import float_field as _float
from federation.metric_types import integer_field as _integer
from federation.metric_types import text_field as _text

_ROUND_NUMBER = _integer("round_number", "", "round the point belongs to, from 1")

_ROUND = Measurement(
    name="round",
    sender="aggregator",
    when="at each round's result",
    keep="rounds",
    tags=(),
    fields=(
        _ROUND_NUMBER,
        _float("accuracy", "share", "of the new global model on the whole test set"),
        _float("f1_macro", "share", "macro F1 there"),
        _float("f1_weighted", "share", "weighted F1 there"),
        _float("auc", "share", "macro area under the ROC curve there, each class against the rest"),
        _float("loss", "nats", "mean cross-entropy there"),
        _float("accuracy_change", "share", "accuracy minus the previous round's"),
        _float("seconds", "s", "from the round's opening to its result"),
        _float("collect_seconds", "s", "from its opening until the last awaited update"),
        _float("download_seconds", "s", "slowest node: from the plan until the global model was whole"),
        _float("train_seconds", "s", "slowest node: local training"),
        _float("upload_seconds", "s", "rest of the collection: plan and updates on their way"),
        _float("aggregate_seconds", "s", "updates into the next global model"),
        _float("evaluate_seconds", "s", "global evaluation"),
        _integer("cohort", "nodes", "drawn into the round"),
        _integer("accepted", "updates", "whole and valid; those not left out made the new global model"),
        _integer("rejected", "updates", "refused with a reason"),
        _integer("discarded", "updates", "late or duplicate"),
        _integer("stragglers", "nodes", "of whom no complete update had come"),
        _integer("left_out", "updates", "accepted, and left out by the protection: too far from the global model"),
        _integer("aggregated", "0/1", "0 below quorum, or nothing usable came of the updates: the global model stayed"),
        _integer("bytes_up", "bytes", "of updates received"),
        _integer("bytes_down", "bytes", "of global model sent to the cohort"),
        _integer("num_rounds", "rounds", "the run's length"),
        _float("progress", "share", "of the run's rounds that are done"),
        _float("seconds_left", "s", "rounds left times the median of the last ten rounds"),
    ),
)
_RUN_SUMMARY = Measurement(
    name="run_summary",
    sender="aggregator",
    when="at its start, each change of state, each round's result, the end, and every 30 s between (then a few of the fields)",
    keep="rounds",
    tags=(),
    fields=(
        _integer("state", "", "0 paused, 1 waiting, 2 training, 3 evaluating, 4 finished, 5 stopped, 6 failed; ended from 4 on"),
        _integer("life", "", "1, 2, ...: once, in the first point of each life of a run"),
        _integer("seen_ms", "ms", "this point's time, since 1970"),
        _text("note", "what the run waits for, or why it has ended"),
        _text("dataset", "name of the data set"),
        _text("method", "name of the strategy"),
        _integer("num_classes", "classes", "of the data set"),
        _integer("started_ms", "ms", "beginning of the present life, since 1970; a resumed run keeps it"),
        _integer("ended_ms", "ms", "its end, since 1970; at the end only"),
        _text("until", "`now`; at the end, that moment and a second more, in ms since 1970: where links to the run end"),
        _integer("rounds_done", "rounds", "that have a result"),
        _integer("num_rounds", "rounds", "the run's length"),
        _text("rounds", "both: `5 of 12`"),
        _integer("nodes_online", "nodes", "connected"),
        _integer("num_nodes", "nodes", "known, or as many as a round needs"),
        _text("nodes", "both: `3 of 3`; `–` at the end"),
        _float("accuracy", "share", "of the last global model on the whole test set"),
        _float("f1_macro", "share", "macro F1 there"),
        _float("worst_accuracy", "share", "recall of the worst class there"),
        _text("worst_class", "its label"),
        _float("seconds", "s", "length of the run so far"),
        _float("seconds_left", "s", "rounds left times the median of the last ten; 0 while it waits, is paused or has ended"),
    ),
)
_CLASS_ACCURACY = Measurement(
    name="class_accuracy",
    sender="aggregator",
    when="at each round's result, one a class",
    keep="rounds",
    tags=("class", "label"),
    fields=(
        _ROUND_NUMBER,
        _float("value", "share", "recall of the class on the test set"),
        _integer("images", "images", "of the class there"),
        _text("taken_for", "label of the commonest wrong class of its images, or `none`"),
        _float("taken_for_share", "share", "of its images that were taken for that class"),
    ),
)
_LOCAL_CLASS_ACCURACY = Measurement(
    name="local_class_accuracy",
    sender="aggregator",
    when="at each round's result, one an accepted node and class",
    keep="rounds",
    tags=("node", "class", "label"),
    fields=(_ROUND_NUMBER, _float("value", "share", "recall of the class by the received global model on the node's validation share")),
)
_CONFUSION = Measurement(
    name="confusion",
    sender="aggregator",
    when=f"at each round's result, one a true class, up to {MAX_CONFUSION_CLASSES} classes",
    keep="rounds",
    tags=("class", "label"),
    fields=(
        _ROUND_NUMBER,
        _integer("images", "images", "of the true class"),
        *(_integer(f"predicted_{index:02d}", "images", f"taken for class {index}") for index in range(MAX_CONFUSION_CLASSES)),
    ),
)
_OUTCOME = Measurement(
    name="outcome",
    sender="aggregator",
    when="at each round's result, one a cohort member",
    keep="rounds",
    tags=("node", "reason"),
    fields=(
        _ROUND_NUMBER,
        _integer("accepted", "0/1", "its update was aggregated"),
        _integer("rejected", "0/1", "its update was refused; tag `reason`"),
        _integer("discarded", "0/1", "its update came late, twice or not at all"),
        _integer("num_examples", "images", "it trained on, as it claims"),
        _integer("weight", "images", "it was aggregated with; 0: left out by the protection"),
        _float("distance", "", "Euclidean, of its update from the round's global model"),
    ),
)
_DIAGNOSTIC = Measurement(
    name="diagnostic",
    sender="aggregator",
    when="at each round's result, one a figure of the strategy",
    keep="rounds",
    tags=("name",),
    fields=(_ROUND_NUMBER, _float("value", "", "what the strategy says of its aggregation")),
)
_EVENT = Measurement(
    name="event",
    sender="aggregator",
    when="when it happens",
    keep="rounds",
    tags=("node", "kind"),
    fields=(_ROUND_NUMBER, _text("text", "the event as a sentence")),
)
_TRAIN = Measurement(
    name="train",
    sender="node",
    when="after its local training, each round",
    keep="rounds",
    tags=("node",),
    fields=(
        _ROUND_NUMBER,
        _float("loss", "nats", "mean training loss of the last local epoch"),
        _float("download_seconds", "s", "from the plan until the global model was whole"),
        _float("train_seconds", "s", "local training"),
        _float("samples_per_second", "images/s", "of local training"),
        _float("validation_accuracy", "share", "of the received global model on the node's validation share"),
        _float("validation_loss", "nats", "there"),
    ),
)
_INFERENCE = Measurement(
    name="inference",
    sender="node",
    when="after a round, one an engine; by the server, as node `aggregator`, on the test set",
    keep="rounds",
    tags=("node", "engine", "reason"),
    fields=(
        _ROUND_NUMBER,
        _integer("num_images", "images", "in the validation share"),
        _integer("batch_size", "images", "at a time, over the validation share"),
        _integer("num_threads", "threads", "of each engine"),
        _float("seconds", "s", "validation share, with data handling"),
        _float("engine_seconds", "s", "validation share, the engine alone"),
        _float("images_per_second", "images/s", "validation share, the engine alone"),
        _float("torch_ms", "ms", "one image by PyTorch, median"),
        _float("onnx_ms", "ms", "one image by ONNX Runtime, median"),
        _float("p50_ms", "ms", "one image, median"),
        _float("p95_ms", "ms", "one image, 95th percentile"),
        _float("p99_ms", "ms", "one image, 99th percentile"),
        _float("speedup", "x", "PyTorch's `seconds`, in its faster memory format, over this engine's"),
        _float("speedup_over_eager", "x", "PyTorch's `eager_seconds` over this engine's `seconds`"),
        _float("eager_seconds", "s", "engine torch: `seconds` with plain memory"),
        _float("channels_last_seconds", "s", "engine torch: `seconds` with channels_last memory"),
        _integer("is_channels_last", "0/1", "engine torch: channels_last is the faster, and speaks for it"),
        _float("max_abs_difference", "logits", "largest difference from PyTorch's logits"),
        _float("max_relative_difference", "", "the same over PyTorch's largest logit"),
        _integer("different_predictions", "images", "of another class than PyTorch's"),
        _integer("parity", "0/1", "engine onnx: predictions equal PyTorch's and logits within 1e-4, relative"),
        _integer("model_bytes", "bytes", "the model as this engine reads it"),
        _integer("peak_memory_bytes", "bytes", "growth of the process while the engine was made and ran one batch"),
        _float("convert_seconds", "s", "global model to ONNX, all of it"),
        _float("export_seconds", "s", "export; 0 where an earlier round's graph got new weights"),
        _float("simplify_seconds", "s", "ONNX Simplifier; 0 likewise"),
        _float("quantise_seconds", "s", "engine onnx-int8: calibration and quantisation"),
        _integer("is_filled", "0/1", "an earlier round's graph got new weights"),
        _integer("is_simplified", "0/1", "0 where ONNX Simplifier refused the graph"),
        _float("accuracy", "share", "on the validation share"),
        _float("f1_macro", "share", "there"),
        _float("f1_weighted", "share", "there"),
        _float("auc", "share", "there"),
        _integer("is_current", "0/1", "the device serves this engine's model"),
        _integer("is_kept_out", "0/1", "1: an older round's model stays in use, for this one is far worse on these images"),
        _integer("failed", "0/1", "there is no such engine this round; the tag `reason` says why"),
    ),
)
_DEVICE = Measurement(
    name="device",
    sender="node",
    when="every few seconds",
    keep="samples",
    tags=("node",),
    fields=(
        _float("cpu", "share", "of all cores"),
        *(_float(f"cpu_core_{index}", "share", f"core {index}") for index in range(NUM_CORE_FIELDS)),
        _float("load_1m", "tasks", "load average"),
        _integer("memory_used_bytes", "bytes", "of the device"),
        _float("memory_used", "share", "of the device's memory"),
        _integer("process_memory_bytes", "bytes", "resident, of the training process"),
        _float("process_cpu", "cores", "used by the training process"),
        _float("disk_used", "share", "of the file system of the node's state"),
        _integer("disk_free_bytes", "bytes", "there"),
        _float("temperature_celsius", "°C", "hottest sensor of the processor"),
        _integer("throttled", "0/1", "slowed by heat or voltage now (vcgencmd)"),
        _integer("throttled_since_boot", "0/1", "at any time since boot"),
        _integer("under_voltage", "0/1", "now"),
        _integer("network_sent_bytes", "bytes", "since boot, all interfaces but loopback"),
        _integer("network_received_bytes", "bytes", "since boot, all interfaces but loopback"),
        _float("certificate_days", "days", "until this node's certificate expires"),
    ),
)
_NODE = Measurement(
    name="node",
    sender="aggregator",
    when="when a node's status or state changes, and every 30 s",
    keep="samples",
    tags=("node",),
    fields=(
        _integer("state", "", "0 offline, 1 silent (connected, nothing heard for 60 s), 2 unfit (online with a problem), 3 online"),
        _integer("online", "0/1", "connected"),
        _integer("fit", "0/1", "online and without a problem"),
        _integer("num_examples", "images", "it trains on"),
        _integer("num_cores", "cores", "of the device"),
        _integer("memory_bytes", "bytes", "of the device"),
    ),
)
_RUN = Measurement(
    name="run",
    sender="aggregator",
    when="at each round's start, and every 30 s while the run goes on",
    keep="samples",
    tags=(),
    fields=(
        _ROUND_NUMBER,
        _integer("num_rounds", "rounds", "the run's length"),
        _integer("nodes_online", "nodes", "connected"),
        _float("seconds_since_round", "s", "since the last round opened"),
        _float("deadlines_since_round", "deadlines", "the same in units of the round's deadline"),
        _float("disk_used", "share", "of the file system of the run's folder"),
        _integer("process_memory_bytes", "bytes", "resident, of the aggregator"),
    ),
)
_BROKER = Measurement(
    name="broker",
    sender="aggregator",
    when="every 10 s, from `$SYS`",
    keep="samples",
    tags=(),
    fields=(
        _integer("clients_connected", "clients", "now"),
        _integer("clients_total", "clients", "connected or with a session kept"),
        _integer("messages_received", "messages", "since the broker's start"),
        _integer("messages_sent", "messages", "since the broker's start"),
        _integer("messages_dropped", "messages", "lost to full queues since the broker's start"),
        _integer("messages_stored", "messages", "retained and queued"),
        _integer("stored_bytes", "bytes", "of their payloads"),
        _integer("retained_messages", "messages", "retained"),
        _integer("queued_messages", "messages", "stored beyond the retained: waiting for a client"),
        _integer("bytes_received", "bytes", "since the broker's start"),
        _integer("bytes_sent", "bytes", "since the broker's start"),
        _integer("subscriptions", "", "now"),
        _integer("uptime_seconds", "s", "of the broker"),
    ),
)
_TELEMETRY = Measurement(
    name="telemetry",
    sender="aggregator",
    when="every 30 s",
    keep="samples",
    tags=(),
    fields=(
        _integer("recorded_points", "points", "since the aggregator's start"),
        _integer("rejected_points", "points", "outside this table, since the aggregator's start"),
        _integer("dropped_points", "points", "beyond the journal's bound"),
        _integer("written_points", "points", "in the database, since the aggregator's start"),
        _integer("waiting_bytes", "bytes", "recorded, not yet in the database"),
        _integer("rejected_payloads", "payloads", "refused by the aggregator, whatever the topic"),
    ),
)
_REJECTION = Measurement(
    name="rejection",
    sender="aggregator",
    when="every 30 s, one a node and reason",
    keep="samples",
    tags=("node", "reason"),
    fields=(
        _integer(
            "count", "payloads", "that could not be used, since the aggregator's start; without tag `node` where the topic names none"
        ),
    ),
)

MEASUREMENTS: Mapping[str, Measurement] = MappingProxyType(
    {
        measurement.name: measurement
        for measurement in (
            _RUN_SUMMARY,
            _ROUND,
            _CLASS_ACCURACY,
            _LOCAL_CLASS_ACCURACY,
            _CONFUSION,
            _OUTCOME,
            _DIAGNOSTIC,
            _EVENT,
            _TRAIN,
            _INFERENCE,
            _DEVICE,
            _NODE,
            _RUN,
            _BROKER,
            _TELEMETRY,
            _REJECTION,
        )
    }
)


def markdown_table() -> str:
    """Return the table of docs/metrics.md: one row a field."""
    rows = ["| measurement | tags | field | kind | unit | meaning |", "|---|---|---|---|---|---|"]
    for measurement in MEASUREMENTS.values():
        tags = ", ".join(f"`{name}`" for name in ("run", "strategy", *measurement.tags))
        rows += [f"| `{measurement.name}` | {tags} | `{f.name}` | {f.kind} | {f.unit} | {f.meaning} |" for f in measurement.fields]
    senders = ["| measurement | who | when | kept |", "|---|---|---|---|"]
    senders += [f"| `{m.name}` | {m.sender} | {m.when} | {m.keep} |" for m in MEASUREMENTS.values()]
    return "\n".join([*senders, "", *rows]) + "\n"
