"""The device side of a run: trains on its own images and answers with updates."""
