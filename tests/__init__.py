"""Tests of every room, run in random order; what a test needs from outside it asks for with `require`."""
