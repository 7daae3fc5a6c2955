"""The shipped Compose files on a real engine: configured, started, killed, and refused with a sentence."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedmq.enrolment import add_node
from tests.containers.conftest import SERVER_NAME, Server
from tests.containers.stack import REPOSITORY, VERSION, Stack, docker, free_port
from tests.requirements import require
from tests.security.mqtt_client import eventually, unpack

pytestmark = [pytest.mark.docker, pytest.mark.data, pytest.mark.slow, pytest.mark.timeout(1200)]

MAX_EDGE_IMAGE_BYTES = 1.3e9


def test_three_rounds_over_tls_from_nothing(server: Server) -> None:
    summary = server.summary("first")
    assert [entry["round_number"] for entry in summary["rounds"]] == [1, 2, 3]
    assert [entry["accepted"] for entry in summary["rounds"]] == [3, 3, 3]
    assert re.fullmatch(r"[0-9a-f]{64}", summary["global_digest"])
    assert summary["data"] == "bloodmnist_half"
    assert sum(map(sum, summary["final"]["confusion_matrix"])) == _num_test_images()
    connections = server.stack.logs("broker")
    for name in ("demo-pi5-8gb", "demo-pi5-4gb", "demo-pi4b-2gb"):
        assert re.search(rf"New client connected from \S+ as {name} \(p5, .*u'{name}'\)", connections)


def test_containers_are_confined(server: Server) -> None:
    for service, state in server.inspections().items():
        config, host = state["Config"], state["HostConfig"]
        assert not config["User"].startswith("0"), service
        assert config["User"], service
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert not host["CapAdd"], service
        assert "no-new-privileges:true" in host["SecurityOpt"], service
        assert host["Memory"] > 0, service
        assert host["LogConfig"]["Config"]["max-size"], service
        assert config["Healthcheck"]["Test"], service
        secret = (server.site.folder / "secrets" / "aggregator_password").read_text(encoding="utf-8")
        assert secret not in json.dumps(config), service


def test_plain_listener_is_out_of_the_nodes_reach_and_the_health_check_is_quiet(server: Server) -> None:
    attempts = "import socket,sys; [print(p, socket.socket().connect_ex(('broker', p))) for p in (8883, 1883)]"
    project = server.stack.project
    answers = docker("run", "--rm", "--network", f"{project}_fleet", f"fedmq/edge-node:{VERSION}", "python", "-c", attempts).splitlines()
    assert answers[0] == "8883 0"
    assert answers[1].split()[0] == "1883"
    assert answers[1].split()[1] != "0"
    assert server.stack.logs("broker").count(" as health ") < 10


@pytest.mark.usefixtures("images")
def test_edge_image_is_small_and_has_no_compiler() -> None:
    size = int(docker("image", "inspect", "--format", "{{.Size}}", f"fedmq/edge-node:{VERSION}"))
    assert size < MAX_EDGE_IMAGE_BYTES
    found = docker(
        "run",
        "--rm",
        f"fedmq/edge-node:{VERSION}",
        "sh",
        "-c",
        "command -v gcc cc make; find /opt -name '*.whl' -o -name '*.a' -o -name '*.h'; true",
    )
    assert found == ""


def test_pi_in_a_project_of_its_own_takes_part(server: Server, tmp_path: Path) -> None:
    bundle = unpack(add_node(server.site, "pi-east", now=datetime.now(UTC)), tmp_path)
    images = tmp_path / "images"
    images.mkdir(mode=0o755)
    _write_few_images(images / "images.npz")
    Image.fromarray(np.full((28, 28, 3), 128, dtype=np.uint8)).save(images / "scan.png")
    override = tmp_path / "override.yml"
    # Stands for the name service of a real network; the port is the one the server publishes on this host.
    override.write_text(f'services: {{edge-node: {{extra_hosts: ["{SERVER_NAME}:host-gateway"]}}}}\n', encoding="utf-8")
    for path in (bundle, *bundle.rglob("*")):
        shutil.chown(path, 1000, 1000)
    page = f"127.0.0.1:{free_port()}"
    pi = Stack(
        project=f"{server.stack.project}-pi",
        files=[bundle / "docker-compose.pi.yml", bundle / "docker-compose.serve.yml", override],
        env_file=bundle / ".env",
        folder=bundle,
        variables={"IMAGES_DIR": str(images), "DATA": "images.npz", "SERVE": page},
    )
    try:
        server.start_run("with-pi", num_rounds=2, min_nodes=4)
        pi.compose("up", "-d", "--wait", "--wait-timeout", "120")
        assert server.stack.wait_exited("aggregator", timeout_seconds=200) == 0
        assert eventually(lambda: _get(f"http://{page}/model").get("run") == "with-pi"), pi.logs()
        predicted = json.loads(pi.compose("exec", "-T", "edge-node", "fedmq", "predict", "/images/scan.png", "--json").stdout)
        assert predicted["images"][0]["predictions"]
    finally:
        pi.down()
    summary = server.summary("with-pi")
    assert [entry["accepted"] for entry in summary["rounds"]] == [4, 4]
    assert pi.leftovers() == []


def test_run_survives_the_kill_of_broker_aggregator_and_node(server: Server) -> None:
    server.start_run("killed", num_rounds=3, local_epochs=10)
    server.stack.wait_for_log("aggregator", " round=1 ")
    for service in ("broker", "aggregator", "demo-0"):
        server.stack.compose("kill", "-s", "KILL", service)
        assert server.stack.states()[service]["State"] == "exited"
        server.stack.compose("up", "-d", "--no-deps", service)
    assert server.stack.wait_exited("aggregator", timeout_seconds=280) == 0
    # With the run, not over and over again.
    assert [server.stack.wait_exited(f"demo-{index}", timeout_seconds=60) for index in range(3)] == [0, 0, 0]
    summary = server.summary("killed")
    assert [entry["round_number"] for entry in summary["rounds"]] == [1, 2, 3]
    assert [entry["accepted"] for entry in summary["rounds"]] == [3, 3, 3]


_COMPLETE = {
    "SITE_DIR": "/site",
    "SITE_UID": "1000",
    "SITE_GID": "1000",
    "FEDMQ_VERSION": VERSION,
    "BROKER_PORT": "8883",
    "OBSERVER_PORT": "8884",
    "RUN_FILE": "/run.toml",
    "DATA_DIR": "/data",
    "NODE": "pi-1",
    "BROKER_HOST": "server.test",
    "IMAGES_DIR": "/images",
}


# A start without what it needs ends in a sentence that says what to run.


@pytest.mark.usefixtures("engine")
def test_both_files_are_valid(tmp_path: Path) -> None:
    empty = tmp_path / "empty.env"
    empty.write_text("", encoding="utf-8")
    for names in (["docker-compose.yml"], ["docker-compose.pi.yml"], ["docker-compose.pi.yml", "docker-compose.serve.yml"]):
        files = [REPOSITORY / name for name in names]
        stack = Stack(project="fedmq-check", files=files, env_file=empty, profiles=["demo"], variables=_COMPLETE)
        config = stack.compose("config", "--format", "json").stdout
        is_published = "published" in config
        assert is_published == (names != ["docker-compose.pi.yml"])
        assert ("FEDMQ_SERVE" in config) == ("docker-compose.serve.yml" in names)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    ("stated", "webhook", "email", "language"),
    [
        ({}, ("http://127.0.0.1:9/unset", "always"), ("nobody@example.invalid", "always"), "en"),
        ({"FEDMQ_ALERT_WEBHOOK": "https://ntfy.sh/x"}, ("https://ntfy.sh/x", "always-not"), ("nobody@example.invalid", "always"), "en"),
        ({"FEDMQ_ALERT_EMAIL": "a@b.c", "FEDMQ_LANG": "ko"}, ("http://127.0.0.1:9/unset", "always"), ("a@b.c", "always-not"), "ko"),
    ],
)
def test_grafana_is_told_where_alerts_go_and_in_which_language(
    tmp_path: Path, stated: dict[str, str], webhook: tuple[str, str], email: tuple[str, str], language: str
) -> None:
    """Compose itself fills the variables in: none is empty, and what is not stated is muted."""
    env_file = tmp_path / ".env"
    env_file.write_text("".join(f"{name}={value}\n" for name, value in {**_COMPLETE, **stated}.items()), encoding="utf-8")
    stack = Stack(project="fedmq-check", files=[REPOSITORY / "docker-compose.yml"], env_file=env_file)
    grafana = json.loads(stack.compose("config", "--format", "json").stdout)["services"]["grafana"]
    told = grafana["environment"]
    assert (told["FEDMQ_ALERT_WEBHOOK"], told["FEDMQ_ALERT_WEBHOOK_MUTED"]) == webhook
    assert (told["FEDMQ_ALERT_EMAIL"], told["FEDMQ_ALERT_EMAIL_MUTED"]) == email
    assert told["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == "/etc/grafana/dashboards/runs.json"
    [pages] = [volume for volume in grafana["volumes"] if volume["target"] == "/etc/grafana/dashboards"]
    assert Path(pages["source"]) == REPOSITORY / "grafana" / "dashboards" / language
    assert (Path(pages["source"]) / "runs.json").is_file()


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("variable", ["SITE_DIR", "SITE_UID", "SITE_GID", "FEDMQ_VERSION", "BROKER_PORT", "RUN_FILE", "DATA_DIR"])
def test_server_without_a_variable(tmp_path: Path, variable: str) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("".join(f"{name}={value}\n" for name, value in _COMPLETE.items() if name != variable), encoding="utf-8")
    result = Stack(project="fedmq-check", files=[REPOSITORY / "docker-compose.yml"], env_file=env_file).compose("config", "-q", check=False)
    assert result.returncode != 0
    assert variable in result.stderr
    assert "fedmq init" in result.stderr or ".env" in result.stderr


@pytest.mark.usefixtures("images")
def test_broker_without_a_secret() -> None:
    result = _run(
        "eclipse-mosquitto:2.0.22",
        "-v",
        f"{REPOSITORY}/broker:/mosquitto/config:ro",
        "--entrypoint",
        "/bin/sh",
        command=["/mosquitto/config/start"],
    )
    assert result.returncode == 78
    assert result.stderr.count("\n") == 1
    assert "run `fedmq init HOST`" in result.stderr


@pytest.mark.usefixtures("images")
def test_aggregator_and_node_without_settings() -> None:
    for image in ("aggregator", "edge-node"):
        result = _run(f"fedmq/{image}:{VERSION}", "-e", "FEDMQ_TLS_CA=/run/fedmq/ca.crt")
        assert result.returncode == 2
        assert "FEDMQ_STATE_DIR: must be set" in result.stderr
        assert "`fedmq init` and `fedmq node add` make these files" in result.stderr
        assert "Traceback" not in result.stderr


def _run(image: str, *options: str, command: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    arguments = ["docker", "run", "--rm", "--network", "none", *options, image, *(command or [])]
    return subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)


def _get(url: str) -> dict[str, Any]:
    """Return what the prediction endpoint says, or nothing where it does not serve (yet)."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 - http, above
            answer: dict[str, Any] = json.load(response)
            return answer
    except OSError:
        return {}


