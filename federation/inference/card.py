"""What an ONNX file of ours says about itself: whose it is, what its outputs mean, what to feed it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from federation.errors import ModelFileError
from federation.messages import Count, Digest
from federation.settings import Name

INPUT_NAME = "pixels"
"""uint8, N x C x H x W, 0 to 255: raw pixels."""

OUTPUT_NAME = "logits"
"""float32, N x num_classes; softmax gives probabilities."""

PREFIX = "fedmq."
"""Of the metadata's names, beside those of other programs."""


class ModelCard(BaseModel):
    """The metadata of one exported model."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1] = 1
    run: Name
    round_number: Count
    """The model is the global one at the start of this round; the final one has the last round + 1."""
    class_names: Annotated[tuple[Annotated[str, Field(max_length=500)], ...], Field(min_length=1, max_length=10_000)]
    image_shape: tuple[
        Annotated[int, Field(ge=1, le=65_536)], Annotated[int, Field(ge=1, le=65_536)], Annotated[int, Field(ge=1, le=65_536)]
    ]
    """Channels, height, width."""
    weights_digest: Digest
    """SHA-256 of the global model's tensors, as the run's rounds name it."""
    precision: Literal["float32", "int8"] = "float32"
    normalisation: Literal["(x / 255 - 0.5) / 0.5, computed inside the graph: feed uint8 N x C x H x W"] = (
        "(x / 255 - 0.5) / 0.5, computed inside the graph: feed uint8 N x C x H x W"
    )

    def to_metadata(self) -> dict[str, str]:
        """Return names and JSON values for the file's metadata."""
        return {f"{PREFIX}{name}": json.dumps(value) for name, value in self.model_dump(mode="json").items()}


def read_card(metadata: Mapping[str, str]) -> ModelCard:
    """Return the card in a file's metadata.

    Raises:
        ModelFileError: there is none, or it does not validate.
    """
    own = {name.removeprefix(PREFIX): value for name, value in metadata.items() if name.startswith(PREFIX)}
    if not own:
        raise ModelFileError("the file holds no FedMQ metadata: use a node's models/current.onnx, or one written by `fedmq export`")
    # JSON within JSON, so that pydantic reads lists as the tuples they are.
    try:
        return ModelCard.model_validate_json("{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in own.items()) + "}")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "metadata"
        raise ModelFileError(f"the file's FedMQ metadata is damaged: {place}: {first['msg']}") from None
