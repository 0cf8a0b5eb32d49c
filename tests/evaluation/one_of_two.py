"""One of two processes: is stopped, goes on, and says what that took.

python tests/evaluation/one_of_two.py ADDRESS INDEX DIRECTORY
"""

import json
import sys
from pathlib import Path

import jax

from robustjax.evaluation import unfinished


def main(address: str, index: str, directory: str) -> None:
    """Each process has a disk of its own."""
    jax.distributed.initialize(address, 2, int(index))
    from test_unfinished import Killed, judge, outcomes  # makes arrays

    computed, timed = [], unfinished._timed
    unfinished._timed = lambda *given: (computed.append(1), timed(*given))[1]
    state, counts = Path(directory) / index, []
    for stop_at in (4, 5, 7, None):
        try:
            result, _ = judge(state, stop_at=stop_at)
        except Killed:
            result = None
        counts.append(len(computed))
        computed.clear()
    left = sorted(path.name for path in state.glob("*"))
    print(json.dumps([counts, outcomes(result), left]))


if __name__ == "__main__":
    main(*sys.argv[1:])
