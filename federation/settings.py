"""The settings of a run: one TOML file, validated whole, every default the thesis's.

A run file names what is trained, on what, how, and when a round closes. Aggregator, simulator and demo
read the same file; nodes receive what concerns them in each round's plan.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from federation.errors import SettingsError

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
"""A run's or node's name: fits one topic level, one certificate CN and one file name."""

MAX_CLASSES = 1000
"""Most classes of one data set: what an evaluation message holds."""

SECONDS_PER_DAY = 86_400.0


def _check_distinct(names: list[str]) -> list[str]:
    if len(names) == 1 or len(set(names)) != len(names):
        raise ValueError("give two or more names, no two the same, or none")
    return names


ClassNames = Annotated[
    list[Annotated[str, StringConstraints(min_length=1, max_length=255)]], Field(max_length=MAX_CLASSES), AfterValidator(_check_distinct)
]
"""The classes of a data set, in the order of their labels."""


class Settings(BaseModel):
    """Base of all settings: frozen, unknown names refused, no silent coercion of text or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataSettings(Settings):
    """Which images: a known name (`fedmq data list`), an `.npz` file, or a folder of class sub-folders."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=500)] = "bloodmnist"
    size: Literal[28, 64, 128, 224] = 28
    """Image height and width in pixels (MedMNIST+ comes in all four; a folder's images are resized to it)."""
    class_names: ClassNames = []
    """Of a file or folder of one's own, in the order of the labels; a site may lack images of some of them. Empty: what the data say."""


class PartitionSettings(Settings):
    """How a data set is dealt to simulated nodes. A real node brings its own data and ignores this."""

    scheme: Literal["iid", "dirichlet", "shards", "quantity"] = "dirichlet"
    num_nodes: Annotated[int, Field(ge=1, le=10_000)] = 3
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 0.5
    """Dirichlet concentration (`dirichlet`: of classes over nodes, `quantity`: of sizes). Smaller is more skewed."""
    classes_per_node: Annotated[int, Field(ge=1, le=1000)] = 2
    """`shards` only: how many classes one node holds."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 42
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of each node's examples kept for local validation, stratified by class."""


class ModelSettings(Settings):
    """Which network; its input channels, image size and classes come from the data."""

    name: Literal["simple_cnn", "mnist_cnn", "resnet18"] = "simple_cnn"


class TrainingSettings(Settings):
    """Local training: the thesis's recipe."""

    local_epochs: Annotated[int, Field(ge=1, le=1000)] = 5
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 16
    learning_rate: Annotated[float, Field(gt=0, le=100)] = 0.001
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    lr_step_rounds: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    """StepLR: the learning rate is multiplied by `lr_gamma` after every so many rounds."""
    lr_gamma: Annotated[float, Field(gt=0, le=1)] = 0.5
    max_grad_norm: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """Gradient clipping by total norm; 0 turns it off."""
    class_weighted_loss: bool = True
    """Cross-entropy weighted per node by n_k / (C * c_i), 0 for a class the node lacks."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """`auto` takes CUDA, then MPS, then the CPU. Only runs on one kind of device repeat bit for bit."""
    num_threads: Annotated[int, Field(ge=1, le=256)] = 1
    """Intra-op threads per node: small batches are fastest on one."""

    def learning_rate_at(self, round_number: int) -> float:
        """Return the learning rate of a round (counted from 1)."""
        return float(self.learning_rate * self.lr_gamma ** ((round_number - 1) // self.lr_step_rounds))


class StrategySettings(Settings):
    """How updates become the next global model."""

    name: Literal["fedavg", "fedmedian", "fedprox"] = "fedavg"
    mu: Annotated[float, Field(ge=0, le=1e6)] = 0.01
    """`fedprox` only: weight of the proximal term mu/2 * ||w - w_t||^2 in the local loss."""


class RoundSettings(Settings):
    """When a round starts and when it closes.

    A round opens when `min_nodes` are online. It closes as soon as every cohort member has answered; or
    `grace_seconds` after `quorum` was reached; or at `deadline_seconds`. Below quorum at the deadline the
    global model stays as it was and the next round begins.
    """

    participation: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the online nodes drawn into each round's cohort, by (seed, round)."""
    min_nodes: Annotated[int, Field(ge=1, le=10_000)] = 2
    quorum: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the cohort whose updates must be accepted. 1.0 repeats bit for bit whatever fails meanwhile."""
    grace_seconds: Annotated[float, Field(ge=0, le=7 * SECONDS_PER_DAY)] = 60.0
    deadline_seconds: Annotated[float, Field(gt=0, le=7 * SECONDS_PER_DAY)] = 900.0
    max_failed_rounds: Annotated[int, Field(ge=1, le=10_000)] = 5
    """The run stops with an error after so many rounds below quorum in a row."""
    retained_bytes: Annotated[int, Field(ge=0, le=2**40)] = 256 << 20
    """Finished rounds stay on the broker within so many bytes; older ones are cleared once they are archived on disk."""

    def quorum_of(self, cohort_size: int) -> int:
        """Return how many accepted updates make the quorum of a cohort."""
        return max(1, ceil(self.quorum * cohort_size - 1e-9))


class RunSettings(Settings):
    """A whole run file."""

    run: Name = "demo"
    mode: Literal["federated", "centralised"] = "federated"
    """`centralised` trains the same recipe on all training data in one place, as the baseline."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    num_rounds: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    data: DataSettings = DataSettings()
    partition: PartitionSettings = PartitionSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    strategy: StrategySettings = StrategySettings()
    rounds: RoundSettings = RoundSettings()

    @model_validator(mode="after")
    def _grace_fits_deadline(self) -> RunSettings:
        if self.mode == "federated" and self.rounds.grace_seconds > self.rounds.deadline_seconds:
            raise ValueError("rounds.grace_seconds is longer than rounds.deadline_seconds: lower it, or raise the deadline")
        return self


def parse_settings(values: Mapping[str, Any], *, source: str = "settings") -> RunSettings:
    """Validate a mapping of settings whole.

    Args:
        values: nested names and values, as a TOML file holds them.
        source: where they came from, for the error text.

    Raises:
        SettingsError: lists every wrong name or value at once, each with what is allowed.
    """
    try:
        return RunSettings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(describe_validation_error(error, source=source)) from None


def describe_validation_error(error: ValidationError, *, source: str) -> str:
    """Return one line per problem: the key, what is allowed, what was given."""
    lines = [f"{source}: {error.error_count()} problem(s)"]
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"]) or "(whole file)"
        if problem["type"] == "extra_forbidden":
            lines.append(f"  {key}: unknown name; remove it or check its spelling")
            continue
        given = "" if problem["type"] in {"missing", "value_error"} else f" (got {str(problem['input'])[:80]!r})"
        lines.append(f"  {key}: {problem['msg'].removeprefix('Value error, ')}{given}")
    return "\n".join(lines)


def load_run_file(path: Path) -> RunSettings:
    """Read and validate a TOML run file.

    Raises:
        SettingsError: the file is missing, is no TOML (with line and column), or holds wrong settings.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such run file; experiments/ holds ready ones") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: can't be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from None
    return parse_settings(values, source=str(path))
