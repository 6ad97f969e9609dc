"""The book that tasks keep in files, as the driver reads it again and again."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.recorder import Mark, Reader


def write(path: Path, *lines: str) -> None:
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def test_each_line_is_read_once_and_in_the_order_of_time(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    assert reader.marks() == []
    write(tmp_path / "7", "a start 7 w 1.0", "a finish 7 w 3.0")
    first = [Mark("a", "start", 7, "w", 1.0), Mark("a", "finish", 7, "w", 3.0)]
    assert reader.marks() == first
    write(tmp_path / "8", "b start 8 w 2.0")
    write(tmp_path / "7", "c start 7 w 4.0")
    both = [first[0], Mark("b", "start", 8, "w", 2.0), first[1], Mark("c", "start", 7, "w", 4.0)]
    assert reader.marks() == both
    assert reader.marks() == both


def test_what_is_forgotten_is_left_out(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    write(tmp_path / "7", "a start 7 w 1.0")
    reader.forget()
    write(tmp_path / "7", "b start 7 w 2.0")
    assert reader.marks() == [Mark("b", "start", 7, "w", 2.0)]


def test_a_line_that_is_half_written_comes_when_it_is_whole(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    with (tmp_path / "7").open("a", buffering=1) as file:
        file.write("a start 7 w 1.0\nb sta")
        file.flush()
        assert reader.marks() == [Mark("a", "start", 7, "w", 1.0)]
        file.write("rt 7 w 2.0\n")
    assert reader.marks()[1:] == [Mark("b", "start", 7, "w", 2.0)]
