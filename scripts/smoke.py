"""Does this image work on this machine: import everything, train one step, and (edge node) export and run ONNX.

Each Dockerfile runs it at the end of its build, and scripts/arm64-smoke under emulation: wheels that import on one
processor die with "Illegal instruction" on another. Prints one line; the exit status says the rest.
"""

import importlib
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

MODULES = {
    "edge-node": [
        "sklearn.metrics",
        "PIL.Image",
        "pooch",
        "paho.mqtt.client",
        "psutil",
        "onnx",
        "onnxruntime",
        "onnxsim",
        "cryptography",
        "waitress",
        "edge_node.node_process",
        "fedmq.device_cli",
    ],
    "aggregator": [
        "sklearn.metrics",
        "paho.mqtt.client",
        "influxdb_client",
        "onnx",
        "onnxruntime",
        "onnxsim",
        "cryptography",
        "zstandard",
        "matplotlib",
        "typer",
        "aggregator.run_process",
    ],
}
TOLERANCE = 1e-4
"""Greatest difference between PyTorch's and ONNX Runtime's logits, of size about 1; 6e-7 was seen on arm64."""


def main(image: str) -> int:
    """Exit with a sentence unless everything works."""
    started = time.monotonic()
    for module in MODULES[image]:
        importlib.import_module(module)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 28 * 28, 9))
    images, labels = torch.randn(16, 3, 28, 28), torch.arange(16) % 9
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    losses = [_train_step(model, optimizer, images, labels) for _ in range(2)]
    if not losses[1] < losses[0]:
        sys.exit(f"smoke: training does not train: losses {losses}")
    difference = _onnx_difference(model, images)
    if not difference < TOLERANCE:
        sys.exit(f"smoke: ONNX Runtime differs from PyTorch by {difference:g}")
    sys.stdout.write(
        f"smoke: image={image} machine={platform.machine()} torch={torch.__version__} "
        f"difference={difference:.1e} seconds={time.monotonic() - started:.1f}\n"
    )
    return 0


def _train_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor) -> float:
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return float(loss)


def _onnx_difference(model: torch.nn.Module, images: torch.Tensor) -> float:
    import onnx
    import onnxruntime
    import onnxsim

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model.onnx"
        torch.onnx.export(model.eval(), (images,), str(path), input_names=["images"], dynamo=False)
        simplified, agrees = onnxsim.simplify(onnx.load(str(path)))
        if not agrees:
            sys.exit("smoke: ONNX Simplifier changed the model")
        session = onnxruntime.InferenceSession(simplified.SerializeToString(), providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {"images": images.numpy()})
        return float(np.abs(logits - model(images).numpy()).max())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
