"""What a method or codec of one's own is written with; docs/extending.md shows both, whole."""

from __future__ import annotations

from federation.learning.algorithms import Algorithm, NodeState, Trained, Trainer, Update, Upload, mean
from federation.learning.codecs import Codec
from federation.learning.sets import Sets, TensorSet

__all__ = ["Algorithm", "Codec", "NodeState", "Sets", "TensorSet", "Trained", "Trainer", "Update", "Upload", "mean"]
