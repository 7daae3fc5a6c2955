"""SCAFFOLD: corrects each node's drift by how its gradient differs from everybody's.

    y <- y - eta * (g_i(y) - c_i + c)                     on node i, from y = x
    c_i+ = c_i - c + (x - y) / (K * eta)                  option II
    x <- x + eta_g * mean(y_i - x),  c <- c + |S| / N * mean(c_i+ - c_i)

Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020, algorithm 1, equations 4
and 5. The models' changes are weighted by numbers of examples, as FedAvg's are; K * eta is `Trained.total_step`, which also
holds with momentum, where the paper's K * eta would make the control variates up to 1 / (1 - momentum) times too large.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from federation.learning.algorithms.algorithm import Algorithm, NodeState, Trainer, Update, Upload, mean
from federation.learning.sets import Sets, TensorSet


class Scaffold(Algorithm):
    """Stochastic controlled averaging. Sets down: model, control; up: the changes of both; on the node: its control variate."""

    class Settings(Algorithm.Settings):
        """The server's step."""

        name: Literal["scaffold"] = "scaffold"
        server_learning_rate: Annotated[float, Field(gt=0, le=100)] = 1.0
        """What the mean change is multiplied by; 1 takes it whole."""

    settings: Settings
    down: ClassVar = ("model", "control")
    up: ClassVar = {"model": Upload(is_difference=True), "control": Upload(like="control", is_difference=True)}
    keeps_node_state: ClassVar = True
    needs_sgd: ClassVar = True

    def start(self, model: TensorSet) -> Sets:
        """Return the model and no correction."""
        return Sets({"model": model, "control": model.zeros()})

    def train(self, trainer: Trainer, sets: Sets, node: NodeState) -> Update:
        """Return how the model and this node's control variate changed."""
        start, control = sets["model"], sets["control"]
        own = node.get("control", control.zeros())
        trained = trainer.fit(start, gradient_offset=control - own)
        new = own - control + (start - trained.model) / trained.total_step
        node["control"] = new
        return trained.update(model=trained.model - start, control=new - own)

    def aggregate(self, sets: Sets, updates: Sequence[Update]) -> Sets:
        """Return model and control variate after the mean changes."""
        step = mean(updates, "model", weights="examples") * self.settings.server_learning_rate
        control = mean(updates, "control", weights="equal") * (len(updates) / max(self.num_nodes, len(updates)))
        return sets.plus(model=step, control=control)
