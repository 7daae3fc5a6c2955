"""The settings of a run: one TOML file, validated whole, every default the thesis's.

A run file names what is trained, on what, how, and when a round closes. Aggregator, simulator and demo
read the same file; nodes receive what concerns them in each round's plan.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
    model_validator,
)

from federation.errors import SettingsError
from federation.learning.algorithms import METHOD_SETTINGS, Algorithm, algorithm_class, check_method
from federation.learning.algorithms.fedavg import FedAvg
from federation.learning.codecs import CODEC_SETTINGS, Codec, check_codec
from federation.learning.codecs.float32 import Float32
from federation.learning.own_code import is_own
from federation.recipes import RecipeName, with_recipe
from federation.setting_types import ChosenByName, Settings

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


class DataSettings(Settings):
    """Which images: a known name (`fedmq data list`), an `.npz` file, or a folder of class sub-folders."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=500)] = "bloodmnist"
    """A known name, a name in the folder of FEDMQ_DATA_DIR, or a path."""
    size: Literal[28, 64, 128, 224] = 28
    """Image height and width in pixels (MedMNIST+ comes in all four; a folder's images are resized to it)."""
    class_names: ClassNames = Field(default_factory=list)
    """Of a file or folder of one's own, in the order of the labels; a site may lack images of some of them. Empty: what the data say."""


class PartitionSettings(Settings):
    """How a data set is dealt to simulated nodes. A real node brings its own data and ignores this."""

    scheme: Literal["iid", "dirichlet", "shards", "quantity"] = "dirichlet"
    """`iid`: every node has the same mix. `dirichlet`: skewed classes. `shards`: a few classes a node. `quantity`: unequal sizes."""
    num_nodes: Annotated[int, Field(ge=1, le=10_000)] = 3
    """How many nodes there are."""
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 0.5
    """Dirichlet concentration (`dirichlet`: of classes over nodes, `quantity`: of sizes). Smaller is more skewed."""
    classes_per_node: Annotated[int, Field(ge=1, le=1000)] = 2
    """`shards` only: how many classes one node holds."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 42
    """Of the dealing alone: two runs that differ in the run's own seed train on the same parts."""
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of each node's examples kept for local validation, stratified by class."""


class ModelSettings(Settings):
    """Which network; its input channels, image size and classes come from the data."""

    name: Literal["simple_cnn", "mnist_cnn", "resnet18"] = "simple_cnn"
    """`simple_cnn` is the thesis's, 0.4 MB; `mnist_cnn` smaller to compute; `resnet18` a hundred times as large."""


class AugmentationSettings(Settings):
    """What is done to each training image at random, anew in every epoch. Every default does nothing."""

    horizontal_flip: bool = False
    """Left and right change places in half of the images."""
    vertical_flip: bool = False
    """Top and bottom do, likewise."""
    quarter_turns: bool = False
    """Turned by 0, 90, 180 or 270 degrees; images must be square."""
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Turned by up to so many degrees either way."""
    shift_share: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Shifted by up to this share of each side, either way."""
    zoom_share: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Enlarged or shrunk by up to this share."""
    padding: Literal["reflection", "border", "black"] = "reflection"
    """What is seen where a turned, shifted or shrunk image ends."""
    brightness: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Pixel values multiplied by 1 plus or minus up to this."""
    contrast: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Distance from the image's mean multiplied likewise."""
    colour: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Each channel multiplied likewise, by a number of its own."""
    cutout_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Side of a square that is covered in grey, as a share of the shorter side."""


AugmentationPreset = Literal["none", "histology", "cells", "digits", "xray"]
"""Names for sets of operations: federation/learning/augmentation.py says which."""


def _form_of(value: object) -> str:
    return "(table)" if isinstance(value, Mapping | AugmentationSettings) else "(preset)"


