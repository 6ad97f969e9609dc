"""Building and keeping virtual environments with the Python packages of images.

A virtual environment is kept in a folder that is named by everything that went into it, so that the same image is built
once. It holds the image's packages with what those depend on. Behind them on its path come the packages of the
interpreter that builds it, from which it has Celery, this package, the app's other requirements and what is installed
in development mode. What the worker itself runs on keeps its versions, by constraints for the installer.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import site
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import FrameType

from packaging.requirements import Requirement

from ..image import Image
from .wanted import Install, by_other_tools, installs

#: What the worker itself imports; these packages, and what they depend on, have the same versions everywhere.
_RUNS_ON = ("celery", "kombu", "redis", "hiredis", "pydantic", "greenlet", "packaging")

#: Written last: a folder without it is half made, and is made again.
_MARK = "built.json"

#: Lines of the installer that a failure shows.
_TAIL = 15

#: Changes when this module builds something else from the same image.
_FORMAT = 1


class CannotBuild(Exception):
    """A virtual environment cannot be built; the text says why, with the installer's last lines."""


def ensure(
    image: Image, folder: Path, environ: Mapping[str, str], say: Callable[[str], None] = lambda line: None
) -> Path | None:
    """Have a virtual environment with an image's packages; build it if there is none yet.

    Only one process builds it; others wait until it is there. What fails, or is ended, leaves nothing.

    Args:
        image: Its layers of Python packages are installed, nothing else of it.
        folder: Where virtual environments are kept.
        environ: Environment variables of the installer.
        say: Told about progress, line by line.

    Returns:
        Its interpreter. None: the image names no Python packages.

    Raises:
        CannotBuild: The installer failed, or the image needs another tool, another Python or a file that is missing.
    """
    wanted = _wanted(image)
    if not wanted:
        return None
    constraints = _constraints()
    home = folder / _digest(wanted, constraints)
    python = home / "bin" / "python"
    if _is_complete(home):
        return python
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _ignore_in_git(folder)
        with _lock(home.with_suffix(".lock"), say) as lock:
            if not _is_complete(home):
                _build(home, wanted, constraints, _Installer(python, environ, lock, say))
    except OSError as exc:
        raise CannotBuild(
            f"The virtual environment {home} cannot be made ({exc.strerror}): make room, or let FLYTE_CELERY_HOME name "
            "a directory that may be written to."
        ) from None
    return python


def _wanted(image: Image) -> list[Install]:
    if others := by_other_tools(image):
        raise CannotBuild(
            f"pip cannot install the image's {' and '.join(others)}: name the packages with "
            "with_pip_packages(...) or with_requirements(...)."
        )
    try:
        wanted = [install for install in installs(image) if install.requirements]
    except (OSError, ValueError) as exc:
        raise CannotBuild(
            f"The image's packages cannot be read ({exc}): correct the image, or put its file where the worker runs."
        ) from None
    if wanted and image.python_version != sys.version_info[:2]:
        version = "{}.{}".format(*image.python_version)
        raise CannotBuild(f"The image has Python {version}: start the worker with Python {version}.")
    return wanted


def _is_complete(home: Path) -> bool:
    return (home / _MARK).exists() and (home / "bin" / "python").exists()


def _build(home: Path, wanted: list[Install], constraints: list[str], installer: _Installer) -> None:
    shutil.rmtree(home, ignore_errors=True)
    began = time.monotonic()
    installer.say(f"Building the virtual environment {home} with {installer.name}")
    try:
        with installer.interruptible():
            installer.create(home)
            file = home / "constraints.txt"
            file.write_text("".join(f"{line}\n" for line in constraints))
            for install in wanted:
                installer.install(install, file)
            _see_base(home)
            content = {"requirements": [requirement for each in wanted for requirement in each.requirements]}
            (home / _MARK).write_text(json.dumps(content))
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise
    installer.say(f"Built in {time.monotonic() - began:.1f} s")


