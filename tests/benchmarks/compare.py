"""This project beside stock Celery and its peers: `python -m tests.benchmarks.compare [--rounds 3] [--only NAME ...]`.

Prints one Markdown table; README.md beside this file says how to read it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

import redis

from tests.benchmarks.contenders import NAMES
from tests.benchmarks.table import table
from tests.helpers import processes
from tests.helpers.redis_server import RedisServer

_ROOT = Path(__file__).parents[2]

#: Seconds that one contender may take for one part of one round.
_LIMIT = 900.0

#: Variable of the sessions and their workers, so that none outlives a session that was killed.
_MARK = "BENCH_RUN"


class SessionError(Exception):
    """A session failed; the text is the end of its output."""


def session(name: str, part: str, tasks: int) -> dict[str, Any]:
    """Run a part of a contender's measures in a process of its own.

    Raises:
        SessionError: It failed, or took longer than the limit.
    """
    command = [sys.executable, "-m", "tests.benchmarks.session", name, part, str(tasks)]
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=_LIMIT)
    except subprocess.TimeoutExpired:
        processes.kill_carrying(_MARK, os.environ[_MARK])  # its workers; this process was started without the variable
        raise SessionError(f"no end after {_LIMIT:g} s") from None
    if done.returncode:
        raise SessionError("\n".join(done.stderr.strip().splitlines()[-15:]) or f"status {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def installed(names: list[str]) -> dict[str, dict[str, Any]]:
    """What is known of each contender that can be imported; a line for each that cannot."""
    found = {}
    for name in names:
        try:
            found[name] = session(name, "versions", 0)
        except SessionError as error:
            say(f"{name} is left out: {str(error).splitlines()[-1]}")
    return found


def measure(names: list[str], rounds: int, tasks: int, client: redis.Redis) -> dict[str, dict[str, list[float]]]:
    """All figures of all rounds. A failed session costs its figures, and a message, and nothing else."""
    figures: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for turn in range(rounds):
        for name in names[:: -1 if turn % 2 else 1]:  # nobody is always the first on a fresh machine
            for part in ("publish", "work"):
                client.flushall()
                say(f"round {turn + 1} of {rounds}: {name}, {part}")
                try:
                    for row, value in session(name, part, tasks).items():
                        figures[name].setdefault(row, []).append(value)
                except SessionError as error:
                    say(f"{name}, {part} failed:\n{error}")
    return figures


def foot(contenders: dict[str, dict[str, Any]], rounds: int, tasks: int, server: str) -> str:
    """The machine and the versions."""
    cores = len(os.sched_getaffinity(0))
    lines = [
        f"Medians of {rounds} rounds of {tasks} tasks; in brackets the ratio to stock Celery's.",
        f"{cores} cores, {platform.machine()}, Python {platform.python_version()}, Redis {server}.",
        "",
    ]
    for name, known in contenders.items():
        ways, publishers = (", ".join(known[kind]) for kind in ("ways", "publishers"))
        lines.append(f"- {name}: {known['versions']}; {known['slots']} sleeps at once")
        lines.append(f"  - batch and single: {ways}; publish: {publishers}")
    return "\n".join(lines)


def say(text: str) -> None:
    """Progress, which is not part of the table."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.compare", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="times that everything is measured (default 3)")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), help="contenders (default all)")
    parser.add_argument(
        "--tasks", type=int, default=3000, help="no-ops per figure; others in proportion (default 3000)"
    )
    options = parser.parse_args()
    if options.rounds < 1 or options.tasks < 1:
        parser.error("--rounds and --tasks must be at least 1")
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        server.start()
        try:
            os.environ |= {"BENCH_BROKER": server.url(), "BENCH_REDIS_PID": str(server.pid), _MARK: uuid.uuid4().hex}
            contenders = installed(options.only)
            if not contenders:
                parser.error("no contender can be imported; `make bench` installs them")
            with redis.Redis.from_url(server.url()) as client:
                version = client.info("server")["redis_version"]
                figures = measure(list(contenders), options.rounds, options.tasks, client)
        finally:
            server.stop()
    print(f"{table(figures)}\n\n{foot(contenders, options.rounds, options.tasks, version)}")


if __name__ == "__main__":
    main()
