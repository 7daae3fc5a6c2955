"""The prediction endpoint: right answers, bounded and hostile requests, a new model without a dropped request."""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge_node import prediction_server
from edge_node.config import EdgeNodeConfig, parse_address
from edge_node.prediction_server import MAX_BODY_BYTES, PredictionServer, start_prediction_server
from federation.environment import read_environment
from federation.errors import SettingsError
from federation.inference.conversion import Converter
from federation.inference.graph import take_pixels, with_card
from federation.inference.model_file import replace_file
from federation.inference.pictures import decode_picture
from tests.inference.networks import MNIST_CNN, card_of, digits, digits_params


def model_of_round(round_number: int) -> bytes:
    """Return an ONNX file whose round `r` always answers class `r % 10`: an answer tells which model gave it."""
    params = {name: array.copy() for name, array in digits_params().items()}
    params["output.bias"][round_number % 10] += 1000
    graph = take_pixels(Converter().convert(MNIST_CNN, (1, 8, 8), 10, params).model)
    return with_card(graph, card_of(digits(), params, round_number=round_number))


def trained_model() -> bytes:
    graph = take_pixels(Converter().convert(MNIST_CNN, (1, 8, 8), 10, digits_params()).model)
    return with_card(graph, card_of(digits(), digits_params(), round_number=5))


def png(index: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(digits().test.images[index, 0]).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PredictionServer]:
    endpoint = start_prediction_server("127.0.0.1:0", tmp_path)
    yield endpoint
    endpoint.close()


def ask(server: PredictionServer, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    is_json = response.headers["Content-Type"] == "application/json"
    return response.status, json.loads(content) if is_json else content.decode()


def test_before_the_first_round_there_is_no_model_and_the_endpoint_says_so(server: PredictionServer, tmp_path: Path) -> None:
    assert ask(server, "GET", "/healthz") == (200, {"status": "ok", "has_model": False})
    assert ask(server, "GET", "/model")[0] == 503
    status, answer = ask(server, "POST", "/predict", png(0))
    assert status == 503
    assert "first round" in answer["error"]
    replace_file(tmp_path / "current.onnx", trained_model())
    assert ask(server, "GET", "/healthz")[1]["has_model"] is True


def test_predictions_are_the_model_s(server: PredictionServer, tmp_path: Path) -> None:
    replace_file(tmp_path / "current.onnx", trained_model())
    status, card = ask(server, "GET", "/model")
    assert status == 200
    assert (card["run"], card["round_number"], card["class_names"]) == ("test", 5, list(digits().class_names))
    found = []
    for index in range(50):
        status, answer = ask(server, "POST", "/predict?top=2", png(index))
        assert status == 200
        assert len(answer["predictions"]) == 2
        found.append(answer["predictions"][0]["class_index"])
    assert np.mean(np.array(found) == digits().test.labels[:50]) > 0.9


def test_a_model_that_can_t_be_used_leaves_the_old_one_serving(server: PredictionServer, tmp_path: Path) -> None:
    replace_file(tmp_path / "current.onnx", trained_model())
    assert ask(server, "GET", "/model")[0] == 200
    replace_file(tmp_path / "current.onnx", b"junk")
    assert ask(server, "GET", "/model")[1]["round_number"] == 5
    (tmp_path / "current.onnx").unlink()
    assert ask(server, "POST", "/predict", png(0))[0] == 200


def test_a_new_round_s_model_is_swapped_in_without_dropping_a_request(server: PredictionServer, tmp_path: Path) -> None:
    """Four clients ask all the while the model is replaced ten times: every answer is 200 and from one whole model."""
    models = [model_of_round(round_number) for round_number in range(1, 11)]
    replace_file(tmp_path / "current.onnx", models[0])
    stop, answers = threading.Event(), list[tuple[int, Any]]()

    def client() -> None:
        while not stop.is_set():
            answers.append(ask(server, "POST", "/predict?top=1", png(0)))

    clients = [threading.Thread(target=client) for _ in range(4)]
    for thread in clients:
        thread.start()
    for round_number, model in enumerate(models, start=1):
        replace_file(tmp_path / "current.onnx", model)
        while ask(server, "GET", "/model")[1]["round_number"] != round_number:
            pass
    stop.set()
    for thread in clients:
        thread.join()
    assert {status for status, _ in answers} == {200}
    assert all(answer["predictions"][0]["class_index"] == answer["model"]["round_number"] % 10 for _, answer in answers)
    assert ask(server, "POST", "/predict?top=1", png(0))[1]["model"]["round_number"] == 10


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/predict", b"no image", 400),
        ("POST", "/predict", b"", 400),
        ("POST", "/predict?top=0", b"x", 400),
        ("POST", "/predict?top=-1", b"x", 400),
        ("POST", "/predict?top=%C2%B2", b"x", 400),
        ("POST", "/predict?top=999999999999999999999", b"x", 400),
        ("GET", "/predict", None, 405),
        ("POST", "/", b"x", 405),
        ("DELETE", "/model", None, 405),
        ("GET", "/current.onnx", None, 404),
        ("GET", "/../current.onnx", None, 404),
    ],
)
def test_wrong_requests_get_an_error_that_says_why(
    method: str, path: str, body: bytes | None, status: int, server: PredictionServer, tmp_path: Path
) -> None:
    replace_file(tmp_path / "current.onnx", trained_model())
    found, answer = ask(server, method, path, body)
    assert found == status
    assert answer["error"]
    assert ask(server, "POST", "/predict", png(0))[0] == 200


