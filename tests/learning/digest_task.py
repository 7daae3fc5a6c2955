"""Prints the SHA-256 of one fixed task's outcome: `python -m tests.learning.digest_task`, for a comparison between processes."""

from __future__ import annotations

import sys
from hashlib import sha256

from federation.training import train
from tests.learning.small_tasks import digest_of, learnable_images, training_task


def outcome_digest() -> str:
    """Return the digest of what training the fixed task gives."""
    task = training_task(learnable_images(96), training={"local_epochs": 2}, proximal_mu=0.1)
    return sha256(digest_of(train(task).params)).hexdigest()


if __name__ == "__main__":
    sys.stdout.write(outcome_digest())
