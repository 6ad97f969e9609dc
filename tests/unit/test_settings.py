"""Settings: defaults, where they come from, what is refused, and what logs never show."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flyte_celery.settings import Settings
from flyte_celery.urls import redacted

DEFAULTS = {
    "broker_url": None,
    "code_version": None,
    "host_cores": None,
    "host_memory": None,
    "result_backend": None,
    "secrets_dir": Path("/run/secrets"),
    "flower_url": None,
    "grace": None,
    "startup_timeout": 600.0,
    "start_backoff": 1.0,
    "start_backoff_cap": 60.0,
    "max_start_failures": 3,
    "lookahead": 0.05,
    "lease": 15.0,
    "max_suspended": 1000,
    "max_ephemeral": None,
    "max_processes": 1000,
    "max_files": 65536,
    "max_age": None,
    "progress": True,
    "cancel_patience": 10.0,
    "cache_ttl": 2_592_000.0,
    "cache_result_bytes": 10_485_760,
    "cache_bytes": 268_435_456,
    "autoscale_interval": 1.0,
    "idle_ttl": None,
    "scaledown_ttl": None,
    "devices": None,
    "labels": None,
    "device_locks": None,
}


def test_every_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings.from_environ({})
    found = {each.name: getattr(settings, each.name) for each in fields(settings)}
    assert found == {**DEFAULTS, "project_dir": tmp_path}
    assert settings.lease_renewal == 5.0


def test_settings_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().grace = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "ours", "celerys"),
    [
        ("broker_url", "FLYTE_CELERY_BROKER_URL", "CELERY_BROKER_URL"),
        ("result_backend", "FLYTE_CELERY_RESULT_BACKEND", "CELERY_RESULT_BACKEND"),
    ],
)
def test_a_url_comes_from_the_argument_then_our_variable_then_celerys(field: str, ours: str, celerys: str) -> None:
    environ = {ours: "redis://ours", celerys: "redis://celerys"}

    def read(environ: dict[str, str], **arguments: Any) -> Any:
        return getattr(Settings.from_environ(environ, **arguments), field)

    assert read(environ, **{field: "redis://argument"}) == "redis://argument"
    assert read(environ, **{field: None}) == "redis://ours"
    assert read({**environ, ours: " "}) == "redis://celerys", "a blank variable is absent"
    assert read({}) is None


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("FLYTE_CELERY_HOME", "/srv/shop", "project_dir", Path("/srv/shop")),
        ("FLYTE_CELERY_GRACE", "0", "grace", 0.0),
        ("FLYTE_CELERY_STARTUP_TIMEOUT", "1.5", "startup_timeout", 1.5),
        ("FLYTE_CELERY_MAX_START_FAILURES", "7", "max_start_failures", 7),
        ("FLYTE_CELERY_IDLE_TTL", "2", "idle_ttl", 2.0),
        ("FLYTE_CELERY_PROGRESS", "0", "progress", False),
        ("FLYTE_CELERY_PROGRESS", "Yes", "progress", True),
    ],
)
def test_every_field_has_a_variable(variable: str, text: str, field: str, value: object) -> None:
    assert getattr(Settings.from_environ({variable: text}), field) == value


def test_a_variable_that_is_overruled_is_not_even_read() -> None:
    assert Settings.from_environ({"FLYTE_CELERY_GRACE": "soon"}, grace=3).grace == 3.0


def test_times_are_kept_as_seconds_and_paths_as_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")
    assert Settings(grace=timedelta(minutes=1)).grace == 60.0  # type: ignore[arg-type]
    assert Settings(project_dir=Path("shop")).project_dir == tmp_path / "shop"
    assert Settings(project_dir=Path("~/shop")).project_dir == Path("/home/ada/shop")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"grace": -1}, ValueError, "grace=-1 is out of range: give finite seconds, 0 or more."),
        ({"grace": float("inf")}, ValueError, "grace=inf is out of range: give finite seconds, 0 or more."),
        ({"lease": 0}, ValueError, "lease=0 is out of range: give finite seconds, more than 0."),
        ({"grace": "25"}, TypeError, "grace='25' is a str: give seconds as a number, or a timedelta."),
        ({"grace": True}, TypeError, "grace=True is a bool: give seconds as a number, or a timedelta."),
        ({"max_start_failures": 0}, ValueError, "max_start_failures=0 is too small: give at least 1."),
        ({"max_start_failures": 2.0}, TypeError, "max_start_failures=2.0 is a float: give a whole number."),
        (
            {"start_backoff": 5, "start_backoff_cap": 2},
            ValueError,
            "start_backoff_cap=2 is below start_backoff=5: raise the cap or lower the first back-off.",
        ),
        (
            {"broker_url": "localhost"},
            ValueError,
            "broker_url='localhost' is no URL: give one such as 'redis://localhost:6379/0'.",
        ),
        (
            {"broker_url": ["redis://a"]},
            TypeError,
            "broker_url is a list: give one URL as text, several joined by ';'.",
        ),
        ({"result_backend": ""}, ValueError, "result_backend is empty: give a URL, or None for the default."),
        ({"progress": "no"}, TypeError, "progress='no' is a str: give True or False."),
        ({"project_dir": 7}, TypeError, "project_dir=7 is a int: give a path."),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        Settings(**arguments)
    assert str(caught.value) == message


def test_an_unknown_setting_is_named_with_the_known_ones() -> None:
    with pytest.raises(TypeError, match=r"'gracee' is not a setting: give one of autoscale_interval, .*grace, "):
        Settings.from_environ({}, gracee=1)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"FLYTE_CELERY_GRACE": "soon"},
            "FLYTE_CELERY_GRACE='soon' is not a number of seconds: correct or remove the variable.",
        ),
        (
            {"FLYTE_CELERY_MAX_START_FAILURES": "2.5"},
            "FLYTE_CELERY_MAX_START_FAILURES='2.5' is not a whole number: correct or remove the variable.",
        ),
        (
            {"FLYTE_CELERY_PROGRESS": "maybe"},
            "FLYTE_CELERY_PROGRESS='maybe' is not 1 or 0: correct or remove the variable.",
        ),
        (
            {"FLYTE_CELERY_LEASE": "-1"},
            "lease=-1 is out of range: give finite seconds, more than 0. "
            "It comes from the environment variable FLYTE_CELERY_LEASE.",
        ),
        (
            {"CELERY_BROKER_URL": "localhost"},
            "broker_url='localhost' is no URL: give one such as 'redis://localhost:6379/0'. "
            "It comes from the environment variable CELERY_BROKER_URL.",
        ),
    ],
)
def test_a_bad_variable_is_named(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Settings.from_environ(environ)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:s3cret@localhost:6379/0", "redis://:**@localhost:6379/0"),
        ("rediss://ada:s3cret@host/1?ssl_cert_reqs=required", "rediss://ada:**@host/1?ssl_cert_reqs=required"),
        ("amqp://guest@host//", "amqp://guest@host//"),
        ("redis://:s3/c?r@t@host/0", "redis://:**@host/0"),
        ("redis://:s3@c?r@t@host/0", "redis://:**@host/0"),
        ("redis://:s3cret@host/0?password=s3@cret", "redis://:**@host/0?password=**"),
        ("guest:s3cret@host//", "guest:**@host//"),
        ("redis://host/0?name=a@b", "redis://host/0?name=a@b"),
        ("redis://:s3c?ret@host/0", "redis://:**@host/0"),
        ("redis://:s3;cret@host/0", "redis://:**@host/0"),
        ("sentinel://:s3cret@a:1;sentinel://:s3cret@b:2", "sentinel://:**@a:1;sentinel://:**@b:2"),
        ("redis+socket:///run/r.sock?virtual_host=0", "redis+socket:///run/r.sock?virtual_host=0"),
        ("unix:///run/r.sock?db=0&password=s3cret", "unix:///run/r.sock?db=0&password=**"),
        ("redis://host/0?Auth_Token=s3cret&db=1", "redis://host/0?Auth_Token=**&db=1"),
        ("disabled", "disabled"),
        ("", ""),
    ],
)
def test_passwords_are_never_shown(url: str, shown: str) -> None:
    assert redacted(url) == shown


def test_the_repr_of_settings_shows_no_url() -> None:
    settings = Settings(broker_url="redis://:s3cret@host/0", result_backend="redis://:s3cret@host/1")
    assert "s3cret" not in repr(settings)
    assert "lease=15.0" in repr(settings)
