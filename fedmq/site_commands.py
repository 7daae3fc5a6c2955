"""`fedmq init` and `fedmq node add|list|renew|revoke`: a site and who belongs to it."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from federation.errors import TransportError
from fedmq import console
from fedmq.console import JsonOption, print_json, print_table, sentences
from fedmq.enrolment import add_node, enrol_demo_nodes, mark_revoked, renew_node, unpack_for_demo
from fedmq.fleet import enrolled_nodes, observe_nodes
from fedmq.leftovers import clear_leftovers
from fedmq.revocation import BrokerAddress, enforce
from fedmq.site import DATA_FOLDER, DEMO_NODES, Site, create_site, open_site, renew_server

EXPIRY_WARNING_DAYS = 14

node_app = typer.Typer(name="node", help="Enrol, list, renew and revoke a site's edge nodes.", no_args_is_help=True)

SiteOption = Annotated[Path, typer.Option("--site", help="The site's folder.")]
HostOption = Annotated[str, typer.Option("--broker-host", help="How this machine reaches the site's broker.")]
NameArgument = Annotated[str, typer.Argument(help="The node's name: a-z, 0-9, '-' and '_'.")]


def app_init(
    hosts: Annotated[list[str], typer.Argument(help="Names and addresses under which nodes reach this server, the preferred one first.")],
    *,
    site: SiteOption = Path("site"),
    name: Annotated[str, typer.Option(help="The site's name, as its certificates show it.")] = "fedmq",
    port: Annotated[int, typer.Option(min=1, max=65_535, help="The broker's port for the fleet.")] = 8883,
    demo: Annotated[
        bool, typer.Option("--demo", help="Also enrol the three nodes of `docker compose --profile demo`, on this machine.")
    ] = False,
    renew: Annotated[
        bool, typer.Option("--renew-server", help="Keep the site; issue the broker a new certificate for these hosts.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a site: certificate authority, server certificate, passwords, .env. Overwrites nothing."""
    now = datetime.now(UTC)
    with sentences():
        if renew:
            made = renew_server(open_site(site), hosts=hosts, now=now)
            _say(
                f"the broker has a new certificate for {', '.join(made.record.hosts)}; a running one takes it up by itself",
                made,
                as_json=as_json,
            )
            return
        made = create_site(site, Path(".env"), name=name, hosts=hosts, port=port, now=now)
        if demo:
            enrol_demo_nodes(made, now=now)
        # Compose refuses to mount a folder that is not there.
        Path(DATA_FOLDER).mkdir(exist_ok=True)
    _say(
        f"made {site}/, {DATA_FOLDER}/ and .env: keep a copy of {site}/ca/ca.key away from this machine. "
        f"Next: `docker compose {'--profile demo ' if demo else ''}up -d`, and `fedmq node add NAME` for each device",
        made,
        as_json=as_json,
    )


@node_app.command("add")
def add(name: NameArgument, *, site: SiteOption = Path("site"), as_json: JsonOption = False) -> None:
    """Enrol a node: write the bundle to carry to its device."""
    with sentences():
        _show_bundle(name, add_node(open_site(site), name, now=datetime.now(UTC)), as_json=as_json)


@node_app.command("renew")
def renew(name: NameArgument, *, site: SiteOption = Path("site"), as_json: JsonOption = False) -> None:
    """Write a new bundle for an enrolled node; its old certificate works until that one's own end."""
    now = datetime.now(UTC)
    with sentences():
        opened = open_site(site)
        bundle = renew_node(opened, name, now=now)
        if name in DEMO_NODES:
            unpack_for_demo(opened, name, bundle)
            bundle = opened.folder / "demo" / name
        _show_bundle(name, bundle, as_json=as_json)


@node_app.command("revoke")
def revoke(
    name: NameArgument,
    *,
    site: SiteOption = Path("site"),
    broker_host: HostOption = "localhost",
    as_json: JsonOption = False,
) -> None:
    """Shut a node out at once: a connected one is thrown out, never let in again, and what it left on the broker is cleared."""
    now = datetime.now(UTC)
    with sentences():
        opened = open_site(site)
        mark_revoked(opened, name)
        fleet = BrokerAddress(host=broker_host, port=opened.record.port)
        enforce(opened, name, fleet, now=now)
        observers = BrokerAddress(host=broker_host, port=opened.record.observer_port)
        cleared = clear_leftovers(opened, name, fleet=fleet, observers=observers, now=now)
    if as_json:
        print_json({"node": name, "revoked": True, "cleared": cleared})
    else:
        console.out.print(
            f"{name} is out and stays out, and {len(cleared)} messages that it had left on the broker are gone; "
            f"`fedmq node add {name}` would enrol it anew",
            markup=False,
        )


@node_app.command("list")
def list_nodes(*, site: SiteOption = Path("site"), broker_host: HostOption = "localhost", as_json: JsonOption = False) -> None:
    """Show who is enrolled, online, last at work, and when certificates end."""
    now = datetime.now(UTC)
    with sentences():
        opened = open_site(site)
        try:
            nodes, unseen = observe_nodes(opened, BrokerAddress(host=broker_host, port=opened.record.observer_port)), ""
        except TransportError as error:
            nodes, unseen = enrolled_nodes(opened), str(error)
    if as_json:
        print_json({"nodes": [asdict(node) for node in nodes], "broker_problem": unseen or None})
        return
    rows = []
    for node in nodes:
        days = (node.expires - now).days
        expiry = f"{node.expires:%Y-%m-%d}" + (f" ({days} days)" if days <= EXPIRY_WARNING_DAYS else "")
        state = "revoked" if node.revoked else {True: "online", False: "offline", None: "unknown"}[node.online]
        rows.append((node.name, state, node.run, node.last_round, expiry, node.problem))
    print_table("enrolled nodes", ("node", "state", "run", "last round", "certificate ends", "problem"), rows)
    if unseen:
        console.err.print(f"who is online is not known: {unseen}", style="yellow", markup=False)


def _show_bundle(name: str, bundle: Path, *, as_json: bool) -> None:
    if as_json:
        print_json({"node": name, "bundle": str(bundle)})
        return
    console.out.print(
        f"{bundle} is {name}: carry it to the device over a safe way, unpack it there, follow its README, and delete it here", markup=False
    )


def _say(text: str, site: Site, *, as_json: bool) -> None:
    if as_json:
        print_json({"site": str(site.folder), **site.record.model_dump(mode="json")})
    else:
        console.out.print(text, markup=False)
