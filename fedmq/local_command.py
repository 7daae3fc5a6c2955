"""`fedmq demo` and `fedmq simulate`: a whole federation on this machine."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import typer

from federation.errors import SettingsError
from federation.settings import RunSettings
from fedmq import console
from fedmq.console import EXIT_INTERRUPTED, JsonOption, print_json, sentences
from fedmq.options import CommandEnvironment, check_out_dir, command_environment, load_settings, new_folder, simulated

ResumeOption = Annotated[Path | None, typer.Option("--resume", metavar="FOLDER", help="Go on with the interrupted run in this folder.")]


def demo(
    context: typer.Context,
    *,
    data: Annotated[str | None, typer.Option(help="Data set name, .npz file or folder of class sub-folders.")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Edge-node processes.")] = 3,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds; default 5, of large data sets 4.")] = None,
    alpha: Annotated[float, typer.Option(help="Dirichlet concentration of classes over nodes: smaller is more skewed.")] = 0.5,
    recipe: Annotated[str, typer.Option(help="Local training: best, or the thesis's.")] = "best",
    epochs: Annotated[int | None, typer.Option(min=1, help="Local epochs per round; default 5, of large data sets 1.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Instead of the recipe's.")] = None,
    method: Annotated[str | None, typer.Option(help="fedavg, scaffold or another of docs/methods.md; default fedavg.")] = None,
    model: Annotated[str | None, typer.Option(help="simple_cnn, mnist_cnn or resnet18; default simple_cnn.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; default out/demo-N.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Everything random follows from it.")] = 0,
    run_file: Annotated[Path | None, typer.Option("--file", help="Take all settings from this run file instead.")] = None,
    resume: ResumeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train across processes on this machine over a private Mosquitto: no Docker, no set-up."""
    with sentences():
        # Said before PyTorch and the data are loaded, which takes seconds.
        _say("FedMQ demo: an aggregator and its nodes as processes here, over their own broker", as_json=as_json)
        environment = command_environment()
        from fedmq.demo import choose_data, demo_name, demo_settings, run_demo

        dataset = None
        if resume is not None:
            _refuse_settings_beside(context, "--resume", "the interrupted run", {"resume", "as_json"})
            from fedmq.kept_state import load_interrupted

            settings, folder = load_interrupted(resume), resume
        elif run_file is not None:
            _refuse_settings_beside(context, "--file", "the run file", {"run_file", "out", "as_json"})
            settings, folder = simulated(load_settings(run_file)), _folder(out, "demo")
        else:
            from federation.data import load_dataset
            from federation.settings import DataSettings

            name = data or choose_data(environment.data_dir, environment.cache_dir)
            dataset = load_dataset(
                DataSettings(name=name), data_dir=environment.data_dir, cache_dir=environment.cache_dir, progress=not as_json
            )
            given: dict[str, Any] = {
                "run": demo_name(datetime.now(UTC)),
                "seed": seed,
                "num_rounds": rounds,
                "recipe": recipe,
                "data": {"name": name},
                "partition": {"scheme": "dirichlet", "num_nodes": nodes, "alpha": alpha},
                "rounds": {"min_nodes": nodes},
                "model": _given(name=model),
                "method": _given(name=method),
                "training": _given(local_epochs=epochs, learning_rate=learning_rate),
            }
            settings, folder = simulated(demo_settings(given, dataset)), _folder(out, "demo")

        def run() -> dict[str, Any]:
            return run_demo(
                settings,
                out_dir=folder,
                data_dir=environment.data_dir,
                cache_dir=environment.cache_dir,
                is_shown=not as_json,
                is_resumed=resume is not None,
                dataset=dataset,
            )

        _run_here(run, settings, folder, command="demo", as_json=as_json)


