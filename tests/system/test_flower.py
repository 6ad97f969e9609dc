"""Flower shows environments as it shows any worker, and its buttons move their bounds.

What a browser shows is tested in Chromium where there is one. The same facts are tested over Flower's HTTP API
everywhere.
"""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import browser
from tests.helpers.browser import Browser
from tests.helpers.projects import Project
from tests.helpers.waiting import wait_until

APP = """
    import asyncio, pathlib
    import flyte_celery as flyte

    app = flyte.init()
    shop = flyte.TaskEnvironment(name="shop", reusable=flyte.ReusePolicy(replicas=(1, 4), concurrency=1, idle_ttl=600))

    @shop.task
    async def price(article: str) -> int:
        return len(article)

    @shop.task
    async def weigh(article: str) -> int:
        return len(article)

    @shop.task
    async def basket(articles: list[str]) -> int:
        return sum(await asyncio.gather(*(weigh(article) for article in articles)))

    @shop.task
    async def wait_for(path: str) -> None:
        while not pathlib.Path(path).exists():
            await asyncio.sleep(0.02)
"""


@dataclass(frozen=True)
class Flower:
    """Flower and the environment's worker that it watches."""

    url: str
    worker: str
    project: Project

    def get(self, path: str, **query: object) -> Any:
        """Ask Flower's API."""
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
            return json.load(answer)

    def page(self, path: str) -> str:
        """A page as a browser gets it."""
        with urllib.request.urlopen(f"{self.url}{path}") as response:
            text: str = response.read().decode()
        return text

    def press(self, button: str, **query: object) -> str:
        """What one of the buttons on a worker's page sends; returns Flower's message."""
        url = f"{self.url}/api/worker/pool/{button}/{self.worker}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=10) as answer:
            return str(json.load(answer)["message"])

    def bounds(self) -> tuple[int, int]:
        """What `env status` says."""
        status = self.project.status("shop")
        return status["minimum"], status["maximum"]

    def set_bounds(self, lowest: int, highest: int) -> None:
        """Begin a test with these bounds, and as many replicas as the lower one."""
        self.project.ask("autoscale", "shop", min=lowest, max=highest)
        wait_until(lambda: self.bounds() == (lowest, highest), description="the bounds")
        wait_until(lambda: self.project.status("shop")["target"] == lowest, 15, "the number of replicas")

    def backlog(self, gate: Path) -> int:
        """Submit more than runs at once; returns how many wait in the queue until the file `gate` exists."""
        for _ in range(12):
            self.project.send("shop.wait_for", str(gate))
        wait_until(lambda: len(self.project.replicas("shop", "ready")) == 4, 20, "four replicas")
        # The worker claims what can run now, and what it can run soon.
        depths: list[int] = []

        def settled() -> bool:
            depths.append(self.project.depth("shop"))
            return len(depths) > 20 and len(set(depths[-20:])) == 1

        wait_until(settled, description="a queue that stays as it is")
        assert depths[-1] > 0
        return depths[-1]

    def open_gate(self, gate: Path) -> None:
        """Let every waiting task end."""
        gate.touch()
        wait_until(lambda: self.project.status("shop")["running"] == 0, 20, "the end of the backlog")


@pytest.fixture(scope="module")
def flower(shared: Project) -> Iterator[Flower]:
    """An environment's worker and Flower, which has seen three calls succeed."""
    shared.write(APP)
    shared.start("shop", "--task-events", "--scaledown-ttl", "1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared.start(
        f"--port={port}", "--address=127.0.0.1", env={"FLOWER_UNAUTHENTICATED_API": "true"},
        command="flower", ready=False,
    )  # fmt: skip
    flower = Flower(f"http://127.0.0.1:{port}", shared.status("shop")["hostname"], shared)

    def knows() -> bool:
        try:
            return flower.worker in flower.get("/api/workers", refresh="true")
        except OSError:
            return False

    shared.wait(knows, 30, "Flower's knowledge of the worker")
    for article in ("tea", "milk", "sugar"):
        shared.call("shop.price", article)
    yield flower


