"""A Django project: its settings configure Celery, its apps' tasks are found, its connections end with each task."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.projects import Project
from tests.helpers.workers import run_python

_SETTINGS = """
    import os
    from pathlib import Path
    SECRET_KEY = "of a test"
    INSTALLED_APPS = ["shop"]
    USE_TZ = True
    DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": Path(__file__).parent / "db.sqlite3",
                             "CONN_MAX_AGE": None}}
    CELERY_BROKER_URL = CELERY_RESULT_BACKEND = os.environ["TEST_BROKER"]
    CELERY_TASK_DEFAULT_QUEUE = "web"
"""

_CELERY = """
    import os
    from celery import Celery
    import flyte_celery as flyte

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "site_settings")
    app = flyte.init(app=Celery("site"))
    app.config_from_object("django.conf:settings", namespace="CELERY")
    app.autodiscover_tasks()
"""

_MODELS = """
    from django.db import models

    class Order(models.Model):
        item = models.CharField(max_length=20)
"""

_TASKS = """
    import os
    from celery import shared_task
    from django.db import connection
    import flyte_celery as flyte
    from shop.models import Order

    env = flyte.TaskEnvironment("shop", reusable=flyte.ReusePolicy(replicas=1))
    env_async = flyte.TaskEnvironment("shop-async", reusable=flyte.ReusePolicy(replicas=1, concurrency=5))

    @env.task
    def order(item: str) -> list[int | bool]:
        '''Store an order. Was the connection closed, does it work, and in which process?'''
        closed = connection.connection is None
        Order.objects.create(item=item)
        return [closed, Order.objects.filter(item=item).count(), os.getpid()]

    @env_async.task
    async def orders(item: str) -> int:
        return await Order.objects.filter(item=item).acount()

    @shared_task
    def plain(x):
        return x
"""


@pytest.fixture(scope="module")
def site(shared: Project) -> Iterator[Project]:
    """A Django project with a table, and the workers of its environments."""
    pytest.importorskip("django", reason="Django is not installed.")
    for name, source in {
        "site_settings": _SETTINGS,
        "site_celery": _CELERY,
        "shop.models": _MODELS,
        "shop.tasks": _TASKS,
    }.items():
        shared.write(source, name)
    variables = {"TEST_BROKER": shared.url, "FLYTE_CELERY_BROKER_URL": "", "DJANGO_SETTINGS_MODULE": "site_settings"}
    run_python(
        shared.folder,
        """
        import django
        django.setup()
        from django.db import connection
        from shop.models import Order
        with connection.schema_editor() as editor:
            editor.create_model(Order)
        """,
        variables,
    )
    for environment in ("shop", "shop-async"):
        shared.start(environment, app="site_celery", env=variables, ready=False)
    for worker in shared.workers:
        worker.wait_ready()
    yield shared


def test_a_task_uses_the_orm_and_its_connection_ends_with_it(site: Project) -> None:
    """`CONN_MAX_AGE` is endless here: without Celery's Django fixup the second task would meet an open connection."""
    results = [site.call("shop.order", "apple") for _ in range(3)]
    assert [(closed, count) for closed, count, _ in results] == [(True, 1), (True, 2), (True, 3)]
    assert len({pid for _, _, pid in results}) == 1


def test_an_async_task_uses_the_orm(site: Project) -> None:
    site.call("shop.order", "pear")
    assert site.call("shop-async.orders", "pear") == 1


def test_tasks_of_apps_are_found_and_settings_are_djangos(site: Project) -> None:
    printed = run_python(
        site.folder,
        """
        from site_celery import app
        app.loader.import_default_modules()
        print(app.conf.task_default_queue, sorted(name for name in app.tasks if name.startswith("shop")))
        """,
        {"TEST_BROKER": site.url, "FLYTE_CELERY_BROKER_URL": ""},
    )
    assert printed.strip() == "web ['shop-async.orders', 'shop.order', 'shop.tasks.plain']"