def _num_test_images() -> int:
    with np.load(require("data") / "bloodmnist_half.npz") as archive:
        return len(archive["test_labels"])


def _write_few_images(path: Path) -> None:
    """Write 400 of the set's training images as a device's own file."""
    with np.load(require("data") / "bloodmnist_half.npz") as archive:
        np.savez(path, **{name: archive[name][:400] for name in archive.files})
    path.chmod(0o644)


@pytest.mark.usefixtures("images")
def test_a_site_is_made_without_python_on_the_host(tmp_path: Path) -> None:
    """docs/deploy.md: the aggregator's image holds the command line, and the file that goes into a bundle."""
    tmp_path.chmod(0o777)
    place = ("-u", "1000:1000", "-v", f"{tmp_path}:/work", "-w", "/work")
    made = _run(f"fedmq/aggregator:{VERSION}", *place, command=["fedmq", "init", SERVER_NAME])
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "data").is_dir()  # what .env names, or nothing would start
    added = _run(f"fedmq/aggregator:{VERSION}", *place, command=["fedmq", "node", "add", "pi-1", "--json"])
    assert added.returncode == 0, added.stderr
    bundle = unpack(tmp_path / json.loads(added.stdout)["bundle"], tmp_path)
    assert "FEDMQ_NODE" in (bundle / "docker-compose.pi.yml").read_text(encoding="utf-8")