class TestOverHttp:
    """What Flower's pages are made of."""

    def test_the_environment_is_a_worker_with_its_queue_and_its_tasks(self, flower: Flower) -> None:
        worker = flower.get("/api/workers")[flower.worker]
        assert [queue["name"] for queue in worker["active_queues"]] == ["shop"]
        assert {"shop.price", "shop.wait_for"} <= {task.split()[0] for task in worker["registered"]}
        assert flower.get("/api/workers", status="true")[flower.worker] is True

    def test_its_pool_shows_replicas_and_the_autoscaler_its_reason(self, flower: Flower) -> None:
        flower.set_bounds(1, 4)
        pids = flower.project.wait_for_replicas("shop", 1)
        stats = flower.get("/api/workers", refresh="true", workername=flower.worker)[flower.worker]["stats"]
        assert stats["pool"]["environment"] == "shop"
        assert stats["pool"]["processes"] == pids
        assert (stats["autoscaler"]["min"], stats["autoscaler"]["max"]) == (1, 4)
        assert "replica" in stats["autoscaler"]["reason"]

    def test_tasks_are_listed_with_their_names_and_results(self, flower: Flower) -> None:
        def succeeded() -> list[str]:
            tasks = flower.get("/api/tasks", taskname="shop.price").values()
            return sorted(task["result"] for task in tasks if task["state"] == "SUCCESS")

        wait_until(lambda: len(succeeded()) == 3, description="three succeeded tasks")
        assert succeeded() == ["3", "4", "5"]

    def test_a_task_shows_its_parent_its_root_and_its_children(self, flower: Flower) -> None:
        parent = flower.project.send("shop.basket", ["tea", "milk"])
        assert parent.get(timeout=20) == 7

        def children() -> list[dict[str, Any]]:
            found = flower.get("/api/tasks", taskname="shop.weigh").values()
            return [task for task in found if task["root_id"] == parent.id and task["state"] == "SUCCESS"]

        wait_until(lambda: len(children()) == 2, description="two children")
        assert {task["parent_id"] for task in children()} == {parent.id}
        shown = wait_until(
            lambda: (task := flower.get(f"/api/task/info/{parent.id}"))["state"] == "SUCCESS" and task,
            description="the parent's end",
        )
        assert {task["uuid"] for task in children()} == set(shown["children"])
        page = flower.page(f"/task/{parent.id}")
        for task in children():
            assert task["uuid"] in page

    def test_grow_raises_the_minimum_at_once(self, flower: Flower) -> None:
        flower.set_bounds(1, 4)
        assert "Growing" in flower.press("grow", n=1)
        assert flower.bounds() == (2, 4)
        flower.project.wait_for_replicas("shop", 2)

    def test_shrink_lowers_the_maximum(self, flower: Flower) -> None:
        flower.set_bounds(2, 4)
        assert "Shrinking" in flower.press("shrink", n=1)
        assert flower.bounds() == (1, 1)

    def test_autoscale_sets_both(self, flower: Flower) -> None:
        flower.set_bounds(1, 4)
        assert "Autoscaling" in flower.press("autoscale", min=2, max=3)
        assert flower.bounds() == (2, 3)

    def test_what_cannot_be_is_refused_with_a_reason(self, flower: Flower) -> None:
        flower.set_bounds(1, 4)
        with pytest.raises(urllib.error.HTTPError) as refused:
            flower.press("shrink", n=99)
        assert refused.value.code == 403
        with refused.value:
            assert "cannot shrink by 99" in refused.value.read().decode()
        assert flower.bounds() == (1, 4)

    def test_the_broker_shows_the_depth_of_the_queue(self, flower: Flower, tmp_path: Path) -> None:
        flower.set_bounds(1, 4)
        waiting = flower.backlog(tmp_path / "gate")
        queues = flower.get("/api/queues/length")["active_queues"]
        assert {queue["name"]: queue["messages"] for queue in queues} == {"shop": waiting}
        flower.open_gate(tmp_path / "gate")


@pytest.mark.skipif(browser.missing() is not None, reason=browser.missing() or "")
class TestInABrowser:
    """What a person sees and clicks."""

    def test_the_workers_page_shows_the_environment_online(self, flower: Flower, window: Browser) -> None:
        window.open(f"{flower.url}/workers")
        window.wait_for_text(flower.worker)
        window.wait_for_text("Online workers 1")
        assert "Online" in window.run("return document.querySelector('#workers-table tbody').innerText")

    def test_the_tasks_page_shows_succeeded_tasks_with_names(self, flower: Flower, window: Browser) -> None:
        window.open(f"{flower.url}/tasks")
        window.wait_for_text("SUCCESS")
        rows = window.run("return [...document.querySelectorAll('#tasks-table tbody tr')].map(row => row.innerText)")
        assert rows
        assert all("shop." in row and "SUCCESS" in row for row in rows)
        number = next(iter(flower.get("/api/tasks", taskname="shop.price")))
        window.open(f"{flower.url}/task/{number}")
        window.wait_for_text("shop.price")
        window.wait_for_text(flower.worker)

    def test_the_buttons_on_its_page_move_the_bounds(self, flower: Flower, window: Browser) -> None:
        flower.set_bounds(1, 4)
        window.open(f"{flower.url}/worker/{flower.worker}")
        window.wait_for_text("Autoscaler options")
        window.fill("#pool-size", 1)
        window.click("#worker-pool-grow")
        wait_until(lambda: flower.bounds() == (2, 4), description="the effect of Grow")
        window.fill("#min-autoscale", 2)
        window.fill("#max-autoscale", 3)
        window.click("#worker-pool-autoscale")
        wait_until(lambda: flower.bounds() == (2, 3), description="the effect of Apply")
        window.click("#worker-pool-shrink")
        wait_until(lambda: flower.bounds() == (1, 1), description="the effect of Shrink")

    def test_the_broker_page_shows_the_depth_of_the_queue(
        self, flower: Flower, window: Browser, tmp_path: Path
    ) -> None:
        flower.set_bounds(1, 4)
        waiting = flower.backlog(tmp_path / "gate")
        window.open(f"{flower.url}/broker")
        window.wait_for_text(f"shop {waiting}")
        flower.open_gate(tmp_path / "gate")


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    """A browser's window."""
    window = Browser()
    yield window
    window.close()
