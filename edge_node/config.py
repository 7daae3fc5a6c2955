"""An edge node's settings, read from the environment once, by `__main__`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator, model_validator

from federation.environment import BrokerEnvironment
from federation.errors import SettingsError
from federation.settings import ClassNames, Name


class EdgeNodeConfig(BrokerEnvironment):
    """Everything a node process is told from outside; how it trains comes with each round's plan."""

    node: Name
    run: Name | None = None
    data: str | None = None
    data_size: Annotated[Literal[28, 64, 128, 224], BeforeValidator(lambda value: int(str(value)))] = 28
    class_names: Annotated[ClassNames, BeforeValidator(lambda value: [name.strip() for name in str(value).split(",")])] = Field(default=[])
    """Of this node's images, in the order of their labels; empty: what the data say."""
    extensions: Annotated[tuple[str, ...], BeforeValidator(lambda value: tuple(name.strip() for name in str(value).split(",")))] = ()
    """Methods and codecs of one's own that this node may import, as `package.module:Name`."""
    data_dir: Path | None = None
    cache_dir: Path = Path("~/.cache/fedmq").expanduser()
    state_dir: Path
    run_file: Path | None = None
    """Simulated nodes only: its `data` and `partition` sections say what this node holds."""
    cores: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Cores for inference; None: all this process may use."""
    partition_index: Annotated[int, Field(ge=0)] | None = None
    share_label_counts: bool = True
    """Whether a method may send how this node's examples are spread over the classes; false: it is not told."""
    serve: str | None = None
    """Address of the prediction endpoint; None: there is none."""

    @field_validator("serve")
    @classmethod
    def _is_address(cls, address: str | None) -> str | None:
        if address is not None:
            try:
                parse_address(address)
            except SettingsError as error:
                raise ValueError(str(error)) from None
        return address

    @model_validator(mode="after")
    def _one_source_of_data(self) -> EdgeNodeConfig:
        if (self.run_file is None) != (self.partition_index is None):
            raise ValueError("a simulated node needs both FEDMQ_RUN_FILE and FEDMQ_PARTITION_INDEX")
        if (self.data is None) == (self.run_file is None):
            raise ValueError("set FEDMQ_DATA to this node's images (a data set name, an .npz file or a folder of class sub-folders)")
        return self


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port of `host:port`.

    Raises:
        SettingsError: it is not of that form.
    """
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or port is None or parts.netloc != address or "@" in address:
        raise SettingsError(f"{address!r} is not host:port, for example 127.0.0.1:8080")
    return host, port
