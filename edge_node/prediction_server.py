"""The node's prediction endpoint: its current model over HTTP, for the device's own applications. Off by default.

`GET /` is a page to drop an image on, `GET /healthz` and `GET /model` say what is there, `POST /predict` classifies
the image in the body. There is no log-in: bind it to the loopback address, or put it behind something that has one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import parse_qs

import waitress

from edge_node.config import parse_address
from federation.errors import DataError, ModelFileError, SettingsError
from federation.inference.classifier import Classifier, load_classifier
from federation.inference.last_good import kept_reason
from federation.inference.pictures import decode_picture

logger = logging.getLogger("prediction_server")

MAX_BODY_BYTES = 32 << 20
"""Largest image taken; a phone's photograph has a third of it."""

MAX_PIXELS = 16_000_000
"""Of one image: a phone's photograph has 12 million. Decoding takes up to 25 bytes a pixel, and a Pi's container has 1.5 GB for all."""

NUM_DECODED_AT_ONCE = 1
"""Images decoded at a time, however many are sent: the node trains in the same memory."""

DECODE_PATIENCE_SECONDS = 20.0
"""How long a request waits for its turn before it is told to come again."""

NUM_WORKERS = 4
"""Requests answered at a time; ONNX Runtime serves them from one session."""

MAX_CONNECTIONS = 64
IDLE_SECONDS = 30
"""How long a silent connection is kept."""

STOP_SECONDS = 5.0
"""How long a stopping endpoint waits for what is being answered."""

DEFAULT_TOP = "3"
MAX_TOP_DIGITS = 5

StartResponse: TypeAlias = Callable[[str, list[tuple[str, str]]], object]


class CurrentModel:
    """The model file in use, read again when a new round has replaced it.

    A request that has begun keeps the model it began with, so a swap drops none.

    Args:
        path: may not exist yet.
        num_threads: of the engine.
    """

    def __init__(self, path: Path, *, num_threads: int) -> None:
        self._path = path
        self._num_threads = num_threads
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._classifier: Classifier | None = None

    @property
    def notice(self) -> str:
        """Why the model in use is not the newest, as a sentence; empty where it is."""
        return kept_reason(self._path.parent)

    def get(self) -> Classifier | None:
        """Return the newest model that can be used; None when there has been none yet."""
        try:
            status = self._path.stat()
        except OSError:
            return self._classifier
        identity = (status.st_ino, status.st_mtime_ns, status.st_size)
        if identity == self._seen:
            return self._classifier
        with self._lock:
            if identity != self._seen:
                try:
                    self._classifier = load_classifier(self._path, num_threads=self._num_threads)
                    logger.info("model=loaded round=%d precision=%s", self._classifier.card.round_number, self._classifier.card.precision)
                except ModelFileError as error:
                    logger.error("model=unusable reason=%r", str(error))  # noqa: TRY400 - the sentence says it all
                self._seen = identity
            return self._classifier


