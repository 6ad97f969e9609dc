"""Options of `python -m tests.chaos` and of `python -m tests.chaos.walk` that mean the same for both."""

from __future__ import annotations

import argparse
import random


def parser(module: str, description: str) -> argparse.ArgumentParser:
    """A parser with these options, to which a command adds its own."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--seed", default=_random_seed(), help="replays a run; random without it")
    parser.add_argument("--lease", type=float, default=3.0, help="seconds of a lease (default %(default)s)")
    parser.add_argument(
        "--patience", type=float, default=0.0, help="seconds on top of each promise about time, for a busy machine"
    )
    parser.add_argument("--keep", metavar="FOLDER", help="an empty folder for logs and records, which are kept")
    return parser


def _random_seed() -> str:
    return f"{random.SystemRandom().randrange(10**6):06}"
