"""The whole story on one machine: from zero, through a burst, back to zero. Ends by itself with a summary.

It starts `celery -A digits env up` in a directory of its own, so that it neither meets nor leaves anything. Sizes and
times can be given by environment variables, see `Sizes`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

#: Where the bundled Redis of this run lives, and the log of everything that runs.
HOME = Path(tempfile.mkdtemp(prefix="flyte-celery-demo-"))
LOG = HOME / "demo.log"

# A broker of its own, whatever this shell works with.
for variable in ("BROKER_URL", "RESULT_BACKEND"):
    os.environ.pop(f"CELERY_{variable}", None)
    os.environ.pop(f"FLYTE_CELERY_{variable}", None)
os.environ["FLYTE_CELERY_HOME"] = str(HOME)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")]))
os.environ["PYTHONWARNINGS"] = "ignore"  # Celery's word on running as root, in every worker

CELERY = [sys.executable, "-m", "celery", "-A", "digits"]


@dataclass(frozen=True)
class Sizes:
    """How much the demo does; `DEMO_BURST=100` in the environment sets `burst`, and so on."""

    burst: int = 2000
    """Images for `flyte.map`."""

    awaited: int = 200
    """Images awaited at once from asyncio."""

    warm: int = 50
    """Calls one after the other on warm replicas."""

    cold: int = 4
    """Calls of the twin without reuse."""

    scaledown_ttl: float = 3.0
    """Seconds until surplus replicas go; short, so that the demo shows at once what takes minutes in production."""

    idle_ttl: float = 6.0
    """Seconds without work until the environment rests at zero."""

    patience: float = 60.0
    """Seconds that each step may take."""

    @classmethod
    def from_environ(cls) -> Sizes:
        """The sizes, where the environment says something else than the defaults."""
        given = {each.name: os.environ.get(f"DEMO_{each.name.upper()}") for each in fields(cls)}
        kinds = {each.name: type(each.default) for each in fields(cls)}
        return cls(**{name: kinds[name](value) for name, value in given.items() if value})


class Failed(Exception):
    """The story did not happen."""


class Replicas(threading.Thread):
    """Asks the environment's worker ten times a second for its replicas, and shows each change."""

    def __init__(self, worker: str, show: Callable[[int, dict[str, Any]], None]) -> None:
        super().__init__(daemon=True)
        self.worker = worker
        self.show = show
        self.counts: list[int] = []
        self.numbers: set[int] = set()
        self.ended = threading.Event()

    def run(self) -> None:
        """Look until told to end."""
        while not self.ended.wait(0.1):
            for status in ask("env_status", [self.worker]):
                self._note(status)

    def _note(self, status: dict[str, Any]) -> None:
        serving = [replica["number"] for replica in status["replicas"] if replica["state"] in ("ready", "draining")]
        self.numbers.update(serving)
        if len(serving) != self.now:
            self.counts.append(len(serving))
            self.show(len(serving), status)

    @property
    def now(self) -> int | None:
        """Replicas at the last look."""
        return self.counts[-1] if self.counts else None

    def end(self) -> None:
        """Look no more."""
        self.ended.set()
        self.join()


def ask(command: str, workers: list[str]) -> list[dict[str, Any]]:
    """Ask workers by Celery's remote control; returns as soon as all have answered."""
    import digits

    replies = digits.app.control.broadcast(command, reply=True, destination=workers, limit=len(workers), timeout=1.0)
    return [answer for reply in replies or [] for answer in reply.values()]


