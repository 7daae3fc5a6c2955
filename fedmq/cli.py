"""The `fedmq` command: each sub-command wires rooms together and holds no logic.

Rooms are imported inside the commands: `fedmq predict` must run where torch is not installed, and
`fedmq --help` in a blink.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from fedmq.blame import blame
from fedmq.check_command import check
from fedmq.control import pause, recover, resume, stop
from fedmq.data_command import data_app
from fedmq.doctor import doctor
from fedmq.export import export
from fedmq.local_command import demo, simulate
from fedmq.metrics_command import metrics_app
from fedmq.predict import predict
from fedmq.replay import replay, rounds
from fedmq.report import report
from fedmq.run_command import run
from fedmq.site_backup import backup, restore
from fedmq.site_commands import app_init, node_app
from fedmq.status import status
from fedmq.watch import watch

app = typer.Typer(
    name="fedmq",
    help="Federated training of medical-image classifiers over MQTT.",
    epilog="Exit status: 0 done, 1 failed, 2 wrong usage or settings, 3 interrupted. Run files: experiments/.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")
app.add_typer(metrics_app, name="metrics")
app.add_typer(node_app, name="node")
app.command("init")(app_init)
COMMANDS = (
    *(backup, blame, check, demo, doctor, export, pause, predict, recover, replay),
    *(report, restore, resume, rounds, run, simulate, status, stop, watch),
)
for command in COMMANDS:
    app.command()(command)


@app.callback(invoke_without_command=True)
def _root(*, show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show_version:
        sys.stdout.write(f"fedmq {version('fedmq')}\n")
        raise typer.Exit


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
