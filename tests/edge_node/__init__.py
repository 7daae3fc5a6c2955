"""The device's own model and its prediction endpoint."""
