"""`flyte.init`: a Celery app with environments, or environments for the Celery app that you have.

Only documented hooks of Celery are used: task classes, bootsteps (as strings, so that a web process loads no worker
code), result backend classes, a router in `task_routes`, the `worker_init` signal and user options of `celery worker`.
Plain tasks, queues and workers of the same app are left as they are.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import weakref
from pathlib import Path
from typing import Any

from celery import Celery, signals

from .. import embedded
from ..context import current_run
from ..errors import InitializationError
from ..secret_sources import SecretProvider, set_provider
from ..settings import Settings
from ..task import Dispatcher, set_dispatcher
from ..urls import redacted
from . import backend as replies_backend
from . import local
from .dispatch import CeleryDispatcher
from .routing import route_environments

logger = logging.getLogger("flyte_celery")

#: Value of `broker` that asks for the bundled Redis of the project directory.
EMBEDDED = "embedded"

_installed: weakref.WeakKeyDictionary[Celery, CeleryDispatcher] = weakref.WeakKeyDictionary()


def init(
    app: Celery | None = None,
    *,
    broker: str | None = None,
    backend: str | None = None,
    main: str | None = None,
    secret_provider: SecretProvider | None = None,
    **settings: Any,
) -> Celery:
    """Make a Celery app that serves environments, or add environments to an existing one.

    Call it once, at the top level of the module that `celery -A` names.

    Args:
        app: Your Celery app. It keeps its configuration, tasks, queues and workers; environment tasks are added.
            Without it a new app is made.
        broker: URL of the broker. Default: `FLYTE_CELERY_BROKER_URL`, then `CELERY_BROKER_URL`, then, for a new app,
            the bundled Redis of this directory, which `"embedded"` asks for by name.
        backend: URL of the result backend. Default: `FLYTE_CELERY_RESULT_BACKEND`, `CELERY_RESULT_BACKEND`, then
            the broker when it is a Redis.
        main: Name of a new app. Default: the calling module's.
        secret_provider: A function that workers ask first for the secrets of environments: it takes a `flyte.Secret`
            and returns its value, str or bytes, or None for one that it does not know. Only workers call it.
        **settings: Celery settings of a new app, such as `timezone="Europe/Vienna"`.

    Returns:
        The app.

    Raises:
        TypeError: `app` is no Celery app, or `settings` are given for an existing one, or `secret_provider` is no
            function with `def`.
    """
    if app is not None and not isinstance(app, Celery):
        raise TypeError(f"init(app={app!r}) is no Celery app: pass the object that Celery(...) returned.")
    if app is not None and settings:
        names = ", ".join(sorted(settings))
        raise TypeError(f"init() got {names} with an existing app: set them on it, as in app.conf.update(...).")
    found = Settings.from_environ(
        os.environ,
        broker_url=None if broker == EMBEDDED else broker,
        result_backend=backend,
    )
    use_embedded = broker == EMBEDDED or (app is None and found.broker_url is None)
    broker_url = embedded.url(found.project_dir) if use_embedded else found.broker_url
    backend_url = found.result_backend or (broker_url if _is_redis(broker_url) else None)
    if app is None:
        app = Celery(main or _calling_module())
        app.conf.update(settings)
        app.conf.update(broker_url=broker_url, result_backend=backend_url)
    else:
        _configure_existing(app, broker_url if broker else None, backend_url if (broker or backend) else None)
    home = found.project_dir if use_embedded else None
    where = f"the bundled Redis of {home}" if home is not None else redacted(broker_url or "the app's own broker")
    logger.info("flyte_celery uses %s", where)
    set_provider(app, secret_provider)
    return install(app, home)


def install(app: Celery, embedded_home: Path | None = None) -> Celery:
    """Hang everything on a configured app; a second call changes nothing but the current dispatcher."""
    dispatcher = _installed.get(app)
    if dispatcher is None:
        dispatcher = _installed[app] = CeleryDispatcher(app, embedded_home)
        _hook_in(app, dispatcher)
    set_dispatcher(dispatcher)
    return app


def _hook_in(app: Any, dispatcher: CeleryDispatcher) -> None:
    replies_backend.install(app.loader)
    app.steps["worker"].add("flyte_celery.worker.steps:AutoscalerStep")
    app.steps["consumer"].add("flyte_celery.worker.steps:ReconnectionStep")
    _add_worker_options(app)
    app.on_after_configure.connect(route_environments, weak=False)
    if app.configured:
        route_environments(app)
    app.on_after_finalize.connect(dispatcher.register_all, weak=False)
    signals.worker_init.connect(_on_worker_init, weak=False)


def dispatcher_of(app: Celery) -> CeleryDispatcher:
    """The dispatcher that `init` gave to an app.

    Raises:
        InitializationError: The app was never given to `init`.
    """
    try:
        return _installed[app]
    except KeyError:
        raise InitializationError(
            "AppNotInitialized",
            "user",
            f"The Celery app {app.main!r} has no environments: call flyte_celery.init(app=app) where it is made.",
        ) from None


def _is_redis(url: str | None) -> bool:
    return url is not None and url.split("://", 1)[0].split("+")[0] in ("redis", "rediss")


def _configure_existing(app: Celery, broker_url: str | None, backend_url: str | None) -> None:
    if broker_url is not None:
        app.conf.update(broker_url=broker_url)
    if backend_url is not None:
        app.conf.update(result_backend=backend_url)


def _calling_module() -> str:
    frame = sys._getframe(2)
    name = str(frame.f_globals.get("__name__", "flyte_celery"))
    spec = frame.f_globals.get("__spec__")
    return spec.name if name == "__main__" and spec is not None else name


def _on_worker_init(sender: Any, **_: Any) -> None:
    dispatcher = _installed.get(sender.app)
    if dispatcher is None:
        return
    dispatcher.ensure_broker()
    sender.app.finalize()
    importlib.import_module("flyte_celery.worker.prepare").prepare(sender)


def _add_worker_options(app: Celery) -> None:
    if "celery.bin.celery" in sys.modules:  # a `celery` command: only there are options read, and click is loaded
        options: Any = app.user_options
        options["worker"].update(importlib.import_module("flyte_celery.cli.options").worker_options())


def default_dispatcher() -> Dispatcher | None:
    """Without `init`, a broker URL in the environment is enough to submit; tasks of a local run call tasks locally."""
    if Settings.from_environ(os.environ).broker_url is None:
        run = current_run.get()
        return local.LocalDispatcher() if run is not None and run.mode == "local" else None
    return _installed[init(main="flyte_celery")]
