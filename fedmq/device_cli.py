"""The `fedmq` command of a device's image: predict, and nothing that a node has no business with."""

from __future__ import annotations

import typer

from fedmq.predict import predict

app = typer.Typer(name="fedmq", help="FedMQ on this device.", no_args_is_help=True, pretty_exceptions_enable=False)
app.command()(predict)


@app.callback()
def _root() -> None:
    """Keep `predict` a sub-command, as it is everywhere else."""


def main() -> None:
    """Run the command line."""
    app()
