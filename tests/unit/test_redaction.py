"""What counts as a secret in a text, and how exceptions and log records lose theirs."""

from __future__ import annotations

import base64
import json
import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from celery.exceptions import Retry

from flyte_celery import redaction
from flyte_celery.errors import RuntimeUserError
from flyte_celery.redaction import MARK, Redactor

SECRET = 'p@ss/"wörd"+\\1'
PEM = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\nBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj\n-----END KEY-----"

redactor = Redactor([SECRET, PEM])


@pytest.mark.parametrize(
    "shown",
    [
        SECRET,
        repr(SECRET)[1:-1],
        json.dumps(SECRET),
        json.dumps(SECRET, ensure_ascii=False),
        quote(SECRET),
        quote(SECRET, safe=""),
        quote_plus(SECRET),
        SECRET.encode().hex(),
        "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC",
        PEM,
        repr(PEM),
    ],
)
def test_every_form_of_a_secret_is_found(shown: str) -> None:
    clean = redactor.text(f"before {shown} behind")
    assert clean.startswith("before ")
    assert clean.endswith(" behind")
    assert MARK in clean
    assert len(clean) < len("before  behind") + 8


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("before", ["", "u", "us", "user:"])
@pytest.mark.parametrize("behind", ["", "x", "xy", ":xyz"])
def test_it_is_found_inside_of_base64_of_a_longer_text(
    encode: Callable[[bytes], bytes], before: str, behind: str
) -> None:
    """As in the header of basic authentication."""
    shown = encode(f"{before}{SECRET}{behind}".encode()).decode()
    assert len(redactor.text(shown)) < len(shown) - len(SECRET)


@pytest.mark.parametrize("text", ["", "nothing", "p@ss", "BEGIN", "KEY-----"])
def test_other_text_stays(text: str) -> None:
    assert redactor.text(text) is text


@pytest.mark.parametrize("value", ["", "a", "1234567"])
def test_a_short_secret_is_left_alone(value: str) -> None:
    """Half of a log would be stars."""
    assert not Redactor([value])
    assert Redactor([value]).text("1234567 a") == "1234567 a"


def test_values_change_only_where_there_is_something_to_hide() -> None:
    plain = {"a": [1, ("b", b"c")], "d": {"e"}}
    assert redactor.value(plain) is plain
    assert redactor.value({"a": [SECRET, (1, SECRET.encode())], SECRET: {SECRET}}) == {
        "a": [MARK, (1, MARK.encode())],
        MARK: {MARK},
    }


class Custom(Exception):
    """Keeps what it was told, and shows it."""

    def __init__(self, url: str, detail: Any = None) -> None:
        super().__init__(url)
        self.url = url
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.url} {self.detail}"


class Opaque:
    """Holds a text out of sight."""

    def __init__(self, text: str) -> None:
        self._text = text


class Slotted(Exception):
    """Shows what cannot be changed."""

    def __str__(self) -> str:
        return f"always {SECRET}"


