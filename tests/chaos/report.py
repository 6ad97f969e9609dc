"""The report: a table in Markdown, and what was broken in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tests.chaos.run import Row

_HEAD = ("fault", "tasks", "lost", "twice, owner there", "again after a loss", "hit", "recovered", "slowest, s", "left")


def table(rows: Iterable[Row]) -> str:
    """One line per case."""
    lines = [_line(_HEAD), "|---|" + "---:|" * (len(_HEAD) - 1), *(_line(_cells(row)) for row in rows)]
    return "\n".join(lines)


def broken(rows: Iterable[Row]) -> Iterator[str]:
    """A sentence for each promise that was not kept."""
    for row in rows:
        for sentence in row.verdict.broken:
            yield f"{row.name}: {sentence}"


def _cells(row: Row) -> tuple[str, ...]:
    verdict = row.verdict
    slowest = "" if verdict.slowest is None else f"{verdict.slowest:.2f}"
    numbers = (verdict.tasks, len(verdict.lost), len(verdict.twice), verdict.again, verdict.hit, verdict.recovered)
    mark = " ✗" if verdict.broken else ""
    return (row.name + mark, *map(str, numbers), slowest, str(verdict.left))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
