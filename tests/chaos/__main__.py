"""`python -m tests.chaos`: run cases, print the table, say what was broken."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.chaos import options, report
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.fleet import Fleet
from tests.chaos.run import Row, named, run_case

#: Faults of one mixed case.
MIXED = 6


def main(arguments: list[str] | None = None) -> int:
    """Run what the arguments say.

    Returns:
        The exit status: 1 when a promise was broken.
    """
    given = _options(arguments)
    seed = given.seed
    print(f"seed {seed}; replay one fault with: python -m tests.chaos --seed {seed} --faults 'NAME'", flush=True)
    rows = run(given.faults or [fault.name for fault in FAULTS] + ["mixed"] * given.mixed, given)
    print(f"\n{report.table(rows)}\n\nseed {seed}, lease {given.lease:g} s")
    sentences = list(report.broken(rows))
    print(
        "\n".join(["", *(f"BROKEN {sentence}" for sentence in sentences)]) if sentences else "Every promise was kept."
    )
    return 1 if sentences else 0


def run(faults: list[str], given: argparse.Namespace) -> list[Row]:
    """Run a case for each name, on one fleet."""
    cases = [(number, name, *_case(name, number, given.seed)) for number, name in enumerate(faults, 1)]
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as scratch:
        folder = Path(given.keep or scratch)
        fleet = Fleet(folder, given.lease, patience=given.patience)
        rows = []
        try:
            for _, _, title, mix in cases:
                row = run_case(fleet, title, mix, given.tasks, given.seed)
                print(report.table([row]).splitlines()[-1], f"{row.seconds:.0f} s", *report.broken([row]), flush=True)
                rows.append(row)
        finally:
            fleet.close()
    return rows


def _case(name: str, number: int, seed: str) -> tuple[str, list[Fault]]:
    if name != "mixed":
        fault = named(name)
        return name, [fault] * fault.times
    chance = random.Random(f"{seed} mixed {number}")
    mix = chance.sample([fault for fault in FAULTS if fault.mixes], MIXED)
    return f"mixed: {', '.join(fault.name for fault in mix)}", mix


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = options.parser("tests.chaos", "Faults under load.")
    parser.add_argument("--faults", nargs="+", metavar="NAME", help="names as in the report, or mixed; all without it")
    parser.add_argument("--tasks", type=int, default=2000, help="tasks of each case (default %(default)s)")
    parser.add_argument("--mixed", type=int, default=3, help="mixed cases after all others (default %(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
