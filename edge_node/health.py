"""`python -m edge_node.health`: does the node's loop still turn? Exit status 0 if so, 1 if not."""

from __future__ import annotations

import os
import sys
import time

from federation.heartbeat import describe_heartbeat

if __name__ == "__main__":
    problem = describe_heartbeat(os.environ, now=time.time())
    if problem:
        sys.stderr.write(f"{problem}\n")
    sys.exit(1 if problem else 0)
