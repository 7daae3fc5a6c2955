"""The `fedmq` command: each sub-command wires rooms together and holds no logic.

Rooms are imported inside the commands: `fedmq predict` must run where torch is not installed, and
`fedmq --help` in a blink.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from federation.errors import SettingsError
from fedmq import console
from fedmq.blame import blame
from fedmq.console import JsonOption, print_json, sentences
from fedmq.control import pause, recover, resume, stop
from fedmq.data_command import data_app
from fedmq.doctor import doctor
from fedmq.export import export
from fedmq.metrics_command import metrics_app
from fedmq.options import check_out_dir, command_environment, load_settings, new_folder, simulated
from fedmq.predict import predict
from fedmq.replay import replay, rounds
from fedmq.report import report
from fedmq.run_command import run
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
for command in (blame, doctor, export, pause, predict, recover, replay, report, resume, rounds, run, status, stop, watch):
    app.command()(command)


@app.callback(invoke_without_command=True)
def _root(*, show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show_version:
        sys.stdout.write(f"fedmq {version('fedmq')}\n")
        raise typer.Exit


@app.command()
def demo(
    context: typer.Context,
    *,
    data: Annotated[str | None, typer.Option(help="Data set name, .npz file or folder of class sub-folders.")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Edge-node processes.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds.")] = 5,
    alpha: Annotated[float, typer.Option(help="Dirichlet concentration of classes over nodes: smaller is more skewed.")] = 0.5,
    epochs: Annotated[int, typer.Option(min=1, help="Local epochs per round.")] = 5,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; default out/demo-N.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Everything random follows from it.")] = 0,
    run_file: Annotated[Path | None, typer.Option("--file", help="Take all settings from this run file instead.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train across processes on this machine over a private Mosquitto: no Docker, no set-up."""
    from fedmq.demo import choose_data, demo_name, run_demo

    with sentences():
        environment = command_environment()
        if run_file is not None:
            _refuse_other_settings(context)
            settings = load_settings(run_file)
        else:
            name = data or choose_data(environment.data_dir, environment.cache_dir)
            settings = _demo_settings(
                name, run=demo_name(datetime.now(UTC)), nodes=nodes, rounds=rounds, alpha=alpha, epochs=epochs, seed=seed
            )
        settings = simulated(settings)
        folder = check_out_dir(out) if out else new_folder(Path("out"), "demo")
        if not as_json:
            console.out.print(f"data {settings.data.name}, {settings.partition.num_nodes} nodes, results in {folder}", markup=False)
        summary = run_demo(settings, out_dir=folder, data_dir=environment.data_dir, cache_dir=environment.cache_dir, is_shown=not as_json)
    _show(summary, folder, as_json=as_json)


@app.command()
def simulate(
    run_file: Annotated[Path, typer.Argument(help="The TOML run file.")],
    *,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; default out/RUN-N.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the run file's.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Instead of the run file's.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a run file in this one process, with no broker: the same machines, the same digest."""
    from fedmq.simulate import run_simulation

    with sentences():
        environment = command_environment()
        overrides: dict[str, Any] = {} if seed is None else {"seed": seed}
        settings = load_settings(run_file, overrides | ({} if rounds is None else {"num_rounds": rounds}))
        settings = simulated(settings)
        folder = check_out_dir(out) if out else new_folder(Path("out"), settings.run)
        summary = run_simulation(
            settings, out_dir=folder, data_dir=environment.data_dir, cache_dir=environment.cache_dir, is_shown=not as_json
        )
    _show(summary, folder, as_json=as_json)


def _refuse_other_settings(context: typer.Context) -> None:
    """Raise where a flag would have to be ignored because the run file says it all."""
    free = {"run_file", "out", "as_json"}
    given = [
        name for name in context.params if name not in free and getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    ]
    if given:
        flags = ", ".join(f"--{name}" for name in given)
        raise SettingsError(f"--file takes all settings from the run file: leave out {flags}, or write them into the file")


def _demo_settings(name: str, *, run: str, nodes: int, rounds: int, alpha: float, epochs: int, seed: int) -> Any:
    from federation.settings import parse_settings

    values = {
        "run": run,
        "seed": seed,
        "num_rounds": rounds,
        "data": {"name": name},
        "partition": {"scheme": "dirichlet", "num_nodes": nodes, "alpha": alpha},
        "training": {"local_epochs": epochs},
        "rounds": {"min_nodes": nodes, "quorum": 1.0},
    }
    return parse_settings(values, source="demo")


def _show(summary: dict[str, Any], folder: Path, *, as_json: bool) -> None:
    if as_json:
        print_json(summary)
        return
    console.print_summary(summary)
    console.out.print(f"wrote summary.json, model.safetensors, metrics.jsonl, curves.png to {folder}", markup=False)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
