"""`python -m tests.chaos.walk`: walk, and say what was broken, after which steps."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

from tests.chaos import options
from tests.chaos.walk.walk import walk


def main(arguments: list[str] | None = None) -> int:
    """Walk as the arguments say.

    Returns:
        The exit status: 1 when something was broken.
    """
    given = _options(arguments)
    seed = given.seed
    replay = f"python -m tests.chaos.walk --seed {seed} --minutes {given.minutes:g} --lease {given.lease:g}"
    print(f"seed {seed}; replay with: {replay}", flush=True)
    folder = Path(given.keep or tempfile.mkdtemp(prefix="walk-"))
    say = partial(print, flush=True)
    broken = walk(folder, seed, given.minutes, given.lease, given.patience, say, given.steps)
    if broken:
        print("\n".join(["", *(f"BROKEN {sentence}" for sentence in broken)]))
        print(f"seed {seed}; the steps are above, logs and records in {folder}; replay with: {replay}")
        return 1
    if given.keep is None:
        shutil.rmtree(folder, ignore_errors=True)
    print("Every invariant held.")
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = options.parser("tests.chaos.walk", "A random walk of a fleet.")
    parser.add_argument("--minutes", type=float, default=3.0, help="how long (default %(default)s)")
    parser.add_argument("--steps", type=int, help="ends it sooner, after so many steps")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
