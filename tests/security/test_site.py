"""A site's files and commands: made whole or not at all, readable by their owner alone, refused with a sentence."""

from __future__ import annotations

import json
import os
import stat
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from typer.testing import CliRunner

from federation.errors import SettingsError
from federation.messages import NodeStatus, canonical_json
from fedmq import certificates
from fedmq.enrolment import add_node, enrol_demo_nodes, enrolments, mark_revoked, renew_node, revoked_serial_numbers
from fedmq.fleet import enrolled_nodes, merge_presence
from fedmq.revocation import write_revocation_list
from fedmq.site import DEMO_NODES, Site, create_site, open_site, renew_server
from fedmq.site_commands import app_init, node_app

NOW = datetime.now(UTC)

app = typer.Typer()
app.command("init")(app_init)
app.add_typer(node_app)


def test_site_is_readable_by_its_owner_alone_and_holds_no_default_password(site: Site) -> None:
    for path in [site.folder, *site.folder.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    secrets = [path.read_text(encoding="utf-8") for path in site.folder.glob("secrets/*_password")]
    assert len(secrets) == len(set(secrets)) == 4
    assert min(map(len, secrets)) >= 32
    env_text = (site.folder.parent / ".env").read_text(encoding="utf-8")
    assert not any(secret in env_text for secret in secrets)
    hashed = (site.folder / "broker/passwords").read_text(encoding="utf-8")
    assert not any(secret in hashed for secret in secrets)


def test_init_overwrites_neither_site_nor_env_file(site: Site, tmp_path: Path) -> None:
    authority = site.certificate_file.read_bytes()
    for folder, env_file in ((site.folder, tmp_path / "new.env"), (tmp_path / "new", tmp_path / ".env")):
        with pytest.raises(SettingsError, match="never overwrites"):
            create_site(folder, env_file, name="x", hosts=["server.test"], now=NOW)
    assert site.certificate_file.read_bytes() == authority
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "new.env").exists()


@pytest.mark.parametrize("hosts", [["not a host"], [""], ["-x.test"], [], ["a" * 64 + ".test"]])
def test_a_site_that_fails_leaves_nothing(tmp_path: Path, hosts: list[str]) -> None:
    with pytest.raises(SettingsError):
        create_site(tmp_path / "site", tmp_path / ".env", name="hospital", hosts=hosts, now=NOW)
    assert list(tmp_path.iterdir()) == []


def test_certificates_are_of_the_kind_promised(site: Site, tmp_path: Path) -> None:
    bundle = add_node(site, "pi-1", now=NOW)
    with tarfile.open(bundle) as archive:
        names = {name.removeprefix("pi-1/") for name in archive.getnames()}
        assert all(member.mode == 0o600 for member in archive.getmembers())
        archive.extractall(tmp_path, filter="data")
    assert names == {
        "ca.crt",
        "node.crt",
        "node.key",
        "signing.key",
        "trusted_keys/aggregator.pub",
        ".env",
        "docker-compose.pi.yml",
        "docker-compose.serve.yml",
        "README",
    }
    assert len((tmp_path / "pi-1/README").read_text(encoding="utf-8").splitlines()) == 3
    authority = x509.load_pem_x509_certificate(site.certificate_file.read_bytes())
    server = x509.load_pem_x509_certificate((site.folder / "broker/server.crt").read_bytes())
    node = x509.load_pem_x509_certificate((tmp_path / "pi-1/node.crt").read_bytes())
    for certificate, usage in ((server, ExtendedKeyUsageOID.SERVER_AUTH), (node, ExtendedKeyUsageOID.CLIENT_AUTH)):
        certificate.verify_directly_issued_by(authority)
        assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
        assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [usage]
        assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert node.subject.rfc4514_string() == "CN=pi-1"
    alternative = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert alternative.get_values_for_type(x509.DNSName) == ["server.test", "localhost", "broker"]
    assert [str(address) for address in alternative.get_values_for_type(x509.IPAddress)] == ["192.0.2.1", "127.0.0.1"]
    private = load_pem_private_key((tmp_path / "pi-1/signing.key").read_bytes(), password=None)
    trusted = load_pem_public_key((site.folder / "trusted_keys/pi-1.pub").read_bytes())
    assert private.public_key() == trusted


