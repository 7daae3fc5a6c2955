"""What a node does beside talking, when the next round takes its files along."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from edge_node.events import Deploy, Deployed
from edge_node.spool import Spool
from edge_node.work import LocalUpdate, RoundWork
from federation.clock import Clock
from federation.codec import FileParams, write_params
from federation.learning.algorithms import NodeState
from federation.learning.sets import Sets, TensorSet
from federation.messages import MetricPoint, RoundPlan
from federation.params import Array, Params
from federation.settings import ModelSettings


class NoLearner:
    """Never asked."""

    def train(self, plan: RoundPlan, sets: Sets, kept: NodeState, should_stop: object) -> LocalUpdate:  # noqa: ARG002
        """Not in these tests."""
        raise AssertionError

    def whole_model(self, plan: RoundPlan, sets: Sets, kept: NodeState) -> TensorSet | None:  # noqa: ARG002
        """Not in these tests."""
        raise AssertionError


class Recorder:
    """A deployer that notes which rounds' models it was given."""

    def __init__(self) -> None:
        self.rounds: list[int] = []

    def deploy(self, *, run: str, round_number: int, model: ModelSettings, global_digest: str, params: Params) -> list[MetricPoint]:  # noqa: ARG002
        """Note the round."""
        self.rounds.append(round_number)
        return []


@pytest.mark.parametrize("moment", ["before", "while it is read"])
def test_model_that_the_next_round_takes_along_is_not_deployed_and_costs_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, moment: str
) -> None:
    spool = Spool(tmp_path, "r")
    spool.enter(1)
    write_params(spool.global_path(1), {name: np.zeros(4, np.float32) for name in ("a", "b")})
    read = FileParams.__getitem__

    def read_as_the_next_round_begins(self: FileParams, name: str) -> Array:
        spool.enter(2)
        return read(self, name)

    if moment == "before":
        spool.enter(2)
    else:
        monkeypatch.setattr(FileParams, "__getitem__", read_as_the_next_round_begins)
    deployer = Recorder()
    work = RoundWork(
        learner=NoLearner(),
        deployer=deployer,
        spool=spool,
        node="n",
        known=(),
        run="r",
        followed_round=lambda: 2,
        publish=lambda *_: None,
        clock=Clock(monotonic=lambda: 0.0, time_ns=lambda: 0),
    )
    with caplog.at_level(logging.INFO, logger="edge_node"):
        event = work.deploy(Deploy(round_number=1, model=ModelSettings(), global_digest="0" * 64))
    assert event == Deployed(round_number=1)
    assert deployer.rounds == []
    assert [(record.levelno, record.exc_info) for record in caplog.records] == [(logging.INFO, None)]
