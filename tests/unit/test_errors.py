"""The tree of errors, and how an error crosses from a replica to its caller."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import operator
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyte_celery import errors
from flyte_celery.errors import (
    BaseRuntimeError,
    CustomError,
    GPUFaultError,
    GPUFaultSystemError,
    GPUFaultUserError,
    NonRecoverableError,
    OOMError,
    RuntimeSystemError,
    RuntimeUnknownError,
    RuntimeUserError,
    TaskTimeoutError,
    message_of,
    raised,
)

USER = RuntimeUserError
SYSTEM = RuntimeSystemError
BASE = BaseRuntimeError

#: Name, nearest public ancestor, arguments, and the code and kind that follow from them.
TREE: list[tuple[str, type, tuple[Any, ...], str, str]] = [
    ("InitializationError", BASE, ("C", "user", "m"), "C", "user"),
    ("LogsNotYetAvailableError", BASE, ("m",), "LogsNotYetAvailable", "system"),
    ("RuntimeUnknownError", BASE, ("C", "m"), "C", "unknown"),
    ("RuntimeSystemError", BASE, ("C", "m"), "C", "system"),
    ("UnionRpcError", SYSTEM, ("C", "m"), "C", "system"),
    ("GPUFaultError", BASE, ("C", "user", "m"), "C", "user"),
    ("GPUFaultUserError", USER, ("C", "m"), "C", "user"),
    ("GPUFaultSystemError", SYSTEM, ("C", "m"), "C", "system"),
    ("RuntimeUserError", BASE, ("C", "m"), "C", "user"),
    ("OOMError", USER, ("C", "m"), "C", "user"),
    ("TaskInterruptedError", USER, ("C", "m"), "C", "user"),
    ("PrimaryContainerNotFoundError", USER, ("C", "m"), "C", "user"),
    ("RetriesExhaustedError", USER, ("C", "m"), "C", "user"),
    ("InvalidImageNameError", USER, ("C", "m"), "C", "user"),
    ("ImagePullBackOffError", USER, ("C", "m"), "C", "user"),
    ("NotInTaskContextError", USER, ("C", "m"), "C", "user"),
    ("CustomError", USER, ("C", "m"), "C", "user"),
    ("TaskTimeoutError", USER, ("m",), "TaskTimeoutError", "user"),
    ("TaskTimeoutError", USER, ("m", "C"), "C", "user"),
    ("MaxRuntimeExceededError", TaskTimeoutError, ("m",), "MaxRuntimeExceededError", "user"),
    ("MaxQueuedTimeExceededError", TaskTimeoutError, ("m",), "MaxQueuedTimeExceededError", "user"),
    ("DeadlineExceededError", TaskTimeoutError, ("m",), "DeadlineExceededError", "user"),
    ("NonRecoverableError", USER, ("m",), "NonRecoverableError", "user"),
    ("NonRecoverableError", USER, ("m", "C"), "C", "user"),
    ("ActionAbortedError", USER, ("m",), "ActionAbortedError", "user"),
    ("StarvationError", USER, ("m",), "StarvationError", "user"),
    ("SlowDownError", USER, ("m",), "SlowDownError", "user"),
    ("ResourceExhaustedError", errors.SlowDownError, ("m",), "SlowDownError", "user"),
    ("RuntimeDataValidationError", USER, ("x", "not m", "t"), "DataValidationError", "user"),
    ("RestrictedTypeError", USER, ("m",), "RestrictedTypeUsage", "user"),
    ("InlineIOMaxBytesBreached", USER, ("m",), "InlineIOMaxBytesBreached", "user"),
    ("SyncTaskCallInAsyncContextError", USER, ("m",), "SyncTaskCallInAsyncContextError", "user"),
    ("OnlyAsyncIOSupportedError", USER, ("m",), "OnlyAsyncIOSupportedError", "user"),
    ("TraceDoesNotAllowNestedTasksError", USER, ("m",), "TraceDoesNotAllowNestedTasksError", "user"),
    ("DeploymentError", USER, ("m",), "DeploymentError", "user"),
    ("ImageBuildError", USER, ("m",), "ImageBuildError", "user"),
    ("InvalidPackageError", USER, ("p", "not m"), "InvalidPackageError", "user"),
    ("ModuleLoadError", USER, ("m",), "ModuleLoadError", "user"),
    ("CodeBundleError", USER, ("m",), "CodeBundleError", "user"),
    ("ParameterMaterializationError", USER, ("m",), "ParameterMaterializationError", "user"),
    ("RemoteTaskNotFoundError", USER, ("m",), "RemoteTaskNotFoundError", "user"),
    ("RemoteTaskUsageError", USER, ("m",), "RemoteTaskUsageError", "user"),
    ("ConditionTimedoutError", USER, ("m",), "ConditionTimedoutError", "user"),
    ("ConditionAlreadyExistsError", USER, ("m",), "ConditionAlreadyExistsError", "user"),
    ("ConditionFailedError", USER, ("m",), "ConditionFailedError", "user"),
    ("ConditionNotFoundError", USER, ("m",), "ConditionNotFoundError", "user"),
    ("AppleSiliconError", USER, ("m",), "APPLE_SILICON_ERROR", "user"),
    *(
        (f"AppleSilicon{name}Error", errors.AppleSiliconError, ("m",), f"APPLE_SILICON_{code}", "user")
        for name, code in [
            ("NotAvailable", "NOT_AVAILABLE"),
            ("HostExecFailed", "HOST_EXEC_FAILED"),
            ("DaemonStartFailed", "DAEMON_START_FAILED"),
            ("DaemonOOM", "DAEMON_OOM"),
            ("ModelNotFound", "MODEL_NOT_FOUND"),
            ("BridgeUnreachable", "BRIDGE_UNREACHABLE"),
        ]
    ),
]
ROWS = pytest.mark.parametrize(("name", "ancestor", "arguments", "code", "kind"), TREE)

PUBLIC = {
    name: cls
    for name, cls in vars(errors).items()
    if inspect.isclass(cls) and issubclass(cls, BaseException) and not name.startswith("_")
}


def crossed(error: BaseException) -> Any:
    return pickle.loads(pickle.dumps(error))


def failed(exc: BaseException, **options: Any) -> BaseRuntimeError:
    """What the caller gets when a task raised `exc`."""
    kind, code = (exc.kind, exc.code) if isinstance(exc, BaseRuntimeError) else ("user", type(exc).__name__)
    return raised(kind, code, message_of(exc), original=exc, **options)


def known_by(exc: BaseException) -> tuple[str, str, str]:
    """What any client re-creates an exception from."""
    return type(exc).__module__, type(exc).__qualname__, message_of(exc)


# -- The tree --------------------------------------------------------------------------------------------------------


def test_the_table_of_this_test_names_every_error() -> None:
    assert {name for name, *_ in TREE} | {"BaseRuntimeError", "ActionNotFoundError"} == {*PUBLIC}


def test_the_tree_in_the_docstring_names_every_error() -> None:
    assert [name for name in PUBLIC if name not in (errors.__doc__ or "")] == []


def test_the_docstring_of_every_error_says_what_to_do_next() -> None:
    assert [name for name, cls in PUBLIC.items() if ":" not in (inspect.getdoc(cls) or "")] == []


@ROWS
def test_an_error_has_its_ancestor_code_and_kind(
    name: str, ancestor: type, arguments: tuple[Any, ...], code: str, kind: str
) -> None:
    error: Any = PUBLIC[name](*arguments)
    assert isinstance(error, ancestor)
    assert isinstance(error, BaseRuntimeError)
    assert (error.code, error.kind, error.worker) == (code, kind, None)
    if "m" in arguments:
        assert str(error) == "m"


@ROWS
def test_an_error_can_be_made_again_from_its_arguments(
    name: str, ancestor: type, arguments: tuple[Any, ...], code: str, kind: str
) -> None:
    """Celery's JSON results do that: `cls(*args)`."""
    error: Any = PUBLIC[name](*arguments)
    again: Any = PUBLIC[name](*json.loads(json.dumps(error.args)))
    assert (again.code, again.kind, str(again)) == (code, kind, str(error))


