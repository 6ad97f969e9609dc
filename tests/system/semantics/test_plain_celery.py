"""What is plain Celery in an app with environments stays as it was: tasks, settings, queues and workers."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import pytest
from celery import Celery

from tests.helpers.projects import PATIENCE, Project
from tests.helpers.waiting import wait_until
from tests.system.semantics import notes


def plain_queues(project: Project) -> set[str]:
    """The queues that the plain worker consumes."""
    replies = wait_until(
        lambda: project.celery_app.control.inspect(timeout=2.0, pattern="celery@*", limit=1).active_queues(), PATIENCE
    )
    (queues,) = replies.values()
    return {queue["name"] for queue in queues}


def cut_connections(project: Project) -> int:
    """Cut every connection of the workers to the project's database; returns how many there were."""
    with notes.client() as connection:
        number, mine = project.url.rpartition("/")[2], own_ports()
        others = [
            client
            for client in connection.client_list()
            if client["db"] == number and int(client["addr"].rpartition(":")[2]) not in mine
        ]
        for client in others:
            connection.client_kill_filter(_id=client["id"])
        return len(others)


def own_ports() -> set[int]:
    """The local TCP ports of this process's own connections."""
    with os.scandir("/proc/self/fd") as entries:
        sockets = {os.readlink(entry.path) for entry in entries if entry.is_symlink() and os.path.exists(entry.path)}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].partition(":")[2], 16) for row in rows if f"socket:[{row[9]}]" in sockets}


def test_plain_tasks_run_in_the_plain_worker(tasks: ModuleType, project: Project) -> None:
    assert tasks.plain_add.delay(1, 2).get(timeout=PATIENCE) == 3
    assert tasks.plain_pid.delay().get(timeout=PATIENCE) in project.workers[2].processes()
    assert tasks.pid.delay().get(timeout=PATIENCE) in project.workers[1].processes()


def test_settings_are_those_of_an_app_without_environments(tasks: ModuleType) -> None:
    changed = {"broker_url", "result_backend", "task_routes", "beat_schedule"}
    untouched, ours = Celery("other", set_as_current=False).conf, tasks.app.conf
    assert {name for name in untouched if untouched[name] != ours[name] and name.islower()} <= changed


@pytest.mark.parametrize(
    "attribute",
    ["acks_late", "reject_on_worker_lost", "queue", "typing", "ignore_result", "track_started", "rate_limit"],
)
def test_a_plain_task_has_the_attributes_of_a_plain_task(tasks: ModuleType, attribute: str) -> None:
    other = Celery("other", set_as_current=False).task(plain_queues, name="other")
    assert getattr(tasks.plain_add, attribute, None) == getattr(other, attribute, None)


def test_a_plain_worker_leaves_environments_alone(tasks: ModuleType, project: Project) -> None:
    """Neither at its start, nor after it has published to one, nor after its connection was lost."""
    assert plain_queues(project) == {"celery"}
    published = tasks.plain_submit.delay(4).get(timeout=PATIENCE)
    assert tasks.add.AsyncResult(published).get(timeout=PATIENCE) == 8
    tasks.unserved_add.delay(1, 1)
    assert tasks.plain_submit_unserved.delay(1).get(timeout=PATIENCE)
    assert plain_queues(project) == {"celery"}

    assert cut_connections(project) >= 3
    wait_until(lambda: plain_queues(project) == {"celery"}, PATIENCE)
    assert tasks.plain_add.delay(1, 2).get(timeout=PATIENCE) == 3
    assert project.depth("unserved") == 2


def test_environments_serve_on_after_their_connections_were_lost(tasks: ModuleType, project: Project) -> None:
    """Tasks that run meanwhile end once, and their results are stored."""
    replicas = project.pids("aio"), project.pids("snc")
    running = [tasks.hold.delay("cut"), tasks.hold_sync.delay("cut_sync")]
    wait_until(lambda: notes.notes("cut") and notes.notes("cut_sync"), PATIENCE)
    assert cut_connections(project) >= 3
    notes.open_gate("cut")
    notes.open_gate("cut_sync")
    assert [result.get(timeout=PATIENCE) for result in running] == ["cut", "cut_sync"]
    many = [tasks.hold.delay(f"cut-{n}") for n in range(20)]
    wait_until(lambda: all(notes.notes(f"cut-{n}") for n in range(20)), PATIENCE, "20 tasks at once, as before")
    for n in range(20):
        notes.open_gate(f"cut-{n}")
    assert [result.get(timeout=PATIENCE) for result in many] == [f"cut-{n}" for n in range(20)]
    assert tasks.add_sync.delay(1, 2).get(timeout=PATIENCE) == 3
    assert (project.pids("aio"), project.pids("snc")) == replicas
