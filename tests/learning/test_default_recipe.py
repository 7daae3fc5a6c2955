"""The defaults stay the thesis's, bit for bit: no setting may change what a run gave that does not name it."""

from __future__ import annotations

import numpy as np
import pytest

from federation.training import train
from tests.learning.plain_recipe import train_plainly
from tests.learning.small_tasks import digest_of, learnable_images, training_task


@pytest.mark.parametrize("model_name", ["simple_cnn", "mnist_cnn"])
@pytest.mark.parametrize("proximal_mu", [0.0, 0.1])
def test_the_defaults_are_the_plain_recipe_bit_for_bit(model_name: str, proximal_mu: float) -> None:
    task = training_task(learnable_images(75), model_name=model_name, training={"local_epochs": 2}, proximal_mu=proximal_mu)
    trained, plain = train(task).params, train_plainly(task)
    for name in plain:
        np.testing.assert_array_equal(trained[name], plain[name])
    assert digest_of(trained) == digest_of(plain)