@ROWS
def test_an_error_survives_pickle_and_copy(
    name: str, ancestor: type, arguments: tuple[Any, ...], code: str, kind: str
) -> None:
    error: Any = PUBLIC[name](*arguments)
    error.worker = "w"
    error.add_note("a note")
    for again in (crossed(error), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is PUBLIC[name]
        assert vars(again) == vars(error)
        assert (again.args, str(again)) == (error.args, str(error))


def test_the_base_takes_code_kind_message_and_worker() -> None:
    error = BaseRuntimeError("C", "unknown", "m", "w")
    assert (error.code, error.kind, error.worker, str(error)) == ("C", "unknown", "w", "m")


@pytest.mark.parametrize("cls", [RuntimeUserError, RuntimeSystemError, RuntimeUnknownError, OOMError])
def test_a_worker_may_be_named(cls: Callable[..., BaseRuntimeError]) -> None:
    assert cls("C", "m", "w").worker == cls("C", "m", worker="w").worker == "w"


def test_a_missing_action_is_outside_the_hierarchy() -> None:
    assert errors.ActionNotFoundError.__bases__ == (RuntimeError,)


def test_a_custom_error_describes_any_exception() -> None:
    cause = ValueError("v")
    error = CustomError.from_exception(cause)
    assert (error.code, str(error), error.__cause__) == ("ValueError", "v", cause)


def test_a_gpu_fault_carries_what_is_known_about_the_device() -> None:
    known: dict[str, Any] = {
        "fault_kind": "xid", "fault_code": 79, "fault_name": "off the bus", "severity": "fatal", "gpu_uuid": "GPU-1",
        "gpu_index": 3, "node": "n", "pci_bus_id": "0000:65:00.0", "process": "python",
    }  # fmt: skip
    for cls in (GPUFaultUserError, GPUFaultSystemError):
        error = cls("GpuXidError", "m", "w", **known)
        assert {name: getattr(error, name) for name in known} == known
        assert isinstance(error, GPUFaultError)
        assert crossed(error).gpu_uuid == "GPU-1"
        assert cls("GpuXidError", "m").gpu_uuid is None
    assert GPUFaultError("GpuXidError", "system", "m", gpu_index=3).gpu_index == 3


def test_an_unknown_fact_about_a_gpu_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="'colour' does not describe a GPU fault"):
        GPUFaultUserError("GpuXidError", "m", colour="red")  # type: ignore[call-arg]


