"""`fedmq status`: runs and nodes as the broker's retained messages tell."""

from __future__ import annotations

from collections import Counter
from typing import Any

from federation import topics
from federation.broker_address import BrokerAddress
from federation.condition import condition_of_node, condition_of_run
from federation.errors import RemoteProtocolError
from federation.messages import NodeStatus, RejectionReport, RunState, parse
from fedmq import console
from fedmq.console import JsonOption, print_json, print_table, sentences
from fedmq.observer import read_retained
from fedmq.options import HostOption, PasswordOption, PortOption, UserOption, command_environment

MAX_ELSEWHERE = 5
"""Statuses shown of one node in runs that the broker does not hold: it may wait for its aggregator. More are somebody's invention."""

REJECTIONS_TITLE = "messages that could not be used"


def status(
    *,
    host: HostOption = None,
    port: PortOption = None,
    username: UserOption = None,
    password_file: PasswordOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the runs on a broker and their nodes."""
    with sentences():
        environment = command_environment(broker_host=host, broker_port=port, broker_username=username, broker_password_file=password_file)
        _, messages = read_retained(
            BrokerAddress.from_environment(environment),
            [topics.state_filter_of_all_runs(), topics.status_filter("+"), topics.rejections_filter_of_all_runs()],
        )
    states, nodes = describe(messages)
    nodes, left_out = in_known_runs(states, nodes)
    rejections = describe_rejections(messages)
    if as_json:
        print_json({"runs": states, "nodes": nodes, "statuses_left_out": left_out, "rejections": rejections})
        return
    rows = [(s["run"], s["state"], f"{s['round_number']}/{s['num_rounds']}", s["method"], s["reason"]) for s in states]
    print_table("runs", ("run", "state", "round", "method", "reason"), rows)
    facts = [(n["run"], n["node"], n["state"], n["num_examples"], n["num_cores"], n["problem"]) for n in nodes]
    print_table("nodes", ("run", "node", "state", "examples", "cores", "problem"), facts)
    for node, count in left_out.items():
        console.err.print(f"left out: {count} statuses of {node} in runs that this broker does not hold", markup=False)
    if rejections:
        # A sender's own words: shown as Python writes them, so that they can't draw on the terminal.
        refused = [(r["run"], r["node"], r["reason"], r["count"], ascii(r["topic"]), ascii(r["detail"])) for r in rejections]
        print_table(REJECTIONS_TITLE, ("run", "node", "reason", "messages", "newest topic", "newest detail"), refused)


def in_known_runs(states: list[dict[str, Any]], nodes: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return the statuses to show, and by node how many were left out: a node may write one in any run it can think of."""
    known = {state["run"] for state in states}
    elsewhere = Counter(node["node"] for node in nodes if node["run"] not in known)
    left_out = {node: count for node, count in sorted(elsewhere.items()) if count > MAX_ELSEWHERE}
    return [node for node in nodes if node["run"] in known or node["node"] not in left_out], left_out


def describe_rejections(messages: dict[str, bytes]) -> list[dict[str, Any]]:
    """Return what the runs' aggregators could not use, by run, node and reason."""
    found: list[dict[str, Any]] = []
    for name, payload in sorted(messages.items()):
        try:
            topic = topics.parse_topic(name)
            if isinstance(topic, topics.RejectionsTopic):
                entries = parse(RejectionReport, payload).entries
                found += [{"run": topic.run, **entry.model_dump(mode="json")} for entry in entries]
        except RemoteProtocolError:
            continue
    return found


def describe(messages: dict[str, bytes]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the run states and node statuses among retained messages; what does not parse is left out."""
    states: list[dict[str, Any]] = []
    nodes: list[dict[str, Any]] = []
    for name, payload in sorted(messages.items()):
        try:
            match topics.parse_topic(name):
                case topics.StateTopic():
                    state = parse(RunState, payload)
                    states.append({**state.model_dump(mode="json"), "state": condition_of_run(state).word})
                case topics.StatusTopic(run=run):
                    status = parse(NodeStatus, payload)
                    nodes.append({"run": run, **status.model_dump(mode="json"), "state": condition_of_node(status).word})
        except RemoteProtocolError:
            continue
    return states, nodes
