"""What waits for Redis is told in its order, as far as that answers."""

from __future__ import annotations

from flyte_celery.worker.untold import Untold


def test_what_redis_can_record_is_told_at_once() -> None:
    told: list[int] = []
    Untold(lambda: True).tell(lambda: told.append(1))
    assert told == [1]


def test_what_it_cannot_waits_in_its_order() -> None:
    answers = iter([False, True, True, True])
    told: list[int] = []
    untold = Untold(lambda: next(answers))
    for number in (1, 2, 3):  # Redis is back before the second one, which does not overtake the first
        untold.tell(lambda number=number: told.append(number))
    assert told == []
    untold.tell_all()
    assert told == [1, 2, 3]


def test_what_is_left_waits_on_when_redis_is_away_again() -> None:
    answers = iter([False, True, False, True])
    told: list[int] = []
    untold = Untold(lambda: next(answers))
    for number in (1, 2):
        untold.tell(lambda number=number: told.append(number))
    untold.tell_all()
    assert told == [1]
    untold.tell_all()
    assert told == [1, 2]


def test_one_that_cannot_be_told_is_told_once() -> None:
    """What is told may fail; the others are not told twice for it, and not less."""
    answers = iter([False, True, True])
    told: list[int] = []
    untold = Untold(lambda: next(answers))

    def fail() -> None:
        told.append(1)
        raise RuntimeError

    untold.tell(fail)
    untold.tell(lambda: told.append(2))
    for _ in range(2):
        try:
            untold.tell_all()
        except RuntimeError:
            continue
    assert told == [1, 2]