def test_a_value_that_does_not_fit_is_described() -> None:
    error = errors.RuntimeDataValidationError("x", ValueError("not a number"), "env.task")
    assert str(error).startswith("The value of x of task env.task does not fit: not a number.")
    assert "of task" not in str(errors.RuntimeDataValidationError("x", "why"))


def test_a_package_that_does_not_exist_is_described() -> None:
    error = errors.InvalidPackageError("gti", "not found")
    assert (error.package_name, error.original_error) == ("gti", "not found")
    assert "'gti' cannot be installed: not found" in str(error)


# -- Arithmetic ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "operation",
    [operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.pow],
)
def test_arithmetic_on_an_error_raises_it(operation: Callable[[Any, Any], Any]) -> None:
    error = RuntimeUserError("C", "m")
    for left, right in ((error, 1), (1, error), (error, error)):
        with pytest.raises(RuntimeUserError) as info:
            operation(left, right)
        assert info.value is error


def test_a_sum_with_a_failure_in_it_is_the_failure() -> None:
    error = failed(ValueError("v"))
    values: list[Any] = [1, error, 2]
    with pytest.raises(RuntimeUserError, match="v") as info:
        sum(values)
    assert info.value is error


# -- The class follows from the code ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("ValueError", "RuntimeUserError"),
        ("MemoryError", "RuntimeUserError"),
        ("TimeoutError", "RuntimeUserError"),
        ("X", "RuntimeUserError"),
        ("", "RuntimeUserError"),
        ("OOMKilled", "OOMError"),
        ("RoomError", "OOMError"),
        ("oom", "OOMError"),
        ("TaskTimeoutError", "TaskTimeoutError"),
        ("MaxRuntimeExceededError", "MaxRuntimeExceededError"),
        ("MAX_RUNTIME_EXCEEDED", "MaxRuntimeExceededError"),
        ("MaxQueuedTimeExceededError", "MaxQueuedTimeExceededError"),
        ("QUEUED_TIMEOUT_EXCEEDED", "MaxQueuedTimeExceededError"),
        ("DeadlineExceededError", "DeadlineExceededError"),
        ("DEADLINE_EXCEEDED", "DeadlineExceededError"),
        *((code, "GPUFaultUserError") for code in errors.GPU_FAULT_CODES),
        ("APPLE_SILICON_DAEMON_OOM", "AppleSiliconDaemonOOMError"),
        ("APPLE_SILICON_NOT_AVAILABLE", "AppleSiliconNotAvailableError"),
        ("APPLE_SILICON_ERROR", "RuntimeUserError"),
        ("Interrupted", "TaskInterruptedError"),
        ("InterruptedError", "TaskInterruptedError"),
        ("interrupted", "RuntimeUserError"),
        ("PrimaryContainerNotFound", "PrimaryContainerNotFoundError"),
        ("RetriesExhausted", "RetriesExhaustedError"),
        ("Unknown", "RuntimeUnknownError"),
        ("UnknownThing", "RuntimeUnknownError"),
        ("InvalidImageName", "InvalidImageNameError"),
        ("ErrImagePullBackOff", "ImagePullBackOffError"),
        ("StarvationError", "StarvationError"),
        ("NonRecoverableError", "RuntimeUserError"),
        ("ActionAbortedError", "RuntimeUserError"),
    ],
)
def test_the_class_of_a_users_failure_follows_from_the_code(code: str, name: str) -> None:
    error = raised("user", code, "m", worker="w")
    assert type(error).__name__ == name
    assert (str(error), error.worker) == ("m", "w")
    assert error.kind == ("unknown" if isinstance(error, RuntimeUnknownError) else "user")


