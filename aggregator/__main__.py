"""The aggregator's process: `python -m aggregator`, configured by `FEDMQ_` variables and one run file.

Exit status: 0 the run has finished, 1 it could not go on or a thread died, 2 the settings are wrong, 3 a signal came before its end.
"""

from __future__ import annotations

import os

from federation.ending import Ending


def main() -> None:
    """Run the aggregator until its run ends, and end the process."""
    ending = Ending(status=3)
    # Only now: PyTorch takes seconds, in which a signal may come.
    from aggregator.run_process import lead_run

    ending.run(lambda: lead_run(os.environ, ending))


if __name__ == "__main__":
    main()
