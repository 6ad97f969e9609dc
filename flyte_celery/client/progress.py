"""The progress bar of `flyte.map` on a terminal.

A thread of its own draws it a few times a second from a counter that the map keeps anyway, so the map does not get
slower. click draws it, which comes with Celery and is imported by then.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator

import click

from ..context import current_run
from ..settings import Settings

#: Seconds before it appears: a map that is done by then shows none.
DELAY = 1.0

#: Seconds between two looks at the counter.
INTERVAL = 0.2

#: Most characters of its label, so that it fits into one line.
_LABEL = 40

#: Held by the map whose bar is on the terminal; the others show none meanwhile.
_terminal = threading.Lock()


@contextlib.contextmanager
def shown(label: str, total: Callable[[], int | None], done: Callable[[], int]) -> Iterator[None]:
    """Show how much of a map is done, for as long as a `with` block takes: when it takes a while, on a terminal.

    Args:
        label: What stands before the bar.
        total: How many inputs there are; None where nobody knows, and then there is no bar.
        done: How many of them are done. Any thread may call it.
    """
    if not _wanted() or not (number := total()):
        yield
        return
    over = threading.Event()
    drawing = (label, number, done, over)
    thread = threading.Thread(target=_draw, args=drawing, name="flyte-celery-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _wanted() -> bool:
    return (
        current_run.get() is None
        and sys.stderr is not None
        and sys.stderr.isatty()
        and os.environ.get("TERM") != "dumb"
        and Settings.from_environ(os.environ).progress
    )


def _draw(label: str, total: int, done: Callable[[], int], over: threading.Event) -> None:
    bar = click.progressbar(length=total, label=label[:_LABEL], show_pos=True, file=sys.stderr)
    if over.wait(DELAY) or not _terminal.acquire(blocking=False):
        return
    try:
        with bar:
            ended = False
            while not ended:
                ended = over.wait(INTERVAL)
                bar.update(done() - bar.pos)
    except (OSError, ValueError):  # the terminal is gone
        pass
    finally:
        _terminal.release()
