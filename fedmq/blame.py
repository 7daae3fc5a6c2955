"""`fedmq blame`: which node's removal would have helped a run most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from fedmq import console
from fedmq.console import JsonOption, print_json, print_table, sentences
from fedmq.options import HostOption, PasswordOption, PortOption, UserOption, command_environment
from fedmq.replay import FromOption, OutOption, RunOrFolderArgument, broker_address, build_evaluator_of, parse_origin

if TYPE_CHECKING:
    from aggregator.blame import Blame

MIN_GAIN = 0.01
"""A node is named from one point of accuracy a round on: less is what any node's data make of a mean."""


def blame(
    run: RunOrFolderArgument,
    *,
    round_numbers: Annotated[str, typer.Option("--round", help="N, A-B or all.")] = "all",
    origin: FromOption = "auto",
    out: OutOption = None,
    host: HostOption = None,
    port: PortOption = None,
    username: UserOption = None,
    password_file: PasswordOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say which node's removal would have helped a run most: every round once more without each of its nodes."""
    from aggregator.blame import blame as blame_nodes
    from aggregator.replay import Replay
    from fedmq.run_source import find_trusted_keys, locate_run, open_records

    with sentences():
        environment = command_environment(broker_host=host, broker_port=port, broker_username=username, broker_password_file=password_file)
        run, folder, source = locate_run(run, out, parse_origin(origin))
        with open_records(run, source, broker_address(environment), folder) as records:
            evaluate = build_evaluator_of(records.settings, environment)
            replay = Replay(run, records.source, find_trusted_keys(environment.trusted_keys, records.out_dir))
            found = blame_nodes(replay, records.numbers(round_numbers), evaluate)
    named = culprit(found)
    if as_json:
        print_json({"run": run, "nodes": [asdict(entry) for entry in found], "culprit": named.node if named else None})
        return
    columns = ("node", "rounds", "accuracy without it", "loss without it", "worst round", "left out", "lowered", "rejected")
    rows = [
        [
            entry.node,
            entry.num_rounds,
            f"{entry.accuracy_gain:+.4f}",
            f"{-entry.loss_gain:+.4g}",
            entry.worst_round or "-",
            entry.num_left_out,
            entry.num_lowered,
            entry.num_rejected,
        ]
        for entry in found
    ]
    print_table(f"{run}: each round without one node, means", columns, rows)
    console.out.print(sentence_of(named), markup=False)


def culprit(found: Sequence[Blame]) -> Blame | None:
    """Return the node to look at, or None: whose removal helps by a point or more, else who was kept out most often."""
    if found and found[0].accuracy_gain >= MIN_GAIN:
        return found[0]
    kept_out = [entry for entry in found if entry.num_left_out or entry.num_rejected]
    return max(kept_out, key=lambda entry: entry.num_left_out + entry.num_rejected, default=None)


def sentence_of(named: Blame | None) -> str:
    """Return what to tell the operator."""
    if named is None:
        return "no node's removal would have helped by a point of accuracy"
    if named.accuracy_gain >= MIN_GAIN:
        gain = 100 * named.accuracy_gain
        return (
            f"without {named.node} a round ends {gain:.1f} points of accuracy higher: look at its data, or `fedmq node revoke {named.node}`"
        )
    return (
        f"{named.node} did no harm, for it was kept out: left out {named.num_left_out} times, rejected {named.num_rejected} times; "
        f"look at it, or `fedmq node revoke {named.node}`"
    )
