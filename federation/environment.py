"""Reading a process's settings from environment variables: validated whole, unknown `FEDMQ_` names refused.

Only the `__main__` modules call this, once, with `os.environ`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from federation.errors import SettingsError

PREFIX = "FEDMQ_"

VARIABLES: Mapping[str, str] = {
    "FEDMQ_BROKER_HOST": "broker's host name or address",
    "FEDMQ_BROKER_PORT": "broker's port; 8883 with TLS, 1883 without",
    "FEDMQ_BROKER_USERNAME": "MQTT user name, where no client certificate says who we are",
    "FEDMQ_BROKER_PASSWORD_FILE": "file that holds the MQTT password",
    "FEDMQ_TLS_CA": "file of the certificate authority that signed the broker's certificate; turns TLS on",
    "FEDMQ_TLS_CERTIFICATE": "file of this client's certificate",
    "FEDMQ_TLS_KEY": "file of this client's private key",
    "FEDMQ_RUN_FILE": "the TOML run file",
    "FEDMQ_RUN": "the run a node joins; unset: whichever run is active on the broker",
    "FEDMQ_NODE": "the node's name: its MQTT user name and certificate CN",
    "FEDMQ_DATA": "a node's images: data set name, .npz file or folder of class sub-folders",
    "FEDMQ_CLASS_NAMES": "names of the classes of a node's own images, with commas between, in the order of the labels",
    "FEDMQ_DATA_SIZE": "image height and width in pixels: 28, 64, 128 or 224",
    "FEDMQ_DATA_DIR": "folder in which data set names are looked up first",
    "FEDMQ_CACHE_DIR": "folder for downloaded data sets",
    "FEDMQ_PARTITION_INDEX": "simulated nodes: which part of the run file's partition this node holds, from 0",
    "FEDMQ_CORES": "cores a node uses for inference; unset: all it may use",
    "FEDMQ_SHARE_LABEL_COUNTS": "0: a node tells no method how its examples are spread over the classes; 1: those that ask",
    "FEDMQ_STATE_DIR": "folder for what must survive a restart: checkpoints, updates not yet acknowledged",
    "FEDMQ_OUT_DIR": "folder for a run's summary, model and metrics",
    "FEDMQ_RESUME": "1: continue the run from its checkpoint; 0: refuse to overwrite one",
    "FEDMQ_HOLD": "1: an aggregator that can't begin stays, unhealthy, instead of ending",
    "FEDMQ_LOG_LEVEL": "DEBUG, INFO, WARNING or ERROR",
    "FEDMQ_SERVE": "host:port of a node's prediction endpoint; unset: off",
    "FEDMQ_INFLUX_URL": "InfluxDB's address; unset: metrics go to metrics.jsonl alone",
    "FEDMQ_INFLUX_TOKEN_FILE": "file that holds InfluxDB's token",
    "FEDMQ_INFLUX_ORG": "InfluxDB's organisation",
    "FEDMQ_INFLUX_BUCKET": "InfluxDB's bucket",
    "FEDMQ_SIGNING_KEY": "file of the Ed25519 key that signs this side's messages",
    "FEDMQ_TRUSTED_KEYS": "folder of the public keys that signatures are checked with",
    "FEDMQ_REQUIRE": "tests: which needs must not be skipped (data, mosquitto, docker, database, browser, all)",
    "FEDMQ_TORCH_INDEX": "scripts: where the CPU build of PyTorch is fetched from",
}
"""Every variable FedMQ knows; docs/deploy.md shows them as a table."""


class Environment(BaseModel):
    """Base of a process's settings; a field `broker_host` is read from `FEDMQ_BROKER_HOST`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BrokerEnvironment(Environment):
    """How to reach the broker, and who we are there."""

    broker_host: Annotated[str, Field(min_length=1)] = "localhost"
    broker_port: Annotated[int, Field(ge=1, le=65_535)] | None = None
    broker_username: str | None = None
    broker_password_file: Path | None = None
    tls_ca: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    signing_key: Path | None = None
    trusted_keys: Path | None = None
    log_level: str = "INFO"

    @field_validator("broker_password_file", "tls_ca", "tls_certificate", "tls_key", "signing_key")
    @classmethod
    def _readable(cls, path: Path | None) -> Path | None:
        if path is not None and not (path.is_file() and os.access(path, os.R_OK)):
            raise ValueError(f"{path} is not a readable file; `fedmq init` and `fedmq node add` make these files")
        return path

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, level: str) -> str:
        if level not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
            raise ValueError("set DEBUG, INFO, WARNING or ERROR")
        return level

    @model_validator(mode="after")
    def _whole_identity(self) -> BrokerEnvironment:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("set both FEDMQ_TLS_CERTIFICATE and FEDMQ_TLS_KEY, or neither")
        if self.tls_certificate and not self.tls_ca:
            raise ValueError("set FEDMQ_TLS_CA beside FEDMQ_TLS_CERTIFICATE")
        return self

    @property
    def port(self) -> int:
        """The broker's port, by default the one of the chosen transport."""
        return self.broker_port or (8883 if self.tls_ca else 1883)

    @property
    def password(self) -> str | None:
        """The MQTT password, read from its file."""
        return self.broker_password_file.read_text(encoding="utf-8").strip() if self.broker_password_file else None


E = TypeVar("E", bound=Environment)


def read_environment(model: type[E], environ: Mapping[str, str]) -> E:
    """Return a process's settings.

    Args:
        model: which settings this process knows.
        environ: `os.environ`; an empty value counts as unset.

    Raises:
        SettingsError: lists every unknown `FEDMQ_` variable and every wrong value at once.
    """
    given = {name: value for name, value in environ.items() if name.startswith(PREFIX) and value != ""}
    problems = [f"  {name}: unknown variable; remove it or check its spelling" for name in sorted(given) if name not in VARIABLES]
    values = {name.removeprefix(PREFIX).lower(): value for name, value in given.items()}
    try:
        settings = model.model_validate({name: value for name, value in values.items() if name in model.model_fields})
    except ValidationError as error:
        problems += [_describe(dict(problem)) for problem in error.errors(include_url=False)]
    else:
        if not problems:
            return settings
    raise SettingsError("\n".join([f"environment: {len(problems)} problem(s)", *problems]))


def _describe(problem: Mapping[str, object]) -> str:
    place = problem["loc"]
    name = f"{PREFIX}{str(place[0]).upper()}" if isinstance(place, tuple) and place else "together"
    message = str(problem["msg"]).removeprefix("Value error, ")
    meaning = f" ({VARIABLES[name]})" if name in VARIABLES else ""
    return f"  {name}: {'must be set' if problem['type'] == 'missing' else message}{meaning}"