@pytest.mark.parametrize("code", ["ValueError", "OOMKilled", "TaskTimeoutError", "X"])
def test_a_code_is_kept(code: str) -> None:
    assert raised("user", code, "m").code == raised("system", code, "m").code == code


@pytest.mark.parametrize("code", ["SYS", "OOMKilled", "Unknown", "TaskTimeoutError", "APPLE_SILICON_DAEMON_OOM"])
def test_a_failure_of_the_platform_is_a_system_error(code: str) -> None:
    assert type(raised("system", code, "m")) is RuntimeSystemError
    assert type(raised("unknown", code, "m")) is RuntimeUnknownError
    assert type(raised("a kind of tomorrow", code, "m")) is RuntimeUnknownError


def test_a_fault_of_a_gpu_may_be_the_platforms() -> None:
    assert type(raised("system", "GpuXidError", "m")) is GPUFaultSystemError


# -- What the task raised, at the caller -----------------------------------------------------------------------------


class RoomError(Exception):
    """A user's exception whose name contains "oom"."""


class WithArguments(Exception):
    """The usual exception that pickle cannot make again."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


class WithProperty(Exception):
    """Has one of our attributes as a read-only property."""

    @property
    def code(self) -> int:
        return 404


class WithSlots(Exception):
    __slots__ = ("detail",)
    detail: int


class WithNew(Exception):
    """Cannot be made without its keyword."""

    def __new__(cls, message: str, *, detail: int) -> WithNew:
        return super().__new__(cls, message)

    def __init__(self, message: str, *, detail: int) -> None:
        super().__init__(message)


class Final(Exception):
    """Refuses to be subclassed."""

    def __init_subclass__(cls) -> None:
        raise RuntimeError("This class is final.")


class Meta(type):
    """A metaclass that conflicts with any other."""


class WithMeta(Exception, metaclass=Meta):
    pass


class Outer:
    class Inner(ValueError):
        pass


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


def error_of(function: Callable[[], Any]) -> Exception:
    try:
        function()
    except Exception as exc:
        return exc
    raise AssertionError("It was meant to fail.")


def with_slots() -> WithSlots:
    error = WithSlots("s")
    error.detail = 7
    return error


COMBINED: list[Exception] = [
    ValueError("v"),
    ValueError(),
    KeyError("k"),
    TimeoutError("t"),
    MemoryError("m"),
    RoomError("r"),
    WithArguments(404, "gone"),
    WithProperty("p"),
    with_slots(),
    WithNew("n", detail=1),
    Outer.Inner("i"),
    Mute(),
    ExceptionGroup("g", [ValueError("a"), OSError("b")]),
    error_of(Path("/no/such/file").read_bytes),
    error_of(lambda: b"\xff".decode()),
    error_of(lambda: compile("x = (", "file", "exec")),
    error_of(lambda: json.loads("{")),
    error_of(lambda: getattr(1, "no_such_attribute")),  # noqa: B009
    error_of(lambda: __import__("no_such_module")),
]


@pytest.mark.parametrize("exc", COMBINED, ids=lambda exc: type(exc).__name__)
def test_the_error_is_caught_as_either_class(exc: Exception) -> None:
    error = failed(exc, worker="w")
    for each in (error, crossed(error)):
        assert isinstance(each, RuntimeUserError)
        assert isinstance(each, type(exc))
        assert (each.code, each.kind, each.worker) == (type(exc).__name__, "user", "w")
        assert str(each) == message_of(exc)
        assert type(each.__cause__) is type(exc)
        assert repr(each.args) == repr(exc.args)
    assert error.__cause__ is exc


@pytest.mark.parametrize("exc", COMBINED, ids=lambda exc: type(exc).__name__)
def test_the_error_names_the_users_class_when_it_is_sent_on(exc: Exception) -> None:
    """A parent that does not catch its child's failure passes it on to its own caller."""
    assert known_by(failed(exc)) == known_by(exc)


