"""App code: a burst of images, first with `flyte.map`, then awaited from asyncio.

    python burst.py [IMAGES]

It needs workers: `celery -A digits env up` in another terminal.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from itertools import cycle, islice

import digits

import flyte_celery as flyte

Image = list[float]


def classify_all(images: Sequence[Image]) -> list[int]:
    """From plain code: submit everything, take the answers in order."""
    return list(flyte.map(digits.classify, images, return_exceptions=False))


async def classify_awaiting(images: Sequence[Image]) -> list[int]:
    """From asyncio code, as in a web handler: each call is awaited, and none blocks the loop."""
    return await asyncio.gather(*(digits.classify.delay(image) for image in images))


def inputs(count: int) -> tuple[list[Image], list[int]]:
    """So many images with their digits; after the last unseen image it begins again with the first."""
    images, labels = digits.unseen()
    return list(islice(cycle(images), count)), list(islice(cycle(labels), count))


def right(answers: Sequence[int], labels: Sequence[int]) -> int:
    """How many answers are the labels."""
    return sum(answer == label for answer, label in zip(answers, labels, strict=True))


def main(count: int) -> None:
    """Classify so many images in both ways, and say how it went."""
    images, labels = inputs(count)
    for way, classify in (
        ("flyte.map", classify_all),
        ("await", lambda images: asyncio.run(classify_awaiting(images))),
    ):
        start = time.perf_counter()
        answers = classify(images)
        took = time.perf_counter() - start
        print(f"{way:10} {count} images in {took:.2f} s, {right(answers, labels) / count:.1%} right", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
