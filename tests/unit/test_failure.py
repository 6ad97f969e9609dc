"""What Flyte's face makes of a failure, whatever the user's exception has for attributes."""

from __future__ import annotations

import enum
from typing import Any

import pytest

from flyte_celery import errors
from flyte_celery.client.dispatch import failure
from flyte_celery.errors import BaseRuntimeError, CustomError, RuntimeSystemError, RuntimeUserError


class WithCode(Exception):
    code = 404


class WithKind(Exception):
    kind = "network"


class WithSystemKind(Exception):
    kind = "system"


class WithEnum(Exception):
    class kind(enum.Enum):
        A = 1


class WithMethod(Exception):
    def code(self) -> int:
        return 5


class WithFamousCode(Exception):
    code = "OOM-retry"


class WithNumberForMessage(Exception):
    root_cause_message = 7


class Dynamic(Exception):
    def __getattr__(self, name: str) -> str:
        return f"any {name}"


class Hostile(Exception):
    def __getattr__(self, name: str) -> str:
        raise RuntimeError("no attributes here")


class Unfinished(RuntimeUserError):
    def __init__(self) -> None:
        pass


def failed(exc: Any) -> BaseRuntimeError:
    return failure({"status": "FAILURE", "result": exc, "traceback": None})


@pytest.mark.parametrize(
    "cls",
    [
        WithCode,
        WithKind,
        WithSystemKind,
        WithEnum,
        WithMethod,
        WithFamousCode,
        WithNumberForMessage,
        Dynamic,
        Hostile,
    ],
)
def test_a_users_attributes_are_the_users(cls: type[Exception]) -> None:
    error = failed(cls("what happened"))
    assert (error.code, error.kind, str(error)) == (cls.__name__, "user", "what happened")
    assert isinstance(error, RuntimeUserError)
    assert not isinstance(error, errors.OOMError)


def test_errors_of_ours_say_who_failed_and_how() -> None:
    assert (failed(CustomError("MINE", "m")).code, failed(CustomError("MINE", "m")).kind) == ("MINE", "user")
    assert isinstance(failed(RuntimeSystemError("SYS", "m")), RuntimeSystemError)
    assert isinstance(failed(errors.OOMError("OOMKilled", "m")), errors.OOMError)


def test_an_error_of_ours_that_is_half_made() -> None:
    error = failed(Unfinished())
    assert (error.code, error.kind) == ("Unfinished", "user")


def test_what_is_no_exception_is_described() -> None:
    assert str(failed({"pid": 1})) == "{'pid': 1}"