class _Installer:
    """uv where there is one, else venv and pip."""

    def __init__(self, python: Path, environ: Mapping[str, str], lock: int, say: Callable[[str], None]) -> None:
        self.say = say
        self._python = python
        self._lock = lock
        # A path for imports would let the installer find packages there, and leave them out.
        self._environ = {name: value for name, value in environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        self._uv: list[str] | None = None
        if (found := shutil.which("uv")) is not None:
            self._uv = [found]
        elif importlib.util.find_spec("uv") is not None:
            self._uv = [sys.executable, "-m", "uv"]
        self._has_pip = importlib.util.find_spec("pip") is not None
        self._process: subprocess.Popen[str] | None = None
        #: Which signal has asked to end.
        self._signal: int | None = None

    @property
    def name(self) -> str:
        """What installs, for people."""
        return "pip" if self._uv is None else "uv"

    def create(self, home: Path) -> None:
        """Make an empty virtual environment of the running interpreter."""
        if self._uv is not None:
            self._run([*self._uv, "venv", "--quiet", "--python", sys.executable, str(home)], {})
        else:
            # A pip of its own costs some seconds.
            self._run([sys.executable, "-m", "venv", *(["--without-pip"] if self._has_pip else []), str(home)], {})

    def install(self, install: Install, constraints: Path) -> None:
        """Install what one layer asks for."""
        if self._uv is not None:
            command = [*self._uv, "pip", "install", "--python", str(self._python)]
        else:
            python = str(self._python)
            pip = [sys.executable, "-m", "pip", "--python", python] if self._has_pip else [python, "-m", "pip"]
            command = [*pip, "install", "--no-input", "--disable-pip-version-check"]
        index: dict[str, str] = {}
        if install.options.index_url is not None:
            index |= dict.fromkeys(("PIP_INDEX_URL", "UV_INDEX_URL"), install.options.index_url)
        if install.options.extra_index_urls:
            urls = " ".join(install.options.extra_index_urls)
            index |= dict.fromkeys(("PIP_EXTRA_INDEX_URL", "UV_EXTRA_INDEX_URL"), urls)
        self._run([*command, "--constraint", str(constraints), *install.arguments()], index)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let SIGINT and SIGTERM end the installer, and only then raise: nothing goes on writing behind our back."""

        def end(signum: int, frame: FrameType | None) -> None:
            self._signal = signum
            self._kill()

        before = {signum: signal.signal(signum, end) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
            self._end_if_asked()
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _end_if_asked(self) -> None:
        if self._signal is not None:
            raise SystemExit(128 + self._signal)

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _run(self, command: list[str], environ: Mapping[str, str]) -> None:
        # The lock goes with the child: if this process is killed, nobody builds beside what is left of it.
        with subprocess.Popen(
            command,
            env={**self._environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            pass_fds=[self._lock],
            start_new_session=True,  # pip starts processes of its own, which are to end with it
        ) as process:
            assert process.stdout is not None
            self._process = process
            if self._signal is not None:  # it came while the process was being made
                self._kill()
            tail: deque[str] = deque(maxlen=_TAIL)
            for line in process.stdout:
                if text := line.rstrip():
                    tail.append(text)
                    self.say(text)
        self._process = None
        self._end_if_asked()
        if process.returncode:
            lines = "\n".join(f"  {line}" for line in tail)
            raise CannotBuild(
                f"{self.name} could not install the image's packages (status {process.returncode}):\n{lines}\n"
                "Correct the image's packages, or its index. What the worker itself runs on cannot have another "
                "version than where it was started."
            )


def _see_base(home: Path) -> None:
    """Let what is installed for the running interpreter be found behind the virtual environment's own packages.

    As directories of packages, so that what is installed there in development mode is found, too. Python's own
    `--system-site-packages` shows the packages of the system, also to a virtual environment that was made by another.
    """
    (packages,) = home.glob("lib/python*/site-packages")
    # Read after all others, so that nothing of the image comes behind the base.
    lines = "".join(f"import site; site.addsitedir({path!r})\n" for path in _base_directories())
    (packages / "zzz_flyte_celery_base.pth").write_text(lines)


def _base_directories() -> list[str]:
    user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return [path for path in (*site.getsitepackages(), *user) if os.path.isdir(path)]


def _constraints() -> list[str]:
    """The versions of everything that the worker itself runs on."""
    versions: dict[str, str] = {}
    names: deque[str] = deque(_RUNS_ON)
    while names:
        name = re.sub(r"[-_.]+", "-", names.popleft()).lower()
        if name in versions:
            continue
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # needed with an extra that is not used, or on another platform
        versions[name] = found.version
        for text in found.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                names.append(requirement.name)
    return [f"{name}=={version}" for name, version in sorted(versions.items())]


def _digest(wanted: list[Install], constraints: list[str]) -> str:
    """A name for everything that a virtual environment is made of."""
    content: list[object] = [_FORMAT, sys.version, sys.base_prefix, _base_directories(), constraints]
    for install in wanted:
        options = install.options
        content += [install.requirements, options.index_url, options.extra_index_urls, options.pre, options.extra_args]
        local = [Path(requirement) for requirement in install.requirements]
        for path in (path for path in (*local, install.file) if path is not None and path.is_file()):
            content.append(hashlib.sha256(path.read_bytes()).hexdigest())
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:20]


@contextlib.contextmanager
def _lock(path: Path, say: Callable[[str], None]) -> Iterator[int]:
    """Hold a lock against other processes, and the child processes of those that were killed."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another process builds this virtual environment; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _ignore_in_git(folder: Path) -> None:
    ignored = folder / ".gitignore"
    if not ignored.exists():
        ignored.write_text("*\n")
