"""Tests of broker/: who is let in, who may write and read what, what survives a kill."""