class Unreadable(Exception):
    """Cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError


def chained() -> Exception:
    try:
        try:
            raise KeyError(SECRET)
        except KeyError as exc:
            raise ValueError(f"bad {SECRET}") from exc
    except ValueError as exc:
        exc.add_note(f"seen {SECRET}")
        return exc


def file_not_found() -> Exception:
    return FileNotFoundError(2, "No such file", f"/srv/{SECRET}")


FAILURES: dict[str, Callable[[], BaseException]] = {
    "message": lambda: ValueError(f"bad {SECRET}"),
    "encoded": lambda: ValueError(quote(SECRET, safe="")),
    "bytes": lambda: ValueError(SECRET.encode()),
    "attributes": lambda: Custom(SECRET, {"a": [SECRET]}),
    "hidden attribute": lambda: Custom("x", Opaque(SECRET)),
    "file name": file_not_found,
    "chain and note": chained,
    "unchangeable": Slotted,
    "unreadable": lambda: Unreadable(SECRET),
    "group": lambda: ExceptionGroup("g", [ValueError(SECRET), Slotted()]),
    "group's message": lambda: ExceptionGroup(SECRET, [ValueError("x")]),
    "unicode": lambda: UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, "bad"),
    "retry": lambda: Retry("again", exc=ValueError(SECRET)),
    "retry of a hidden one": lambda: Retry("again", exc=Custom("x", Opaque(SECRET))),
    "system": lambda: RuntimeUserError("Code", f"message {SECRET}"),
}


@pytest.mark.parametrize("make", FAILURES.values(), ids=[*FAILURES])
def test_no_exception_keeps_a_secret(make: Callable[[], BaseException]) -> None:
    clean = redactor.exception(make())
    try:
        shown = "".join(traceback.format_exception(clean)) + repr(clean)
    except RuntimeError:
        pytest.fail("It cannot be shown.")
    assert not redactor.found_in(shown.encode())
    assert not redactor.found_in(pickle.dumps(clean))


def test_an_exception_without_secrets_stays_the_same_object() -> None:
    exc = Custom("x", {"a": 1})
    exc.__cause__ = ValueError("y")
    assert redactor.exception(exc) is exc
    assert exc.args == ("x",)
    assert redactor.exception(Unreadable()) is not None


def test_a_changed_exception_keeps_its_class_and_its_chain() -> None:
    exc = redactor.exception(chained())
    assert type(exc) is ValueError
    assert exc.args == (f"bad {MARK}",)
    assert isinstance(exc.__cause__, KeyError)
    assert exc.__suppress_context__
    retry = redactor.exception(FAILURES["retry of a hidden one"]())
    assert type(retry) is Retry


def test_what_cannot_be_changed_is_replaced_by_its_description() -> None:
    exc = redactor.exception(Slotted())
    assert isinstance(exc, RuntimeUserError)
    assert (exc.code, str(exc)) == ("Slotted", f"always {MARK}")


def test_what_an_exception_points_to_is_not_changed() -> None:
    """A replica lives on, and so does its configuration."""
    configuration = {"token": SECRET}
    exc = redactor.exception(Custom("x", configuration))
    assert isinstance(exc, Custom)
    assert exc.detail == {"token": MARK}
    assert configuration == {"token": SECRET}


def test_an_exception_that_contains_itself_ends() -> None:
    exc = ValueError(SECRET)
    exc.args = (exc, SECRET)
    exc.__context__ = other = KeyError(SECRET)
    other.__cause__ = exc
    redactor.exception(exc)


# -- Log records -----------------------------------------------------------------------------------------------------


@pytest.fixture
def installed() -> Iterator[None]:
    before, values, factory = redaction._current, redaction._values, logging.getLogRecordFactory()
    redaction.install([SECRET])
    yield
    redaction._current, redaction._values = before, values
    logging.setLogRecordFactory(factory)


@pytest.mark.usefixtures("installed")
def test_log_records_of_every_logger_are_clean(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("somebody.else")
    logger.warning("plain %s", SECRET)
    logger.warning(f"in the text {SECRET}")
    logger.warning("by name %(a)s", {"a": SECRET})
    logger.warning("stack", stack_info=True)
    try:
        raise chained()
    except ValueError:
        logger.exception("failed")
    logger.warning("nothing %s", 5)
    assert "plain **" in caplog.text
    assert "in the text **" in caplog.text
    assert "by name **" in caplog.text
    assert "ValueError: bad **" in caplog.text
    assert "nothing 5" in caplog.text
    assert SECRET not in caplog.text
    for record in caplog.records:
        assert not record.exc_info or SECRET not in str(record.exc_info[1])


@pytest.mark.usefixtures("installed")
def test_a_record_whose_arguments_do_not_fit_is_clean_too(capsys: pytest.CaptureFixture[str]) -> None:
    """logging prints them when it complains."""
    handler = logging.StreamHandler()
    record = logging.getLogger("x").makeRecord("x", 30, __file__, 1, f"{SECRET} %d", (SECRET,), None)
    handler.handle(record)
    assert "Logging error" in capsys.readouterr().err
    assert SECRET not in f"{record.msg} {record.args}"


@pytest.mark.usefixtures("installed")
def test_a_second_install_adds_no_second_pass() -> None:
    factory = logging.getLogRecordFactory()
    redaction.install(["another secret"])
    assert logging.getLogRecordFactory() is factory
    assert redaction.current().text(f"another secret, {SECRET}") == f"{MARK}, {MARK}"


def test_nothing_to_hide_changes_nothing() -> None:
    factory = logging.getLogRecordFactory()
    redaction.install(["short"])
    assert logging.getLogRecordFactory() is factory
    assert not redaction.current()
