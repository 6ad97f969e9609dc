"""Markdown pages as stories that run: every code block of a page, in order, in one scratch directory.

What happens to a block follows from its language and, where that is not enough, from a comment on the line before it:

| block | what the test does |
|---|---|
| Python whose first line is `# name.py` | writes the file |
| other Python | runs it in an interpreter of its own |
| `sh` | runs each command, which must end with status 0 |
| `text`, `json` and others | nothing |
| `<!-- test: server until WORDS -->` before `sh` | starts the command, waits for the words, ends it with the page |
| `<!-- test: exits STATUS -->` before `sh` | the command must end with this status |
| `<!-- test: output -->` before `text` | the block before must have printed these lines; `...` stands for anything |
| `<!-- test: file NAME -->` | writes the file |
| `<!-- test: skip-because WORDS -->` | nothing; these are counted |
| `<!-- test: needs MODULE -->` anywhere | skips the page where the module is not installed |

The address `redis://localhost:6379/0` stands for the reader's Redis; the test's own takes its place. So does
`amqp://guest:guest@localhost:5672//` for RabbitMQ, whose page is played by `tests/rabbitmq`.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flyte_celery import embedded
from tests.helpers import processes

REPOSITORY = Path(__file__).resolve().parents[2]

#: Everything that readers are told to type.
PAGES = sorted(
    [
        REPOSITORY / "README.md",
        *REPOSITORY.glob("docs/**/*.md"),
        *REPOSITORY.glob("examples/**/README.md"),
    ]
)

#: Needs a RabbitMQ.
RABBITMQ_PAGE = REPOSITORY / "docs/howto/rabbitmq.md"

_READERS_REDIS = "redis://localhost:6379/0"
_READERS_RABBITMQ = "amqp://guest:guest@localhost:5672//"
_MARK = "FLYTE_CELERY_TEST_PAGE"
_SHELLS = frozenset({"sh", "bash", "console"})
_FENCE = re.compile(
    r"^(?:<!-- test: (?P<directive>[^\n]+?) -->\n)?(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_FILE_NAME = re.compile(r"# ([\w./-]+\.py)\n")

#: Seconds that one command of a page may take, and one server to say that it is there.
PATIENCE = 60.0


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    language: str
    text: str
    directive: str
    line: int

    @property
    def skip_reason(self) -> str | None:
        """Why it is not executed, None when it is."""
        word, _, reason = self.directive.partition(" ")
        return reason if word == "skip-because" else None


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page."""
    for match in _FENCE.finditer(text):
        indent = match["indent"]
        body = "".join(line.removeprefix(indent) for line in match["text"].splitlines(keepends=True))
        yield Block(match["language"], body, match["directive"] or "", text.count("\n", 0, match.start()) + 1)


@dataclass
class Story:
    """Plays the blocks of one page in a scratch directory.

    Args:
        folder: The directory; files of the example are in it already.
        redis_url: What takes the place of the reader's Redis.
        rabbitmq_url: What takes the place of the reader's RabbitMQ.
    """

    folder: Path
    redis_url: str
    rabbitmq_url: str = _READERS_RABBITMQ
    _output: str = ""
    _servers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def play(self, page: Path, text: str | None = None) -> None:
        """Run all blocks of the page, or of `text`; the message of a failure names the page and the block's line."""
        try:
            for block in blocks(page.read_text() if text is None else text):
                try:
                    self._play(block)
                except (AssertionError, subprocess.TimeoutExpired) as exc:
                    where = f"{page.relative_to(REPOSITORY)}:{block.line}"
                    raise AssertionError(f"{where}: {exc}\n{self._logs()}") from exc
        finally:
            self.end()

    def _play(self, block: Block) -> None:
        text = block.text.replace(_READERS_REDIS, self.redis_url).replace(_READERS_RABBITMQ, self.rabbitmq_url)
        word, _, rest = block.directive.partition(" ")
        if word == "skip-because":
            return
        if word == "file" or (block.language == "python" and (named := _FILE_NAME.match(text))):
            path = self.folder / (rest if word == "file" else named[1])  # type: ignore[index]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        elif word == "output":
            self._compare(text)
        elif word == "server":
            self._serve(text, rest.removeprefix("until "))
        elif block.language == "python":
            self._run([sys.executable, "-c", text], 0)
        elif block.language in _SHELLS:
            self._run(["bash", "-euo", "pipefail", "-c", text], int(rest) if word == "exits" else 0)

    def _run(self, command: list[str], status: int) -> None:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
        )
        self._output = done.stdout
        assert done.returncode == status, f"The block ended with status {done.returncode}:\n{done.stdout}"

    def _serve(self, text: str, words: str) -> None:
        log = self.folder / f"server-{len(self._servers) + 1}.log"
        with log.open("wb") as file:
            server = subprocess.Popen(
                shlex.split(text, comments=True),
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._servers.append(server)
        deadline = time.monotonic() + PATIENCE
        while words not in (said := log.read_text(errors="replace")):
            assert server.poll() is None, f"The server ended with status {server.returncode}:\n{said}"
            assert time.monotonic() < deadline, f"The server did not say {words!r} in {PATIENCE:g} s:\n{said}"
            time.sleep(0.02)

    def _compare(self, text: str) -> None:
        rest = self._output
        for line in text.splitlines():
            pattern = ".*".join(re.escape(part) for part in line.strip().split("..."))
            found = re.search(pattern, rest)
            assert found, f"The page shows {line!r}, and the block before printed:\n{self._output}"
            rest = rest[found.end() :]

    def _environment(self) -> dict[str, str]:
        here = str(Path(sys.executable).parent)
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(("FLYTE_CELERY_", "CELERY_"))},
            **{name: os.environ[name] for name in ("FLYTE_CELERY_TEST_RUN",) if name in os.environ},
            "PATH": os.pathsep.join([here, os.environ.get("PATH", "")]),
            "PYTHONPATH": os.pathsep.join([str(self.folder), str(REPOSITORY)]),
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "ignore",
            # The reader's host is nobody else's.
            "FLYTE_CELERY_DEVICE_LOCKS": str(self.folder / ".device-locks"),
            _MARK: self._mark,
        }

    def _logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n" + path.read_text(errors="replace")[-4000:]
            for path in sorted(self.folder.glob("server-*.log"))
        )

    def end(self) -> None:
        """End every server as Ctrl-C does, and then whatever is left."""
        for server in reversed(self._servers):
            if server.poll() is None:
                server.send_signal(signal.SIGINT)
        for server in self._servers:
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        embedded.stop(self.folder)
        processes.kill_carrying(_MARK, self._mark)
