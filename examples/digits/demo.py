"""The whole story on one machine: from zero, through a burst, back to zero. Ends by itself with a summary."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
os.environ.setdefault("FLYTE_CELERY_HOME", str(HERE))  # where the bundled Redis lives
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")]))
sys.path.insert(0, str(HERE))

import digits  # noqa: E402

import flyte_celery as flyte  # noqa: E402

#: Short times, so that the demo shows in half a minute what takes minutes in production.
TTLS = ["--scaledown-ttl", "4", "--idle-ttl", "8"]
FLOWER_PORT = int(os.environ.get("DEMO_FLOWER_PORT", "5555"))
BURST = int(os.environ.get("DEMO_BURST", "400"))
LOG = HERE / "demo.log"


class Watcher(threading.Thread):
    """Asks the worker a few times a second how many replicas it has."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.began = time.monotonic()
        self.seen: list[tuple[float, int, str]] = []
        self.most = 0
        self.stopped = threading.Event()

    def run(self) -> None:
        """Look until stopped; print each change."""
        while not self.stopped.wait(0.1):
            status = status_of("digits")
            if status is None:
                continue
            ready = sum(replica["state"] in ("ready", "draining") for replica in status["replicas"])
            self.most = max(self.most, ready)
            if not self.seen or self.seen[-1][1] != ready:
                self.seen.append((time.monotonic() - self.began, ready, status["decision"]))
                say(f"{ready} replica(s). {status['decision']}")

    def now(self) -> int | None:
        """Replicas at the last look."""
        return self.seen[-1][1] if self.seen else None


def status_of(environment: str) -> dict[str, Any] | None:
    """What the environment's worker says of itself, None when none answers."""
    replies = digits.app.control.broadcast("env_status", reply=True, timeout=0.5, pattern=f"{environment}@*", matcher="glob")
    return next((status for reply in replies or [] for status in reply.values() if "replicas" in status), None)


def say(text: str) -> None:
    """Print with the time since the start."""
    print(f"[{time.monotonic() - began:5.1f} s] {text}", flush=True)


def wait_for(condition: Any, what: str, timeout: float = 90.0) -> None:
    """Poll until a condition holds; give up with the end of the log."""
    deadline = time.monotonic() + timeout
    while not condition():
        if up.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"The demo gave up waiting for {what}. The end of {LOG}:\n{LOG.read_text()[-3000:]}")
        time.sleep(0.1)


def timed(call: Any) -> float:
    """Milliseconds that a call takes."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000


def flower_knows(worker: str) -> bool:
    """Whether Flower's page of a worker is there."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{FLOWER_PORT}/worker/{worker}", timeout=5) as page:
            return worker in page.read().decode()
    except OSError:
        return False


async def classify_concurrently(images: list[list[float]]) -> list[int]:
    """From asyncio code, as in a web handler: every call is awaited, none blocks the loop."""
    return await asyncio.gather(*(digits.classify.delay(image) for image in images))


def main() -> None:
    """Run the story."""
    images, labels = digits.test_images()
    say("starting `celery -A digits env up`: a Redis, a worker for each environment, and Flower")
    wait_for(lambda: status_of("digits") and status_of("digits-cold"), "the workers")
    watcher = Watcher()
    watcher.start()
    wait_for(lambda: watcher.now() == 0, "the environment to be at zero")

    say("one image while nothing runs: a replica starts, trains its model, classifies")
    first = timed(lambda: digits.classify.delay(images[0]).get(timeout=60))
    say("20 images one after the other, warm")
    warm = [timed(lambda image=image: digits.classify.delay(image).get(timeout=60)) for image in images[:20]]
    say("5 images on the twin without reuse: a process and a training for each")
    cold = [timed(lambda image=image: digits.classify_cold.delay(image).get(timeout=60)) for image in images[:5]]

    say(f"a burst of {BURST} images with flyte.map")
    start = time.perf_counter()
    inputs = [images[index % len(images)] for index in range(BURST)]
    answers = list(flyte.map(digits.classify, inputs))
    took = time.perf_counter() - start
    right = sum(answer == labels[index % len(labels)] for index, answer in enumerate(answers))
    say("50 images awaited at once from asyncio")
    right_async = sum(a == b for a, b in zip(asyncio.run(classify_concurrently(images[:50])), labels, strict=False))

    hostname = status_of("digits")["hostname"]  # type: ignore[index]
    wait_for(lambda: flower_knows(hostname), "Flower's page of the worker")
    say("quiet now: surplus replicas go after 4 s, the whole environment after 8 s")
    wait_for(lambda: watcher.now() == 0, "the environment to go back to zero")
    watcher.stopped.set()
    watcher.join()

    print(f"""
Summary
  accuracy               {right / len(answers):.1%} of {len(answers)} images with flyte.map, {right_async} of 50 with await
  first call, from zero  {first:8.1f} ms (start a replica, train the model, classify)
  warm call              {statistics.median(warm):8.1f} ms (median of {len(warm)})
  cold twin              {statistics.median(cold):8.1f} ms (median of {len(cold)}), {statistics.median(cold) / statistics.median(warm):.0f} times a warm call
  burst                  {len(answers)} images in {took:.2f} s, {len(answers) / took:.0f} per second
  replicas over time     {" -> ".join(f"{count} at {at:.1f} s" for at, count, _ in watcher.seen)}
  Flower                 http://127.0.0.1:{FLOWER_PORT}/worker/{hostname} (while it ran)
  log of everything      {LOG}
""")
    if right / len(answers) < 0.9 or watcher.most < 2:
        raise SystemExit("This is not what the demo should show: accuracy below 90 %, or no scaling.")


if __name__ == "__main__":
    began = time.monotonic()
    with LOG.open("wb") as log:
        command = [sys.executable, "-m", "celery", "-A", "digits", "env", "up", "--flower-port", str(FLOWER_PORT), *TTLS]
        up = subprocess.Popen(command, cwd=HERE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        main()
    finally:
        up.send_signal(signal.SIGINT)
        up.wait(timeout=60)
        subprocess.run([sys.executable, "-m", "celery", "-A", "digits", "env", "down"], cwd=HERE, check=False)