def simulate(
    context: typer.Context,
    run_file: Annotated[Path | None, typer.Argument(help="The TOML run file.")] = None,
    *,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; default out/RUN-N.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the run file's.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Instead of the run file's.")] = None,
    resume: ResumeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a run file in this one process, with no broker: the same machines, the same digest."""
    with sentences():
        environment: CommandEnvironment = command_environment()
        if resume is not None:
            _refuse_settings_beside(context, "--resume", "the interrupted run", {"resume", "as_json"})
            from fedmq.kept_state import load_interrupted

            settings, folder = load_interrupted(resume), resume
        elif run_file is not None:
            settings = simulated(load_settings(run_file, _given(seed=seed, num_rounds=rounds)))
            folder = _folder(out, settings.run)
        else:
            raise SettingsError("RUN_FILE is missing: name a run file (experiments/ holds ready ones), or --resume FOLDER")
        _say(f"simulating {settings.run}: loading PyTorch and the data", as_json=as_json)
        from fedmq.simulate import run_simulation

        def run() -> dict[str, Any]:
            return run_simulation(
                settings,
                out_dir=folder,
                data_dir=environment.data_dir,
                cache_dir=environment.cache_dir,
                is_shown=not as_json,
                is_resumed=resume is not None,
            )

        _run_here(run, settings, folder, command="simulate", as_json=as_json)


def _run_here(
    run: Callable[[], dict[str, Any]], settings: RunSettings, folder: Path, *, command: Literal["demo", "simulate"], as_json: bool
) -> None:
    """Run to the end and show it; an interrupted run shows what there is of it, and how to go on."""
    training = settings.training
    _say(f"data {settings.data.name}, {settings.partition.num_nodes} nodes, results in {folder}", as_json=as_json)
    _say(
        f"{settings.method.name}, {settings.model.name}, recipe {settings.recipe}: learning rate {training.learning_rate:g}, "
        f"{training.local_epochs} local epoch{'' if training.local_epochs == 1 else 's'}, batch {training.batch_size}",
        as_json=as_json,
    )
    try:
        with _signals_interrupt():
            summary = run()
    except KeyboardInterrupt:
        _show_interrupted(settings, folder, command)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        print_json(summary)
        return
    console.print_summary(summary)
    console.out.print(f"wrote summary.json, model.safetensors, metrics.jsonl, curves.png to {folder}", markup=False)
    console.out.print("next:", markup=False)
    for name in ("report", "replay", "export"):
        console.out.print(f"  {console.program()} {name} {folder}", markup=False, soft_wrap=True)


def _show_interrupted(settings: RunSettings, folder: Path, command: str) -> None:
    from fedmq.kept_state import STATE, keep_results

    summary = keep_results(folder, settings)
    if summary is not None:
        console.print_summary(summary, to=console.err)
    num_done = len(summary["rounds"]) if summary else 0
    if (folder / STATE / "aggregator").is_dir():
        kept = f"rounds 1 to {num_done} are kept in {folder}, with model, curves and table" if num_done else "no round was finished yet"
        console.err.print(f"interrupted after round {num_done} of {settings.num_rounds}: {kept}", style="red", markup=False, soft_wrap=True)
        console.err.print(f"go on with: {console.program()} {command} --resume {folder}", markup=False, soft_wrap=True)
    else:
        console.err.print("interrupted before the run had begun: nothing to keep", style="red", markup=False)


def _folder(out: Path | None, name: str) -> Path:
    return check_out_dir(out) if out else new_folder(Path("out"), name)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _say(text: str, *, as_json: bool) -> None:
    if not as_json:
        console.out.print(text, markup=False)


def _refuse_settings_beside(context: typer.Context, option: str, source: str, free: set[str]) -> None:
    """Raise where a flag would have to be ignored because everything is settled already."""
    given = [
        name for name in context.params if name not in free and getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    ]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise SettingsError(f"{option} takes all settings from {source}: leave out {flags}, or change them there")


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into Ctrl-C, so that they clean up too.

    SIGINT as well: in the background of a script a process starts with it ignored.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
