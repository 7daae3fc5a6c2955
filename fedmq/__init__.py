"""The command line: wires the rooms together, holds no logic of its own."""
