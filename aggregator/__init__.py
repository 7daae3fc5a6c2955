"""The server side of a run: opens rounds, judges updates, keeps the global model."""
