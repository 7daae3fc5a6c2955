"""The line that says what a run does: by messages as the broker carries them."""

from __future__ import annotations

import pytest

from federation import topics
from federation.messages import Choice, Evaluation, LocalMetrics, Message, NodeStatus, RoundPlan, RoundResult, RunState, UpdateManifest
from federation.settings import ModelSettings, TrainingSettings
from fedmq.live_line import LiveLine, duration

DIGEST = "0" * 64
NODES = ("node-0", "node-1", "node-2")


class Story:
    """A run told message by message."""

    def __init__(self) -> None:
        self.line = LiveLine(run="run", num_nodes=3)
        self.now = 0.0

    def tell(self, topic: object, message: Message) -> None:
        """Hand the line a message."""
        self.line.take(str(topic), message.to_payload(), self.now)

    def state(self, phase: str, round_number: int, reason: str = "") -> None:
        """Say where the run is."""
        values = {"run": "run", "num_rounds": 5, "epoch": 1, "method": "fedavg", "model": ModelSettings(), "reason": reason}
        self.tell(topics.StateTopic("run"), RunState.model_validate({**values, "phase": phase, "round_number": round_number}))

    def node(self, name: str, num_examples: int, *, online: bool = True) -> None:
        """Say what a node is."""
        status = NodeStatus(node=name, online=online, instance="i", num_examples=num_examples)
        self.tell(topics.StatusTopic("run", name), status)

    def plan(self, number: int) -> None:
        """Open a round for all three nodes."""
        plan = RoundPlan(
            run="run",
            round_number=number,
            epoch=1,
            cohort=list(NODES),
            deadline_seconds=60.0,
            seed=0,
            model=ModelSettings(),
            training=TrainingSettings(),
            learning_rate=0.1,
            method=Choice(name="fedavg"),
            codec=Choice(name="float32"),
            num_nodes=3,
            global_digest=DIGEST,
            global_bytes=10,
        )
        self.tell(topics.PlanTopic("run", number), plan)

    def update(self, number: int, node: str, *, num_examples: int, seconds: float) -> None:
        """Bring in a node's update."""
        metrics = LocalMetrics(loss=1.0, download_seconds=0.0, train_seconds=seconds, samples_per_second=1.0)
        manifest = UpdateManifest(
            run="run",
            round_number=number,
            total_bytes=10,
            chunk_bytes=1024,
            sha256=DIGEST,
            chunk_sha256=[DIGEST],
            node=node,
            base_digest=DIGEST,
            num_examples=num_examples,
            metrics=metrics,
        )
        self.tell(topics.UpdateManifestTopic("run", number, node), manifest)

    def result(self, number: int, *, seconds: float, accuracy: float) -> None:
        """Close a round."""
        scores = {"accuracy": accuracy, "f1_macro": 0.5, "f1_weighted": 0.5, "loss": 1.0}
        result = RoundResult(
            run="run",
            round_number=number,
            epoch=1,
            previous_result_digest=None,
            method="fedavg",
            aggregated=True,
            global_digest=DIGEST,
            next_global_digest=DIGEST,
            outcomes=[],
            evaluation=Evaluation.model_validate({**scores, "num_examples": 1, "class_accuracy": [], "confusion_matrix": []}),
            accepted=3,
            rejected=0,
            discarded=0,
            stragglers=0,
            seconds=seconds,
            phase_seconds={},
            bytes_up=1,
            bytes_down=1,
        )
        self.tell(topics.ResultTopic("run", number), result)

    @property
    def text(self) -> str:
        """What the line says now."""
        return self.line.text(self.now)


def training_story() -> Story:
    story = Story()
    for node, size in zip(NODES, (100, 200, 400), strict=True):
        story.node(node, size)
    story.state("training", 1)
    story.plan(1)
    return story


def test_before_anything_is_known_it_says_that_things_start() -> None:
    assert Story().text == "starting: the processes load, then each node its images"
    assert not Story().line.is_known


def test_it_counts_the_nodes_a_waiting_run_has() -> None:
    story = Story()
    story.state("waiting", 0)
    story.node("node-0", 10)
    story.node("node-1", 10)
    story.node("node-1", 10, online=False)
    assert story.text == "waiting for nodes: 1 of 3 are here"


def test_it_counts_updates_and_estimates_from_the_first() -> None:
    """The first update took 1 s for 100 images, the largest node has 400: 4 s a round, of which 1 has passed, and four more rounds."""
    story = training_story()
    assert story.text == "round 1 of 5: training, 0 of 3 updates in"
    story.now = 1.0
    story.update(1, "node-0", num_examples=100, seconds=1.0)
    assert story.text == "round 1 of 5: training, 1 of 3 updates in, about 19 s left"
    story.update(1, "node-1", num_examples=200, seconds=1.5)
    story.update(1, "node-2", num_examples=400, seconds=3.0)
    assert story.text.startswith("round 1 of 5: evaluating the new model")


def test_it_estimates_from_the_rounds_that_are_done() -> None:
    story = training_story()
    for number, seconds in ((1, 9.0), (2, 5.0), (3, 6.0)):
        story.result(number, seconds=seconds, accuracy=0.1 * number)
    story.state("training", 4)
    story.plan(4)
    story.now = 2.0
    assert story.text == "round 4 of 5: training, 0 of 3 updates in, about 10 s left; accuracy 0.3000"
    story.now = 60.0
    assert "about 6 s left" in story.text, "a slow round leaves its own time out, not the next one's"


def test_a_paused_run_says_so_and_how_it_goes_on() -> None:
    story = training_story()
    story.result(1, seconds=1.0, accuracy=0.5)
    story.state("paused", 1, "paused: maintenance until Monday")
    assert story.text == "paused after round 1 of 5 (maintenance until Monday): `fedmq resume run` goes on; accuracy 0.5000"


def test_a_finished_and_a_stopped_run_say_so() -> None:
    story = training_story()
    story.state("finished", 5)
    assert story.text == "all 5 rounds done: the nodes take the final model"
    story.state("stopped", 2, "stopped: enough")
    assert story.text == "stopped: enough"


def test_foreign_messages_change_nothing() -> None:
    story = training_story()
    before = story.text
    story.line.take("fedmq/v2/run/state", b"{", 0.0)
    story.line.take("fedmq/v2/run/state", b"", 0.0)
    story.line.take("elsewhere", b"{}", 0.0)
    story.line.take("fedmq/v2/another/state", RunState.model_validate_json(state_json()).to_payload(), 0.0)
    assert story.text == before


def state_json() -> bytes:
    return RunState(
        run="another", phase="finished", round_number=1, num_rounds=1, epoch=1, method="fedavg", model=ModelSettings()
    ).to_payload()


@pytest.mark.parametrize(("seconds", "text"), [(3.4, "3 s"), (99, "99 s"), (100, "2 min"), (5940, "99 min"), (6000, "1 h 40 min")])
def test_a_duration_as_people_say_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text