def test_a_body_beyond_the_bound_is_refused_unread(server: PredictionServer, tmp_path: Path) -> None:
    """By its announced length; and, where none is announced, once it has grown too long."""
    replace_file(tmp_path / "current.onnx", trained_model())
    for header in (f"Content-Length: {MAX_BODY_BYTES + 1}", "Transfer-Encoding: chunked"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(f"POST /predict HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode())
            if "chunked" in header:
                block = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
                sent = send_until_closed(connection, block, MAX_BODY_BYTES // (1 << 20) + 8)
                assert sent <= MAX_BODY_BYTES + (8 << 20)
            else:
                assert connection.recv(12) == b"HTTP/1.1 413"
    assert ask(server, "POST", "/predict", png(0))[0] == 200


def send_until_closed(connection: socket.socket, block: bytes, num_blocks: int) -> int:
    """Send blocks until the other side answers or hangs up; return the bytes sent."""
    sent = 0
    for _ in range(num_blocks):
        try:
            connection.sendall(block)
        except OSError:
            break
        sent += len(block)
    return sent


def test_images_of_many_pixels_are_refused_and_others_decoded_one_at_a_time(
    server: PredictionServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight PNGs of 64 million pixels at once, 200 KB each on the wire, took all the memory of a Pi's container."""
    replace_file(tmp_path / "current.onnx", trained_model())
    busy: list[int] = []
    most: list[int] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        busy.append(1)
        most.append(len(busy))
        try:
            return decode_picture(*arguments, **options)
        finally:
            busy.pop()

    monkeypatch.setattr(prediction_server, "decode_picture", counted)
    for side, expected in ((8000, 400), (1000, 200)):
        file = io.BytesIO()
        Image.new("L", (side, side), 7).save(file, "PNG")
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda body: ask(server, "POST", "/predict", body), [file.getvalue()] * 8))
        assert [status for status, _ in answers] == [expected] * 8
        assert expected == 200 or "crop or shrink it" in answers[0][1]["error"]
    assert max(most) == 1


def test_the_page_s_policy_allows_its_own_script_alone(server: PredictionServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", "/")
    response = connection.getresponse()
    page = response.read().decode()
    connection.close()
    policy = response.headers["Content-Security-Policy"]
    assert response.status == 200
    assert page.count("<script>") == 1
    assert "script-src 'sha256-" in policy
    assert "unsafe-inline" not in policy.split("script-src", 1)[1].split(";", 1)[0]
    assert "default-src 'none'" in policy
    assert "http" not in page.split("<style>", 1)[1]  # nothing is fetched from elsewhere


def test_a_taken_address_is_an_error_that_names_the_variable(server: PredictionServer, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="FEDMQ_SERVE"):
        start_prediction_server(f"127.0.0.1:{server.port}", tmp_path)


def test_a_name_with_several_addresses_is_served_on_its_first(tmp_path: Path) -> None:
    endpoint = start_prediction_server("localhost:0", tmp_path)
    try:
        with socket.create_connection(("localhost", endpoint.port), timeout=30) as connection:
            connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert connection.recv(15).endswith(b"200 OK")
    finally:
        endpoint.close()


def test_addresses(environment: Callable[[str], dict[str, str]]) -> None:
    assert parse_address("127.0.0.1:8080") == ("127.0.0.1", 8080)
    assert parse_address("[::1]:80") == ("::1", 80)
    assert read_environment(EdgeNodeConfig, environment("localhost:8080")).serve == "localhost:8080"
    for wrong in ("8080", "localhost", ":8080", "host:99999", "http://host:80", "host:80/path", "user@host:80", ""):
        with pytest.raises(SettingsError, match="host:port"):
            parse_address(wrong)
    with pytest.raises(SettingsError, match="FEDMQ_SERVE"):
        read_environment(EdgeNodeConfig, environment("localhost"))


@pytest.fixture
def environment(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """A node's variables, by its FEDMQ_SERVE."""

    def variables(serve: str) -> dict[str, str]:
        return {"FEDMQ_NODE": "n", "FEDMQ_DATA": "digits", "FEDMQ_STATE_DIR": str(tmp_path), "FEDMQ_SERVE": serve}

    return variables
