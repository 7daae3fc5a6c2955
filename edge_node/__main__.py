"""An edge node's process: `python -m edge_node`, configured by `FEDMQ_` variables.

Exit status: 0 the run has finished or a signal came, 1 the broker refused this node, its disk failed or a thread died,
2 the settings are wrong.
"""

from __future__ import annotations

import os

from federation.ending import Ending


def main() -> None:
    """Run one node until its run ends, and end the process."""
    ending = Ending(status=0)
    # Only now: PyTorch takes seconds, on a small device tens of them, in which a signal may come.
    from edge_node.node_process import run_node

    ending.run(lambda: run_node(os.environ, ending))


if __name__ == "__main__":
    main()