def test_the_error_has_what_the_original_holds() -> None:
    file_error = error_of(Path("/no/such/file").read_bytes)
    for error in (failed(file_error), crossed(failed(file_error))):
        assert isinstance(error, FileNotFoundError)
        assert (error.errno, error.filename) == (2, "/no/such/file")
    slots = crossed(failed(with_slots()))
    assert (slots.detail, slots.__cause__.detail) == (7, 7)
    group = crossed(failed(ExceptionGroup("g", [ValueError("a")])))
    assert [str(each) for each in group.exceptions] == ["a"]


def test_our_attributes_win_over_the_users() -> None:
    error = failed(WithArguments(404, "gone"))
    assert error.code == "WithArguments"
    assert vars(error)["reason"] == "gone"
    assert isinstance(error.__cause__, WithArguments)
    assert error.__cause__.code == 404


def test_a_class_chosen_by_code_is_combined_too() -> None:
    error = failed(RoomError("r"))
    assert isinstance(error, OOMError)
    assert isinstance(error, RoomError)


def test_equal_classes_are_made_once() -> None:
    assert type(failed(RoomError("a"))) is type(failed(RoomError("b"))) is type(crossed(failed(RoomError("c"))))


@pytest.mark.parametrize("exc", [Final("f"), WithMeta("m")], ids=lambda exc: type(exc).__name__)
def test_a_class_that_cannot_be_combined_is_the_cause_alone(exc: Exception) -> None:
    error = failed(exc)
    assert type(error) is RuntimeUserError
    assert (error.code, str(error)) == (type(exc).__name__, str(exc))
    assert error.__cause__ is exc
    assert (crossed(error).code, crossed(error).args) == (error.code, error.args)