class Demo:
    """One run: what is started, and what was measured."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.began = time.monotonic()
        self.replicas: Replicas | None = None
        self.interrupted = False
        with LOG.open("wb") as log:
            options = ["--flower-port=0", f"--scaledown-ttl={sizes.scaledown_ttl}", f"--idle-ttl={sizes.idle_ttl}"]
            self.up = subprocess.Popen(
                [*CELERY, "env", "up", *options],
                cwd=HERE,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def interrupt(self, signum: int, _: object) -> None:
        """Ctrl-C, or a signal like it; `wait_for` raises it again where what it interrupts swallows it."""
        self.interrupted = True
        raise KeyboardInterrupt

    def say(self, label: str, text: str) -> None:
        """Print a line with the time since the start."""
        print(f"{time.monotonic() - self.began:5.1f} s  {label:9} {text}", flush=True)

    def show(self, count: int, status: dict[str, Any]) -> None:
        """Print how many replicas there are now, and why."""
        bar = ("#" * count).ljust(status["maximum"], ".")
        self.say("replicas", f"[{bar}] {count}   {status['decision']}")

    def wait_for(self, what: str, look: Callable[[], Any]) -> Any:
        """Poll until something is there.

        Raises:
            Failed: It does not come, or `env up` has ended.
        """
        deadline = time.monotonic() + self.sizes.patience
        while not (found := look()):
            if self.interrupted:
                raise KeyboardInterrupt
            if self.up.poll() is not None:
                raise Failed(f"`env up` ended with status {self.up.returncode} while the demo waited for {what}.")
            if time.monotonic() > deadline:
                raise Failed(f"The demo waited {self.sizes.patience:g} s for {what}, in vain.")
            time.sleep(0.05)
        return found

    def tell(self) -> None:
        """The story, from zero to zero."""
        self.say("start", "celery -A digits env up: a Redis, a worker for each environment, and Flower")
        import burst
        import digits
        from celery.utils.nodenames import gethostname

        worker, twin = (f"{environment.name}@{gethostname()}" for environment in (digits.warm, digits.cold))
        self.wait_for("the bundled Redis", lambda: "Environments" in LOG.read_text())
        self.wait_for("the workers", lambda: len(ask("ping", [worker, twin])) == 2)
        self.wait_for(
            "both workers to import the application", lambda: LOG.read_text().count("application preloaded") == 2
        )
        flower = next(line.split()[-1] for line in LOG.read_text().splitlines() if line.startswith("Flower"))
        self.say("ready", f"nothing but the workers runs yet; Flower is at {flower}")
        replicas = self.replicas = Replicas(worker, self.show)
        replicas.start()
        self.wait_for("the environment at zero", lambda: replicas.now == 0)

        images, labels = burst.inputs(self.sizes.burst)
        self.say("zero", "one image: a replica starts, trains its model, answers")
        first = milliseconds(lambda: digits.classify.delay(images[0]).get(timeout=self.sizes.patience))
        self.say("warm", f"{self.sizes.warm} images, one after the other")
        warm = self._latency(digits.classify, images, self.sizes.warm)
        self.say("cold", f"{self.sizes.cold} images on the twin without reuse: a process and a training for each")
        cold = self._latency(digits.classify_cold, images, self.sizes.cold)
        self.say("burst", f"{self.sizes.burst} images with flyte.map")
        start = time.perf_counter()
        mapped = burst.right(burst.classify_all(images), labels)
        took = time.perf_counter() - start
        self.say("await", f"{self.sizes.awaited} images at once from asyncio code")
        images, labels = burst.inputs(self.sizes.awaited)
        awaited = burst.right(asyncio.run(burst.classify_awaiting(images)), labels)
        self.wait_for("the worker's page in Flower", lambda: page_has(f"{flower}/worker/{worker}", worker))
        self.say("quiet", f"no work: a replica that is not needed for {self.sizes.scaledown_ttl:g} s goes")
        self.wait_for("the environment back at zero", lambda: replicas.now == 0)
        replicas.end()

        calls = 1 + self.sizes.warm + self.sizes.burst + self.sizes.awaited
        loads = len(replicas.numbers)
        print(f"""
Summary
  accuracy            {mapped / self.sizes.burst:.1%} with flyte.map, {awaited / self.sizes.awaited:.1%} with await
  first call at zero  {first:.0f} ms: start a replica, train the model, answer
  warm call           {warm:.1f} ms (median of {self.sizes.warm})
  cold call           {cold:.0f} ms (median of {self.sizes.cold}), {cold / warm:.0f} times a warm one
  burst               {self.sizes.burst} images in {took:.2f} s, {self.sizes.burst / took:.0f} per second
  model trained       {loads} times for {calls} warm calls, {self.sizes.cold} times for {self.sizes.cold} cold ones
  replicas            {" -> ".join(map(str, replicas.counts))}
""")
        if min(mapped / self.sizes.burst, awaited / self.sizes.awaited) < 0.9:
            raise Failed("The answers are not those of a trained model: less than 90 % are right.")
        if max(replicas.counts) < 2:
            raise Failed("The environment did not scale: one replica served everything.")

    def _latency(self, task: Any, images: list[Any], calls: int) -> float:
        """Median in milliseconds of calls one after the other."""
        patience = self.sizes.patience
        return statistics.median(
            milliseconds(lambda image=image: task.delay(image).get(timeout=patience)) for image in images[:calls]
        )

    def end(self) -> None:
        """Stop everything that was started, and wait for it; Ctrl-C shortens it."""
        if self.replicas is not None:
            self.replicas.end()
        try:
            self.up.send_signal(signal.SIGINT)
            self.up.wait(timeout=self.sizes.patience)
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            self.up.kill()  # which ends its workers
            self.up.wait()
        subprocess.run([*CELERY, "env", "down"], cwd=HERE, stdout=subprocess.DEVNULL, check=False)


def milliseconds(call: Callable[[], Any]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000


def page_has(url: str, text: str) -> bool:
    """Whether a web page is there and shows a text."""
    try:
        with urllib.request.urlopen(url, timeout=5) as page:
            return text in page.read().decode()
    except OSError:
        return False


def main() -> int:
    """Run the demo and clean up behind it, however it ends."""
    demo = Demo(Sizes.from_environ())
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, demo.interrupt)
    status = 1
    try:
        demo.tell()
        status = 0
    except Failed as exc:
        print(f"\n{exc} The end of the log:\n{end_of(LOG)}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nInterrupted; stopping what was started.", file=sys.stderr)
        status = 130
    finally:
        demo.end()
        if status == 0:
            print(f"Everything is stopped and gone after {time.monotonic() - demo.began:.0f} s.")
        shutil.rmtree(HOME, ignore_errors=True)
    return status


def end_of(log: Path) -> str:
    """The last lines of a log, indented."""
    return "\n".join(f"    {line}" for line in log.read_text(errors="replace").splitlines()[-25:])


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    sys.exit(main())
