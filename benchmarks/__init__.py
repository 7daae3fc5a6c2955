"""Figures that must be measured: one module per benchmark, started by `scripts/bench NAME`."""