@pytest.mark.parametrize(
    "exc",
    [
        SystemExit(2),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError(),
        StopIteration(1),
        StopAsyncIteration(),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_an_exception_that_steers_python_is_the_cause_alone(exc: BaseException) -> None:
    """Raised at the caller, `SystemExit` would end the caller, and `StopIteration` its loop."""
    error = failed(exc)
    assert type(error) is RuntimeUserError
    assert (error.code, error.__cause__) == (type(exc).__name__, exc)


@pytest.mark.parametrize("exc", [RuntimeError("r"), Exception("e")])
def test_a_plain_error_is_one_already(exc: Exception) -> None:
    assert type(failed(exc)) is RuntimeUserError


@pytest.mark.parametrize(
    ("exc", "code"),
    [
        (OOMError("OOMKilled", "m"), "OOMKilled"),
        (OOMError("X", "m"), "X"),
        (TaskTimeoutError("t"), "TaskTimeoutError"),
        (errors.MaxRuntimeExceededError("t"), "MaxRuntimeExceededError"),
        (NonRecoverableError("n"), "NonRecoverableError"),
        (CustomError("C", "m"), "C"),
        (errors.ActionAbortedError("a"), "ActionAbortedError"),
        (errors.StarvationError("s"), "StarvationError"),
        (RuntimeSystemError("SYS", "s"), "SYS"),
        (RuntimeUnknownError("U", "u"), "U"),
        (errors.InitializationError("I", "system", "m"), "I"),
        (errors.LogsNotYetAvailableError("l"), "LogsNotYetAvailable"),
    ],
)
def test_an_error_of_ours_stays_what_it_is(exc: BaseRuntimeError, code: str) -> None:
    error = failed(exc)
    for each in (error, crossed(error)):
        assert isinstance(each, type(exc))
        assert (each.code, each.kind, str(each)) == (code, exc.kind, str(exc))


def test_a_gpu_fault_keeps_what_is_known_about_the_device() -> None:
    error = crossed(failed(GPUFaultUserError("GpuXidError", "m", gpu_uuid="GPU-1")))
    assert (type(error), error.gpu_uuid) == (GPUFaultUserError, "GPU-1")


def test_the_remote_traceback_is_a_note() -> None:
    error = failed(ValueError("v"), traceback="Traceback ...\nValueError: v\n", worker="env@host")
    assert error.__notes__ == ["Remote traceback (worker env@host):\nTraceback ...\nValueError: v"]
    assert crossed(error).__notes__ == error.__notes__
    assert failed(ValueError("v"), traceback="T").__notes__ == ["Remote traceback:\nT"]
    assert not hasattr(failed(ValueError("v"), traceback=""), "__notes__")


def test_the_originals_notes_stay_with_the_original() -> None:
    original = ValueError("v")
    original.add_note("mine")
    error = failed(original, traceback="T")
    assert (error.__notes__, original.__notes__) == (["Remote traceback:\nT"], ["mine"])


def test_an_exception_without_words_is_described() -> None:
    assert "Mute" in message_of(Mute())


# -- What no other process can have ----------------------------------------------------------------------------------


def test_an_error_of_a_local_class_crosses_as_the_plain_error() -> None:
    class Local(Exception):
        pass

    error = failed(Local("l"), traceback="T")
    assert isinstance(error, Local)
    again = crossed(error)
    assert type(again) is RuntimeUserError
    assert (again.code, str(again), again.__notes__) == ("Local", "l", ["Remote traceback:\nT"])


def test_a_value_that_cannot_be_pickled_stays_behind() -> None:
    original = ValueError("v")
    vars(original)["lock"] = threading.Lock()
    again = crossed(failed(original))
    assert (type(again), again.code, str(again)) == (RuntimeUserError, "ValueError", "v")


def test_an_error_crosses_without_a_cause_that_cannot() -> None:
    class Local(Exception):
        pass

    error = OOMError("OOMKilled", "m")
    error.__cause__ = Local("l")
    assert (type(crossed(error)), crossed(error).__cause__) == (OOMError, None)


def test_an_error_that_holds_itself_crosses() -> None:
    error = RuntimeUserError("C", "m")
    vars(error)["me"] = error
    assert (crossed(error).code, str(crossed(error))) == ("C", "m")


@given(code=st.text(), message=st.text(), kind=st.sampled_from(["user", "system", "unknown"]))
def test_any_code_and_message_cross(code: str, message: str, kind: str) -> None:
    error = crossed(raised(kind, code, message, original=ValueError(message)))
    assert isinstance(error, BaseRuntimeError)
    assert isinstance(error, ValueError)
    assert str(error) == message