class PredictionApp:
    """Answers requests (WSGI, PEP 3333).

    Args:
        model: what to classify with.
    """

    def __init__(self, model: CurrentModel) -> None:
        self._model = model
        self._page = files("edge_node").joinpath("page.html").read_bytes()
        self._policy = content_policy(self._page)
        self._turn = threading.BoundedSemaphore(NUM_DECODED_AT_ONCE)

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "/")
        if path == "/" and method == "GET":
            return self._send(start_response, HTTPStatus.OK, self._page, "text/html; charset=utf-8")
        routes: dict[tuple[str, str], Callable[[dict[str, Any]], tuple[HTTPStatus, dict[str, Any]]]] = {
            ("GET", "/healthz"): self._health,
            ("GET", "/model"): self._describe,
            ("POST", "/predict"): self._predict,
        }
        handler = routes.get((method, path))
        if handler is not None:
            status, answer = handler(environ)
        elif path in {"/", *(known for _, known in routes)}:
            status, answer = HTTPStatus.METHOD_NOT_ALLOWED, {"error": f"{path} is not for {method[:20]}"}
        else:
            status, answer = HTTPStatus.NOT_FOUND, {"error": "try /, /healthz, /model or POST /predict"}
        return self._send(start_response, status, json.dumps(answer).encode(), "application/json")

    def _send(self, start_response: StartResponse, status: HTTPStatus, body: bytes, content_type: str) -> list[bytes]:
        headers = [
            ("Content-Type", content_type),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Content-Security-Policy", self._policy),
        ]
        start_response(f"{status.value} {status.phrase}", headers)
        return [body]

    def _health(self, _environ: dict[str, Any]) -> tuple[HTTPStatus, dict[str, Any]]:
        return HTTPStatus.OK, {"status": "ok", "has_model": self._model.get() is not None}

    def _describe(self, _environ: dict[str, Any]) -> tuple[HTTPStatus, dict[str, Any]]:
        classifier = self._model.get()
        if classifier is None:
            return _no_model()
        notice = self._model.notice
        return HTTPStatus.OK, classifier.card.model_dump(mode="json") | ({"notice": notice} if notice else {})

    def _predict(self, environ: dict[str, Any]) -> tuple[HTTPStatus, dict[str, Any]]:
        classifier = self._model.get()
        if classifier is None:
            return _no_model()
        top = parse_qs(environ.get("QUERY_STRING", "")).get("top", [DEFAULT_TOP])[0]
        if not (top.isascii() and top.isdigit() and 1 <= len(top) <= MAX_TOP_DIGITS and int(top) >= 1):
            return HTTPStatus.BAD_REQUEST, {"error": "top must be a number from 1"}
        body = environ["wsgi.input"].read(MAX_BODY_BYTES + 1)
        if len(body) > MAX_BODY_BYTES:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": f"the image is larger than {MAX_BODY_BYTES} bytes"}
        if not body:
            return HTTPStatus.BAD_REQUEST, {"error": "send the image's bytes as the request's body"}
        if not self._turn.acquire(timeout=DECODE_PATIENCE_SECONDS):
            return HTTPStatus.SERVICE_UNAVAILABLE, {"error": "busy with other images: try again"}
        try:
            picture = decode_picture(body, "the image", classifier.card.image_shape, max_pixels=MAX_PIXELS)
        except DataError as error:
            return HTTPStatus.BAD_REQUEST, {"error": str(error)}
        finally:
            self._turn.release()
        predictions = classifier.classify(picture.pixels[None], top=int(top))[0]
        return HTTPStatus.OK, {
            "predictions": [asdict(prediction) for prediction in predictions],
            "notices": [*picture.notices, *([notice] if (notice := self._model.notice) else [])],
            "model": {"run": classifier.card.run, "round_number": classifier.card.round_number, "precision": classifier.card.precision},
        }


class PredictionServer:
    """A listening endpoint, on threads of its own.

    Args:
        app: answers requests.
        host: to listen on.
        port: 0 takes a free one.

    Raises:
        SettingsError: the address can't be listened on.
    """

    def __init__(self, app: PredictionApp, *, host: str, port: int) -> None:
        # Our own socket: waitress leaves its own open where binding fails, and makes several for a name with several addresses.
        self._server = waitress.create_server(
            app,
            sockets=[bind(host, port)],
            threads=NUM_WORKERS,
            ident=None,
            connection_limit=MAX_CONNECTIONS,
            channel_timeout=IDLE_SECONDS,
            # waitress answers 413 beyond it, and reads no further.
            max_request_body_size=MAX_BODY_BYTES,
            clear_untrusted_proxy_headers=True,
        )
        self.port: int = int(self._server.effective_port)
        self._thread = threading.Thread(target=self._server.run, name="prediction-server", daemon=True)
        self._thread.start()
        logger.info("listening host=%s port=%d", host, self.port)

    def close(self) -> None:
        """Stop listening, and let what is being answered end."""
        self._server.task_dispatcher.shutdown(cancel_pending=True, timeout=STOP_SECONDS)
        # On the loop's own thread: sockets closed under a running select end it with an error.
        self._server.trigger.pull_trigger(self._close_sockets)
        self._thread.join(timeout=STOP_SECONDS)

    def _close_sockets(self) -> None:
        for channel in list(self._server.active_channels.values()):
            channel.handle_close()
        self._server.close()


def start_prediction_server(address: str, folder: Path, *, num_threads: int = 1) -> PredictionServer:
    """Serve the current model of a node's `models` folder, which may come later.

    Args:
        address: `host:port`, `[::1]:8080` for IPv6.
        folder: holds current.onnx.
        num_threads: of the engine.

    Raises:
        SettingsError: the address is wrong, or taken.
    """
    host, port = parse_address(address)
    return PredictionServer(PredictionApp(CurrentModel(folder / "current.onnx", num_threads=num_threads)), host=host, port=port)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address, the first that a name has.

    Raises:
        SettingsError: it is taken, or not this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise SettingsError(f"FEDMQ_SERVE: can't listen on {host} port {port}: {error.strerror or error}; choose another address") from None


def content_policy(page: bytes) -> str:
    """Return the Content-Security-Policy of the page: its own script alone, known by its hash, and no one else's anything."""
    script = page.split(b"<script>", 1)[1].split(b"</script>", 1)[0]
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _no_model() -> tuple[HTTPStatus, dict[str, Any]]:
    return HTTPStatus.SERVICE_UNAVAILABLE, {"error": "there is no model yet: it comes after the first round"}
