"""Python imports this module of its path at every start, before anything else."""

from tests.faults.instrument import install

install()
