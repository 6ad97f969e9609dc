"""A headless Chromium, driven over the WebDriver protocol of W3C by the standard library alone."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import urllib.error
import urllib.request
from typing import Any

from tests.helpers.waiting import wait_until


def missing() -> str | None:
    """What this machine lacks to run a browser, None when it lacks nothing."""
    programs = {"chromedriver": shutil.which("chromedriver"), "chromium": _chromium()}
    lacking = " and ".join(name for name, path in programs.items() if path is None)
    return f"{lacking} not on PATH; the same is tested over HTTP" if lacking else None


def _chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One window. `close` ends it with everything that it has started."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._driver = f"http://127.0.0.1:{probe.getsockname()[1]}"
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            ["chromedriver", f"--port={self._driver.rpartition(':')[2]}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(self._answers, 30, "chromedriver")
        # Its sandbox does not work for root and in most containers; only pages of this machine are shown.
        options = {
            "binary": _chromium(),
            "args": [
                "--headless=new",
                "--no-sandbox",
                "--disable-dev-shm-usage",
                "--disable-gpu",
                "--window-size=1400,1000",
                f"--user-data-dir={self._profile.name}",
            ],
        }
        capabilities = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}
        session = self._ask("POST", "/session", {"capabilities": capabilities})["sessionId"]
        self._session = f"/session/{session}"

    def open(self, url: str) -> None:
        """Go to a page and wait until it is loaded."""
        self._ask("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the page and return what it returns."""
        return self._ask("POST", f"{self._session}/execute/sync", {"script": script, "args": list(arguments)})

    def text(self) -> str:
        """What a reader sees of the page, as one line."""
        return " ".join(self.run("return document.body.innerText").split())

    def wait_for_text(self, text: str, timeout: float = 15.0) -> None:
        """Wait until the page shows a text; it may change by itself meanwhile."""
        try:
            wait_until(lambda: text in self.text(), timeout, f"{text!r} on the page")
        except AssertionError as error:
            raise AssertionError(f"{error} The page shows: {self.text()}") from None

    def fill(self, selector: str, value: object) -> None:
        """Replace what an input field holds by typing."""
        field = self._find(selector)
        self._ask("POST", f"{self._session}/element/{field}/clear", {})
        self._ask("POST", f"{self._session}/element/{field}/value", {"text": str(value)})

    def click(self, selector: str) -> None:
        """Click what a CSS selector finds, as a mouse does: it has to be visible."""
        self._ask("POST", f"{self._session}/element/{self._find(selector)}/click", {})

    def close(self) -> None:
        """Close the window and end the driver."""
        try:
            self._ask("DELETE", self._session)
        finally:
            self._process.terminate()
            self._process.wait()
            self._profile.cleanup()

    def _find(self, selector: str) -> str:
        found = self._ask("POST", f"{self._session}/element", {"using": "css selector", "value": selector})
        (element,) = found.values()
        return str(element)

    def _answers(self) -> bool:
        try:
            return bool(self._ask("GET", "/status")["ready"])
        except OSError:
            return False

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._driver + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            with error:
                problem = error.read().decode()
            raise AssertionError(f"The browser could not {method} {path} {body}: {problem}") from None
