"""The comparison as Markdown: a row per measure, a column per contender, ratios to stock Celery in brackets."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

#: Whose figures the ratios divide by.
YARDSTICK = "stock"


class Row(NamedTuple):
    """One measure."""

    name: str
    title: str
    #: Which direction is the better one.
    better: str


def _both_ways(name: str, title: str, better: str, suffix: str = "") -> list[Row]:
    return [Row(f"{name}/{way}{suffix}", title.format(way), better) for way in ("batch", "single")]


ROWS = [
    *_both_ways("noop", "no-ops with results, {}, tasks/s", "more"),
    *_both_ways("publish", "publish, {}, calls/s", "more"),
    *_both_ways("publish", "publish, {}, client CPU, µs/call", "less", "/cpu"),
    *(
        row
        for role, title in {
            "client": "client",
            "parent": "worker parent",
            "children": "worker children",
            "redis": "Redis",
            "cpu": "sum",
        }.items()
        for row in _both_ways("cpu", f"CPU of no-ops, {{}}, {title}, µs/task", "less", f"/{role}")
    ),
    *_both_ways("commands", "Redis commands, {}, per task", "less"),
    Row("trip/p50", "round trip p50, ms", "less"),
    Row("trip/p99", "round trip p99, ms", "less"),
    Row("sleep/rate", "50 ms sleeps, tasks/s", "more"),
    Row("sleep/ideal", "50 ms sleeps, time over the ideal of the slots", "less"),
    Row("payload", "100 KB there and back, tasks/s", "more"),
    Row("family", "parent with 200 children (stock: group), ms", "less"),
    Row("idle/cpu", "idle worker, % of a core", "less"),
    Row("idle/commands", "idle worker, Redis commands/s", "less"),
]

#: Figures of one contender, each with a value per round.
Rounds = Mapping[str, Sequence[float]]


def table(figures: Mapping[str, Rounds]) -> str:
    """The medians of each contender; a dash where there is no figure."""
    names = list(figures)
    lines = [f"| | better | {' | '.join(names)} |", f"|:--|:--|{'--:|' * len(names)}"]
    for row in ROWS:
        base = _yardstick(figures.get(YARDSTICK, {}), row)
        cells = [_cell(figures[name].get(row.name), None if name == YARDSTICK else base) for name in names]
        lines.append(f"| {row.title} | {row.better} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _yardstick(stock: Rounds, row: Row) -> float | None:
    """Stock Celery's median; for batches that of its better way, since a group may be slower than its single calls."""
    names = {row.name, row.name.replace("/batch", "/single")}
    medians = [statistics.median(stock[name]) for name in names if name in stock]
    if not medians:
        return None
    return max(medians) if row.better == "more" else min(medians)


def _cell(values: Sequence[float] | None, base: float | None) -> str:
    if not values:
        return "-"
    median = statistics.median(values)
    text = f"{median:,.0f}" if median >= 1000 else f"{median:.3g}"
    return f"{text} ({median / base:.2f}x)" if base else text