class TrainingSettings(Settings):
    """Local training. Every default is the thesis's recipe."""

    local_epochs: Annotated[int, Field(ge=1, le=1000)] = 5
    """How often a node goes through its images in one round. More saves rounds, and lets the nodes' models drift apart."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 16
    """Images a step. Larger is faster; raise the learning rate with it."""
    learning_rate: Annotated[float, Field(gt=0, le=100)] = 0.001
    """Length of a step, before the schedule. The first thing to raise where accuracy creeps, to lower where the loss jumps."""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    """`adamw` wants a learning rate a tenth as high."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """`sgd` only."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Pull of every weight towards 0; some where a model learns its training images by heart."""
    schedule: Literal["step", "cosine", "constant"] = "step"
    """How the learning rate falls over the rounds."""
    warmup_rounds: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """The learning rate rises evenly over so many rounds before the schedule begins."""
    lr_step_rounds: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    """`step` only: the learning rate is multiplied by `lr_gamma` after every so many rounds."""
    lr_gamma: Annotated[float, Field(gt=0, le=1)] = 0.5
    """`step` only: by this."""
    max_grad_norm: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """Gradient clipping by total norm; 0 turns it off."""
    loss: Literal["cross_entropy", "balanced_softmax", "focal"] = "cross_entropy"
    """What training minimises. `balanced_softmax` where rare classes are missed; `focal` where easy images drown the hard ones."""
    class_weighted_loss: bool = True
    """Loss weighted per node by n_k / (C * c_i), 0 for a class the node lacks. `balanced_softmax` balances by itself: false."""
    logit_adjustment: Annotated[float, Field(gt=0, le=10)] = 1.0
    """`balanced_softmax` only: how much of the logarithm of the node's class shares is added to the logits."""
    focal_gamma: Annotated[float, Field(ge=0, le=10)] = 2.0
    """`focal` only: the larger, the less an example counts that the model is sure of."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """This share of each label is spread over all classes."""
    augmentation: Annotated[
        Annotated[AugmentationPreset, Tag("(preset)")] | Annotated[AugmentationSettings, Tag("(table)")], Discriminator(_form_of)
    ] = "none"
    """A preset's name, or a table of operations."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """`auto` takes CUDA, then MPS, then the CPU. Only runs on one kind of device repeat bit for bit."""
    num_threads: Annotated[int, Field(ge=1, le=256)] = 1
    """Intra-op threads per node: small batches are fastest on one."""

    @model_validator(mode="before")
    @classmethod
    def _balance_once(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("loss") == "balanced_softmax" and "class_weighted_loss" not in values:
            return {**values, "class_weighted_loss": False}
        return values

    @model_validator(mode="after")
    def _options_fit_the_loss(self) -> TrainingSettings:
        if self.loss == "balanced_softmax" and self.class_weighted_loss:
            raise ValueError("loss 'balanced_softmax' balances the classes by itself: leave class_weighted_loss out, or set it to false")
        if self.loss == "focal" and self.label_smoothing > 0:
            raise ValueError("loss 'focal' takes no label_smoothing: set it to 0, or choose another loss")
        return self


MethodSettings: TypeAlias = Annotated[Algorithm.Settings, ChosenByName(METHOD_SETTINGS, default="fedavg", check_own=check_method)]
"""How nodes train and how updates become the next global model: a method's name and its own settings (docs/methods.md)."""

CodecSettings: TypeAlias = Annotated[Codec.Settings, ChosenByName(CODEC_SETTINGS, default="float32", check_own=check_codec)]
"""How updates travel: a codec's name and its own settings."""


MIN_PRIVATE_NODES = 3
"""With fewer, each node can work out the others' update from the two global models it is sent."""


class ProtectionSettings(Settings):
    """How far, and with what weight, one node's update may move the global model.

    The defaults are at least twice what honest nodes of very unequal data needed: they change no honest run (docs/security.md).
    """

    max_examples: Annotated[int, Field(ge=1, le=10**12)] = 1_000_000
    """An update counts for so many examples at most, whatever its node claims and declares."""
    max_weight_ratio: Annotated[float, Field(ge=1, le=1e12)] = 20.0
    """Likewise, in units of the median over the round's updates; of three or more."""
    max_distance_ratio: Annotated[float, Field(ge=1, le=1e12)] = 20.0
    """An update further from the global model than so many times the median over the round's updates is left out; of three or more."""
    max_model_ratio: Annotated[float, Field(gt=0, le=1e12)] = 3.0
    """Likewise, in units of the global model's own norm: the one bound that holds for one update or two."""
    max_trusted_ratio: Annotated[float, Field(ge=1, le=1e12)] = 6.0
    """An update whose weight times distance is more than so many times the median is on probation: the server tries it on its images."""
    min_agreement: Annotated[float, Field(ge=-1, le=1)] = 0.05
    """Likewise one whose step has a smaller cosine with the sum of the others' steps."""
    max_harm: Annotated[float, Field(ge=0, le=1)] = 0.05
    """An update on probation is left out where the model without it has so much more accuracy there."""
    max_setback: Annotated[float, Field(ge=0, le=1)] = 0.2
    """A new global model may lose so much accuracy there against the run's best: else the updates that made it so are left out, or the
    model stays as it was. 0 turns it off."""


class RoundSettings(Settings):
    """When a round starts and when it closes.

    A round opens when `min_nodes` are online. It closes as soon as every cohort member has answered; or
    `grace_seconds` after `quorum` was reached; or at `deadline_seconds`. Below quorum at the deadline the
    global model stays as it was and the next round begins.
    """

    participation: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the online nodes drawn into each round's cohort, by (seed, round)."""
    min_nodes: Annotated[int, Field(ge=1, le=10_000)] = 2
    """A round opens when so many nodes are online."""
    quorum: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the cohort whose updates must be accepted. 1.0 repeats bit for bit whatever fails meanwhile."""
    grace_seconds: Annotated[float, Field(ge=0, le=7 * SECONDS_PER_DAY)] = 60.0
    """How long a round stays open after its quorum is reached, for those who are nearly done."""
    deadline_seconds: Annotated[float, Field(gt=0, le=7 * SECONDS_PER_DAY)] = 900.0
    """After so long a round closes whatever has come. Longer than the slowest device takes to train and send."""
    max_failed_rounds: Annotated[int, Field(ge=1, le=10_000)] = 5
    """The run stops with an error after so many rounds below quorum in a row."""
    max_missed_rounds: Annotated[int, Field(ge=1, le=10_000)] = 2
    """A node of whom so many rounds in a row nothing could be aggregated is set aside until it speaks anew."""
    retained_bytes: Annotated[int, Field(ge=0, le=2**40)] = 256 << 20
    """Finished rounds stay on the broker within so many bytes; older ones are cleared once they are archived on disk."""

    def quorum_of(self, cohort_size: int) -> int:
        """Return how many accepted updates make the quorum of a cohort."""
        return max(1, ceil(self.quorum * cohort_size - 1e-9))


class RunSettings(Settings):
    """A whole run file."""

    run: Name = "demo"
    """The run's name: of its topics on the broker and of its folder. Each run on one broker needs its own."""
    mode: Literal["federated", "centralised"] = "federated"
    """`centralised` trains the same recipe on all training data in one place, as the baseline."""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Everything random follows from it: the same file and seed give the same model, bit for bit."""
    num_rounds: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    """How many rounds are trained."""
    recipe: RecipeName = "thesis"
    """Which values of `training` hold where this file says none: `thesis` or `best`."""
    data: DataSettings = DataSettings()
    partition: PartitionSettings = PartitionSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    method: MethodSettings = FedAvg.Settings()
    codec: CodecSettings = Float32.Settings()
    protection: ProtectionSettings = ProtectionSettings()
    rounds: RoundSettings = RoundSettings()

    @model_validator(mode="before")
    @classmethod
    def _fill_in_the_recipe(cls, values: Any) -> Any:
        return with_recipe(values, default_data=DataSettings().name) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _grace_fits_deadline(self) -> RunSettings:
        if self.mode == "federated" and self.rounds.grace_seconds > self.rounds.deadline_seconds:
            raise ValueError("rounds.grace_seconds is longer than rounds.deadline_seconds: lower it, or raise the deadline")
        return self

    def own_code(self) -> tuple[str, ...]:
        """Return the names `package.module:Name` that the run file uses."""
        return tuple(chosen.name for chosen in (self.method, self.codec) if is_own(chosen.name))

    @model_validator(mode="after")
    def _rest_fits_method(self) -> RunSettings:
        method, name = algorithm_class(self.method.name), self.method.name
        if self.mode == "federated" and self.rounds.min_nodes < method.min_updates:
            raise ValueError(f"method {name!r} needs {method.min_updates} updates or more: raise rounds.min_nodes to {method.min_updates}")
        if method.needs_sgd and self.training.optimiser != "sgd":
            raise ValueError(f"method {name!r} works from the steps of plain gradients: set training.optimiser to 'sgd'")
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
        raise SettingsError(describe_validation_error(error, source=source, model=RunSettings)) from None


def describe_validation_error(error: ValidationError, *, source: str, model: type[BaseModel] | None = None) -> str:
    """Return one line per problem: the key, what is allowed, what was given.

    Args:
        error: what pydantic found.
        source: where the values came from.
        model: whose names an unknown one is compared with.
    """
    lines = [f"{source}: {error.error_count()} problem(s)"]
    for problem in error.errors(include_url=False):
        # A value that takes two forms, a name or a table, has the form tried in its place: "(table)".
        place = [str(part) for part in problem["loc"] if not str(part).startswith("(")]
        key = ".".join(place) or "(whole file)"
        if problem["type"] == "extra_forbidden":
            similar = get_close_matches(place[-1], _names_at(model, place[:-1]), n=1)
            meant = f"did you mean {similar[0]}? Else remove it" if similar else "remove it"
            lines.append(f"  {key}: unknown name; {meant} or check its spelling")
            continue
        given = "" if problem["type"] in {"missing", "value_error"} else f" (got {str(problem['input'])[:80]!r})"
        lines.append(f"  {key}: {problem['msg'].removeprefix('Value error, ')}{given}")
    return "\n".join(lines)


def _names_at(model: type[BaseModel] | None, place: Sequence[str]) -> list[str]:
    """Return the names that a section of a model knows."""
    for name in place:
        field = model.model_fields.get(name) if model is not None else None
        kinds = [field.annotation, *get_args(field.annotation)] if field is not None else []
        kinds += [inner for kind in kinds for inner in get_args(kind)]
        model = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
    return list(model.model_fields) if model is not None else []


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
