"""What both sides agree on: wire, learning and strategies, without threads, clock or environment, one opt-out aside."""

import os

# ONNX Runtime's Linux wheels (1.31.1, seen) report their use to its maker under a number they give the device, and keep that
# in the home folder, unless this is set before they are imported. Nothing of a site leaves it unasked.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
