"""The prediction page in a real browser: choose or drop an image, see its classes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from edge_node.prediction_server import start_prediction_server
from federation import models
from federation.evaluation import predict
from federation.inference.conversion import Converter
from federation.inference.graph import take_pixels, with_card
from federation.inference.model_file import replace_file
from tests.edge_node.browser import Browser
from tests.inference.networks import MNIST_CNN, card_of, digits, digits_params
from tests.requirements import require

ARTEFACT = Path(__file__).parents[2] / "out" / "test-artefacts" / "prediction-page.png"
"""The page as a person sees it, kept after the tests."""

ANSWER = "!document.getElementById('answer').hidden"

pytestmark = pytest.mark.browser


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(require("browser"), tmp_path / "profile") as page:
        yield page


def test_an_image_dropped_or_chosen_is_classified_as_evaluated(browser: Browser, tmp_path: Path) -> None:
    """Nothing is refused by the page's own policy, and what can't be read is said in red."""
    endpoint = start_prediction_server("127.0.0.1:0", tmp_path / "models")
    try:
        browser.open(f"http://127.0.0.1:{endpoint.port}/")
        browser.wait_for("document.getElementById('model').textContent.includes('first round')")
        browser.console.clear()  # the model's 503
        graph = take_pixels(Converter().convert(MNIST_CNN, (1, 8, 8), 10, digits_params()).model)
        replace_file(tmp_path / "models" / "current.onnx", with_card(graph, card_of(digits(), digits_params(), round_number=9)))
        module = models.build(MNIST_CNN, (1, 8, 8), 10, seed=0)
        models.load_parameters(module, digits_params())
        expected = predict(module, digits().test.images[:2]).argmax(axis=1)
        for index, act in enumerate((browser.choose_file, browser.drop_file)):
            path = tmp_path / f"digit-{index}.png"
            Image.fromarray(digits().test.images[index, 0]).save(path)
            act("#file" if index == 0 else "#drop", path)
            browser.wait_for(f"{ANSWER} && document.getElementById('message').textContent.startsWith('digit-{index}.png')")
            best = browser.evaluate("document.querySelector('#answer td').textContent")
            assert best == digits().class_names[expected[index]]
        assert browser.evaluate("document.querySelectorAll('#answer tr').length") == 3
        browser.wait_for("document.getElementById('model').textContent.startsWith('Run test, round 9')")
        browser.wait_for("!document.getElementById('preview').hidden")
        browser.screenshot(ARTEFACT)
        assert browser.console == []
        (tmp_path / "junk.png").write_bytes(b"no image")
        browser.choose_file("#file", tmp_path / "junk.png")
        browser.wait_for("document.getElementById('message').className === 'error'")
        assert "not a PNG" in browser.evaluate("document.getElementById('message').textContent")
        assert browser.evaluate("document.getElementById('answer').hidden") is True
    finally:
        endpoint.close()
    with Image.open(ARTEFACT) as picture:
        assert len(set(picture.convert("L").resize((64, 64)).tobytes())) > 3  # something is drawn
