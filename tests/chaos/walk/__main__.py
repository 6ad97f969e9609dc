"""`python -m tests.chaos.walk`: walk, and say what was broken, after which steps."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

from tests.chaos.walk.walk import walk


def main(arguments: list[str] | None = None) -> int:
    """Walk as the arguments say.

    Returns:
        The exit status: 1 when something was broken.
    """
    options = _parser().parse_args(arguments)
    seed = options.seed or f"{random.SystemRandom().randrange(10**6):06}"
    replay = f"python -m tests.chaos.walk --seed {seed} --minutes {options.minutes:g} --lease {options.lease:g}"
    print(f"seed {seed}; replay with: {replay}", flush=True)
    folder = Path(options.keep or tempfile.mkdtemp(prefix="walk-"))
    say = partial(print, flush=True)
    broken = walk(folder, seed, options.minutes, options.lease, options.patience, say, options.steps)
    if broken:
        print("\n".join(["", *(f"BROKEN {sentence}" for sentence in broken)]))
        print(f"seed {seed}; the steps are above, logs and records in {folder}; replay with: {replay}")
        return 1
    if options.keep is None:
        shutil.rmtree(folder, ignore_errors=True)
    print("Every invariant held.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.walk", description="A random walk of a fleet.")
    parser.add_argument("--seed", help="replays a walk; random without it")
    parser.add_argument("--minutes", type=float, default=3.0, help="how long (default %(default)s)")
    parser.add_argument("--steps", type=int, help="ends it sooner, after so many steps")
    parser.add_argument("--lease", type=float, default=3.0, help="seconds of a lease (default %(default)s)")
    parser.add_argument(
        "--patience", type=float, default=0.0, help="seconds on top of each promise about time, for a busy machine"
    )
    parser.add_argument("--keep", metavar="FOLDER", help="an empty folder for logs and records, which are kept")
    return parser


if __name__ == "__main__":
    sys.exit(main())