@pytest.mark.parametrize(
    "name",
    [
        "aggregator",
        "observer",
        "guard",
        "health",
        "ward-telemetry",
        "ward-aggregator",
        "pi-1-finder",
        "watch-1",
        "Pi",
        "a/b",
        "a+",
        "#",
        "",
        "x" * 64,
        "../up",
        "a b",
        "$SYS",
    ],
)
def test_names_that_would_be_someone_else_are_refused(site: Site, name: str) -> None:
    with pytest.raises(SettingsError, match="node name"):
        add_node(site, name, now=NOW)
    assert enrolments(site) == []


def test_a_node_is_added_once_renewed_while_it_lasts_and_added_again_after_revocation(site: Site) -> None:
    first = add_node(site, "pi-1", now=NOW).read_bytes()
    with pytest.raises(SettingsError, match="enrolled already"):
        add_node(site, "pi-1", now=NOW)
    assert renew_node(site, "pi-1", now=NOW + timedelta(days=1)).read_bytes() != first
    assert revoked_serial_numbers(site) == []
    mark_revoked(site, "pi-1")
    assert not (site.node_folder("pi-1") / "pi-1.tar").exists()
    assert len(revoked_serial_numbers(site)) == 2
    with pytest.raises(SettingsError, match="is revoked"):
        renew_node(site, "pi-1", now=NOW)
    add_node(site, "pi-1", now=NOW)
    assert len(revoked_serial_numbers(site)) == 2
    assert [node.revoked for node in enrolled_nodes(site)] == [False]
    write_revocation_list(site, now=NOW)
    listed = x509.load_pem_x509_crl((site.folder / "broker/crl.pem").read_bytes())
    assert sorted(entry.serial_number for entry in listed) == sorted(revoked_serial_numbers(site))
    # Every signing key the node ever had is kept: rounds signed with a former one must still be replayable.
    assert (site.folder / "trusted_keys/pi-1.pub").read_bytes().count(b"BEGIN PUBLIC KEY") == 3


def test_renewing_the_server_keeps_the_authority(site: Site) -> None:
    before = (site.folder / "broker/server.crt").read_bytes()
    renewed = renew_server(site, hosts=["new.test"], now=NOW)
    assert open_site(site.folder) == renewed
    assert (site.folder / "broker/server.crt").read_bytes() != before
    assert certificates.expiry((site.folder / "broker/server.crt").read_bytes()) > NOW + timedelta(days=700)


def test_demo_nodes_are_unpacked_and_leave_no_bundle(site: Site) -> None:
    enrol_demo_nodes(site, now=NOW)
    for name in DEMO_NODES:
        assert {"node.key", "trusted_keys"} <= {path.name for path in (site.folder / "demo" / name).iterdir()}
    assert list(site.folder.rglob("*.tar")) == []


def test_presence_is_merged_from_retained_messages_and_garbage_is_passed_over(site: Site) -> None:
    add_node(site, "pi-1", now=NOW)
    add_node(site, "pi-2", now=NOW)
    status = NodeStatus(node="pi-1", online=True, instance="x").model_dump_json().encode()
    messages = {
        "fedmq/v2/old/nodes/pi-1/status": canonical_json({"nonsense": 1}),
        "fedmq/v2/demo/nodes/pi-1/status": status,
        "fedmq/v2/demo/nodes/stranger/status": status,
        "elsewhere": b"\xff",
    }
    assert [(node.name, node.online, node.run) for node in merge_presence(enrolled_nodes(site), messages)] == [
        ("pi-1", True, "demo"),
        ("pi-2", None, None),
    ]


def test_commands_speak_json_and_exit_as_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    assert run(app, ["node", "list"]).exit_code == 2
    made = run(app, ["init", "server.test", "--port", "1", "--json"])
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["hosts"] == ["server.test"]
    assert run(app, ["init", "server.test"]).exit_code == 2
    assert run(app, ["node", "add", "UPPER"]).exit_code == 2
    bundle = json.loads(run(app, ["node", "add", "pi-1", "--json"]).stdout)["bundle"]
    assert Path(bundle).is_file()
    listed = json.loads(run(app, ["node", "list", "--json", "--broker-host", "127.0.0.1"]).stdout)
    assert [node["name"] for node in listed["nodes"]] == ["pi-1"]
    # No broker runs: the revocation stands, and the command says that it is not yet enforced.
    revoked = run(app, ["node", "revoke", "pi-1"])
    assert revoked.exit_code == 1
    assert "docker compose up -d broker" in revoked.output
    assert open_site(tmp_path / "site").folder.stat().st_uid in {os.getuid(), 10_001}
