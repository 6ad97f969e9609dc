"""`flyte.init(app=...)` extends an app that has its own configuration, routes and task class, and changes none."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.helpers.projects import Project
from tests.helpers.workers import run_python

#: Settings of the user's own, as a module with a namespace; its catch-all route must not catch environments.
_SETTINGS = """
    import os
    CELERY_BROKER_URL = CELERY_RESULT_BACKEND = os.environ["TEST_BROKER"]
    CELERY_TASK_DEFAULT_QUEUE = "mine"
    CELERY_TASK_ROUTES = {"plain.*": {"queue": "plain"}, "*": {"queue": "everything"}}
    CELERY_TASK_TRACK_STARTED = True
"""

_MODULE = """
    import redis
    from celery import Celery, Task
    import flyte_celery as flyte

    class Counting(Task):
        '''A task class of the user's own, with a `__call__` that goes on to Celery's.'''

        def __call__(self, *args, **kwargs):
            with redis.Redis.from_url(self.app.conf.result_backend) as client:
                client.rpush("called", f"{self.name}[{self.request.id}]")
            return super().__call__(*args, **kwargs)

    app = Celery("NAME", task_cls=Counting)
    CONFIGURE

    env = flyte.TaskEnvironment("NAME", reusable=flyte.ReusePolicy(replicas=1, concurrency=CONCURRENCY))

    @env.task(bind=True)
    DEF double(self, x: int) -> list[str | int]:
        return [2 * x, self.request.id]

    @app.task(name="plain.add")
    def plain_add(x, y):
        return x + y
"""

_INIT = "flyte.init(app=app)"
_CONFIG = 'app.config_from_object("settings", namespace="CELERY")'

#: One app is configured before `init` and has async tasks, the other is configured after it and has sync tasks.
_APPS = {
    "before": {"CONFIGURE": f"{_CONFIG}; {_INIT}", "DEF": "async def", "CONCURRENCY": "10"},
    "after": {"CONFIGURE": f"{_INIT}; {_CONFIG}", "DEF": "def", "CONCURRENCY": "1"},
}

both = pytest.mark.parametrize("name", list(_APPS))


@pytest.fixture(scope="module")
def apps(shared: Project) -> Iterator[Project]:
    """A project with both apps, each with the worker of its environment."""
    shared.write(_SETTINGS, "settings")
    for name, parts in _APPS.items():
        source = _MODULE
        for place, text in {**parts, "NAME": name}.items():
            source = source.replace(place, text)
        shared.write(source, f"{name}_app")
        shared.start(name, app=f"{name}_app", env=variables(shared), ready=False)
    for worker in shared.workers:
        worker.wait_ready()
    yield shared


def variables(project: Project) -> dict[str, str]:
    """The broker in a variable that only the user's own settings read."""
    return {"TEST_BROKER": project.url, "FLYTE_CELERY_BROKER_URL": ""}


def ask(project: Project, name: str, source: str) -> object:
    """Evaluate an expression in a process that has imported the app."""
    printed = run_python(
        project.folder,
        f"import json; from {name}_app import *\nprint(json.dumps({source}))",
        variables(project),
    )
    return json.loads(printed)


@both
def test_configuration_stays_the_users_own(apps: Project, name: str) -> None:
    conf = ask(apps, name, "[app.conf.broker_url, app.conf.task_default_queue, app.conf.task_track_started]")
    assert conf == [apps.url, "mine", True]


@both
def test_routes_of_the_users_own_hold_for_plain_tasks_alone(apps: Project, name: str) -> None:
    routed = f"[app.amqp.router.route(dict(), n)['queue'].name for n in ('plain.add', 'what.ever', '{name}.double')]"
    assert ask(apps, name, routed) == ["plain", "everything", name]


@both
def test_routes_that_replace_ours_do_not_move_environment_tasks(apps: Project, name: str) -> None:
    source = "[setattr(app.conf, 'task_routes', {'*': 'everything'}), double.delay(4).get(timeout=20)[0]]"
    assert ask(apps, name, source) == [None, 8]


@both
def test_tasks_have_the_users_own_class_and_keep_their_request(apps: Project, name: str) -> None:
    """`Counting.__call__` calls Celery's, which would lose the request outside of a worker."""
    results = [apps.send(f"{name}.double", n) for n in range(20)]
    assert [result.get(timeout=20) for result in results] == [[2 * n, result.id] for n, result in enumerate(results)]
    with apps.celery_app.connection_for_read() as connection:
        called = {text.decode() for text in connection.default_channel.client.lrange("called", 0, -1)}
    assert {f"{name}.double[{result.id}]" for result in results} <= called


@both
def test_the_users_own_class_works_eagerly(apps: Project, name: str) -> None:
    assert ask(apps, name, "[double.apply((3,)).get()[0], plain_add.apply((1, 2)).get()]") == [6, 3]
