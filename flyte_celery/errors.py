"""Every error that Flyte's face raises, and how an error crosses from a replica to its caller.

```
RuntimeError
├── BaseRuntimeError                        code, kind, worker; the message is str(error)
│   ├── InitializationError                 flyte.init(...) has not run, or could not finish
│   ├── LogsNotYetAvailableError
│   ├── RuntimeUnknownError                 kind "unknown"
│   ├── GPUFaultError                       mixed into GPUFaultUserError and GPUFaultSystemError
│   ├── RuntimeSystemError                  kind "system": the platform failed, not the task's code
│   │   ├── UnionRpcError
│   │   └── GPUFaultSystemError
│   └── RuntimeUserError                    kind "user": the task's code failed; code is its exception's class name
│       ├── OOMError                        ran out of memory
│       ├── TaskInterruptedError            preempted
│       ├── RetriesExhaustedError
│       ├── GPUFaultUserError
│       ├── PrimaryContainerNotFoundError, InvalidImageNameError, ImagePullBackOffError
│       ├── NotInTaskContextError
│       ├── CustomError                     made from any exception by CustomError.from_exception(e)
│       ├── TaskTimeoutError
│       │   ├── MaxRuntimeExceededError
│       │   ├── MaxQueuedTimeExceededError
│       │   └── DeadlineExceededError
│       ├── NonRecoverableError             ends the retries
│       ├── ActionAbortedError              revoked from outside
│       ├── StarvationError                 waits for a child that can never start
│       ├── SlowDownError
│       │   └── ResourceExhaustedError
│       ├── RuntimeDataValidationError, RestrictedTypeError, InlineIOMaxBytesBreached
│       ├── SyncTaskCallInAsyncContextError, OnlyAsyncIOSupportedError, TraceDoesNotAllowNestedTasksError
│       ├── DeploymentError, ImageBuildError, InvalidPackageError, ModuleLoadError, CodeBundleError
│       ├── ParameterMaterializationError, RemoteTaskNotFoundError, RemoteTaskUsageError
│       ├── ConditionTimedoutError, ConditionAlreadyExistsError, ConditionFailedError, ConditionNotFoundError
│       └── AppleSiliconError
│           ├── AppleSiliconNotAvailableError, AppleSiliconHostExecFailedError
│           ├── AppleSiliconDaemonStartFailedError, AppleSiliconDaemonOOMError
│           └── AppleSiliconModelNotFoundError, AppleSiliconBridgeUnreachableError
└── ActionNotFoundError
```
What a caller catches is chosen by the code alone (`raised`). Where Python allows, the raised object is also an instance
of the class that the task raised, so `except ValueError` and `except RuntimeUserError` both catch it.
"""

from __future__ import annotations

import pickle
from typing import Any, Literal, NoReturn, Self, TypedDict, Unpack

from .recreation import also_an_instance, made_again, taken_apart
from .shortening import MOST_QUOTED, cut

#: Who failed: the platform, nobody knows, or the task's own code.
Kind = Literal["system", "unknown", "user"]


class BaseRuntimeError(RuntimeError):
    """A task, or the platform under it, failed: read `code` and `kind`, and the message with `str(error)`.

    `args` are the arguments of the constructor, so that Celery, which re-creates an exception by `cls(*args)`, gets
    the same error back. Arithmetic on an error raises it: `sum(flyte.map(...))` fails with the task's own failure.

    Args:
        code: Short name of the failure; for a user's exception the name of its class.
        kind: Who failed: `"user"`, `"system"` or `"unknown"`.
        root_cause_message: What happened.
        worker: The worker where it happened, when that is known.
    """

    code: str
    kind: Kind
    worker: str | None
    _message: str

    def __init__(self, code: str, kind: Kind, root_cause_message: str, worker: str | None = None) -> None:
        super().__init__(code, kind, root_cause_message, worker)
        self.code = code
        self.kind = kind
        self.worker = worker
        self._message = root_cause_message

    def __str__(self) -> str:
        return self._message

    def __reduce__(self) -> tuple[Any, ...]:
        parts = taken_apart(self)
        for cause in (self.__cause__ and taken_apart(self.__cause__), None):
            try:
                data = pickle.dumps((parts, cause))
                made_again(data)
            except RecursionError:
                break  # it holds itself; another attempt at each depth would take forever
            except Exception:
                continue  # a local class, or a value that no other process can have: better found out here than there
            return made_again, (data,)
        bare = raised(self.kind, self.code, message_of(self), worker=self.worker)
        for note in getattr(self, "__notes__", ()):
            bare.add_note(str(note))
        return made_again, (pickle.dumps((taken_apart(bare), None)),)

    def _reraise(self, *_: object) -> NoReturn:
        raise self

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _reraise
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = _reraise
    __mod__ = __rmod__ = __pow__ = __rpow__ = __neg__ = __pos__ = __abs__ = _reraise


class InitializationError(BaseRuntimeError):
    """There is no app to submit to: call `flyte.init(...)` first, or read in the message why it could not finish."""


class LogsNotYetAvailableError(BaseRuntimeError):
    """The task has written no log yet: ask again when it runs."""

    def __init__(self, message: str) -> None:
        super().__init__("LogsNotYetAvailable", "system", message)
        self.args = (message,)


class RuntimeUnknownError(BaseRuntimeError):
    """Nobody knows who failed: read the message, then the worker's log."""

    def __init__(self, code: str, message: str, worker: str | None = None) -> None:
        super().__init__(code, "unknown", message, worker)
        self.args = (code, message, worker)

    @classmethod
    def _received(cls, code: str, message: str, worker: str | None) -> Self:
        return cls(code, message, worker)


class RuntimeSystemError(BaseRuntimeError):
    """The platform failed, not the task's code: submit again; if it happens again, read the worker's log."""

    def __init__(self, code: str, message: str, worker: str | None = None) -> None:
        super().__init__(code, "system", message, worker)
        self.args = (code, message, worker)

    @classmethod
    def _received(cls, code: str, message: str, worker: str | None) -> Self:
        return cls(code, message, worker)


class UnionRpcError(RuntimeSystemError):
    """A call between processes of the platform failed: submit again."""


class RuntimeUserError(BaseRuntimeError):
    """The task's code failed: `code` names the class that it raised, the notes hold the remote traceback."""

    def __init__(self, code: str, message: str, worker: str | None = None) -> None:
        super().__init__(code, "user", message, worker)
        self.args = (code, message, worker)

    @classmethod
    def _received(cls, code: str, message: str, worker: str | None) -> Self:
        return cls(code, message, worker)


class OOMError(RuntimeUserError):
    """The task ran out of memory: retry it with `task.override(resources=flyte.Resources(memory=...))`.

    Known by its code alone, which contains `OOM`. A Python `MemoryError` is not one.
    """


class TaskInterruptedError(RuntimeUserError):
    """The task was preempted: submit it again, or use an environment that is not `interruptible`."""


class PrimaryContainerNotFoundError(RuntimeUserError):
    """The container that runs the task is gone: check the pod template, then submit again."""


class RetriesExhaustedError(RuntimeUserError):
    """Every attempt failed: the message is the last attempt's; raise `retries`, or correct the cause."""


class InvalidImageNameError(RuntimeUserError):
    """The image's name cannot be parsed: correct `image` of the environment."""


class ImagePullBackOffError(RuntimeUserError):
    """The image cannot be pulled: check its name, its registry, and the registry's secret."""


class NotInTaskContextError(RuntimeUserError):
    """This works only while a task runs: call it from a task's body."""


class CustomError(RuntimeUserError):
    """A failure with a code of your own: raise it from a task, and compare `error.code` at the caller."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.args = (code, message)

    @classmethod
    def from_exception(cls, e: Exception) -> Self:
        """Describe any exception: its class name is the code, and it is the `__cause__`."""
        error = cls(type(e).__name__, str(e))
        error.__cause__ = e
        return error


class GPUFault(TypedDict, total=False):
    """What is known about a faulty device."""

    fault_kind: str | None
    fault_code: int | None
    fault_name: str | None
    severity: str | None
    gpu_uuid: str | None
    gpu_index: int | None
    node: str | None
    pci_bus_id: str | None
    process: str | None


class GPUFaultError(BaseRuntimeError):
    """A GPU failed under the task: take the device `gpu_uuid` on `node` out of service if it happens again.

    Args:
        code: One of `GPU_FAULT_CODES`.
        kind: `"user"` when the task's code caused the fault, `"system"` when the hardware did.
        root_cause_message: What happened.
        worker: The worker where it happened.
        fault_kind: Group of faults, such as an XID.
        fault_code: The driver's number for the fault.
        fault_name: The driver's name for the fault.
        severity: How bad it is.
        gpu_uuid: The device.
        gpu_index: The device's number on its machine.
        node: The device's machine.
        pci_bus_id: Where the device sits in its machine.
        process: The process that used the device.
    """

    fault_kind: str | None = None
    fault_code: int | None = None
    fault_name: str | None = None
    severity: str | None = None
    gpu_uuid: str | None = None
    gpu_index: int | None = None
    node: str | None = None
    pci_bus_id: str | None = None
    process: str | None = None

    def __init__(
        self, code: str, kind: Kind, root_cause_message: str, worker: str | None = None, **fault: Unpack[GPUFault]
    ) -> None:
        BaseRuntimeError.__init__(self, code, kind, root_cause_message, worker)
        if unknown := sorted(fault.keys() - GPUFault.__annotations__.keys()):
            known = ", ".join(GPUFault.__annotations__)
            raise TypeError(f"{unknown[0]!r} does not describe a GPU fault: use some of {known}.")
        vars(self).update(fault)


class GPUFaultUserError(GPUFaultError, RuntimeUserError):
    """The task's code made a GPU fail, for instance by an illegal access: correct the code, then submit again."""

    def __init__(self, code: str, message: str, worker: str | None = None, **fault: Unpack[GPUFault]) -> None:
        GPUFaultError.__init__(self, code, "user", message, worker, **fault)
        self.args = (code, message, worker)


class GPUFaultSystemError(GPUFaultError, RuntimeSystemError):
    """A GPU failed by itself: submit again, and take the device `gpu_uuid` on `node` out of service."""

    def __init__(self, code: str, message: str, worker: str | None = None, **fault: Unpack[GPUFault]) -> None:
        GPUFaultError.__init__(self, code, "system", message, worker, **fault)
        self.args = (code, message, worker)


class _FixedCodeError(RuntimeUserError):
    """An error whose class says its code."""

    def __init__(self, message: str) -> None:
        super().__init__(self.code, message)
        self.args = (message,)

    @classmethod
    def _received(cls, code: str, message: str, worker: str | None) -> Self:
        error = cls(message)
        error.worker = worker
        return error


class TaskTimeoutError(_FixedCodeError):
    """The task took too long: give it a longer `timeout=flyte.Timeout(...)`, or less to do."""

    code = "TaskTimeoutError"

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
            self.args = (message, code)


class MaxQueuedTimeExceededError(TaskTimeoutError):
    """The task waited too long for a replica: raise `max_queued_time`, or the policy's `replicas`."""

    code = "MaxQueuedTimeExceededError"


class MaxRuntimeExceededError(TaskTimeoutError):
    """One attempt ran too long: raise `max_runtime`, or give the task less to do."""

    code = "MaxRuntimeExceededError"


class DeadlineExceededError(TaskTimeoutError):
    """All attempts together took too long: raise `deadline`, or lower `retries`."""

    code = "DeadlineExceededError"


class NonRecoverableError(_FixedCodeError):
    """Raise it in a task when trying again is pointless: no retry follows."""

    code = "NonRecoverableError"

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
            self.args = (message, code)


class ActionAbortedError(_FixedCodeError):
    """The task was revoked from outside: submit it again if it is still wanted."""

    code = "ActionAbortedError"


class StarvationError(_FixedCodeError):
    """The task waits for a child that can never start: raise the policy's `replicas` or `concurrency`.

    Or give the waiting task an environment of its own: `env.clone_with("parent", reusable=None, depends_on=[env])`.
    """

    code = "StarvationError"


class SlowDownError(_FixedCodeError):
    """Too many requests at once: wait, then submit again, with a smaller `flyte.map(..., concurrency=...)`."""

    code = "SlowDownError"


class ResourceExhaustedError(SlowDownError):
    """A quota is used up: wait until running tasks are done, or raise the quota."""


class RuntimeDataValidationError(_FixedCodeError):
    """A value does not fit the type that a task declares: correct the value or the annotation.

    Args:
        var: The parameter, or `o0`, `o1`, ... for a result.
        e: What is wrong with the value.
        task_name: The task, as `environment.function`.
    """

    code = "DataValidationError"

    def __init__(self, var: str, e: Exception | str, task_name: str = "") -> None:
        of_task = f" of task {task_name}" if task_name else ""
        super().__init__(f"The value of {var}{of_task} does not fit: {e}. Correct the value or the type annotation.")
        self.args = (var, str(e), task_name)


class RestrictedTypeError(_FixedCodeError):
    """A type cannot be used here: give the parameter another type."""

    code = "RestrictedTypeUsage"


class InlineIOMaxBytesBreached(_FixedCodeError):
    """Arguments or result are too large for a message: pass a path or a key, or raise `max_inline_io_bytes`."""

    code = "InlineIOMaxBytesBreached"


class SyncTaskCallInAsyncContextError(_FixedCodeError):
    """A blocking call would stop the event loop: write `await task.aio(...)` instead of `task(...)`."""

    code = "SyncTaskCallInAsyncContextError"


class OnlyAsyncIOSupportedError(_FixedCodeError):
    """Another event loop than asyncio's is running: run this code under asyncio."""

    code = "OnlyAsyncIOSupportedError"


class TraceDoesNotAllowNestedTasksError(_FixedCodeError):
    """A traced function called a task: call the task from a task, or run its body with `task.forward(...)`."""

    code = "TraceDoesNotAllowNestedTasksError"


class DeploymentError(_FixedCodeError):
    """Deploying failed: read the message, correct the cause, deploy again."""

    code = "DeploymentError"


class ImageBuildError(_FixedCodeError):
    """The image could not be built: read the message, correct the `Image`, build again."""

    code = "ImageBuildError"


class InvalidPackageError(_FixedCodeError):
    """A system package does not exist: correct its name in `Image.with_apt_packages(...)`.

    Args:
        package_name: The package.
        original_error: What the package manager said.
    """

    code = "InvalidPackageError"

    def __init__(self, package_name: str, original_error: str) -> None:
        super().__init__(
            f"The system package {package_name!r} cannot be installed: {original_error}. "
            "Correct its name in Image.with_apt_packages(...)."
        )
        self.package_name = package_name
        self.original_error = original_error
        self.args = (package_name, original_error)


class ModuleLoadError(_FixedCodeError):
    """A module with tasks fails to import: import it in a plain interpreter to see why."""

    code = "ModuleLoadError"


class CodeBundleError(_FixedCodeError):
    """The code could not be packed or unpacked: check that the files exist and can be read."""

    code = "CodeBundleError"


class ParameterMaterializationError(_FixedCodeError):
    """A parameter of an app could not be made into a value: check where the parameter comes from."""

    code = "ParameterMaterializationError"


class RemoteTaskNotFoundError(_FixedCodeError):
    """There is no task of that name: check the spelling, and that a worker with its module is running."""

    code = "RemoteTaskNotFoundError"


class RemoteTaskUsageError(_FixedCodeError):
    """A task that is only known by name was used as if its code were here: import its module."""

    code = "RemoteTaskUsageError"


class ConditionTimedoutError(_FixedCodeError):
    """Nobody met the condition in time: wait longer, or meet it."""

    code = "ConditionTimedoutError"


class ConditionAlreadyExistsError(_FixedCodeError):
    """A condition of that name exists: use another name."""

    code = "ConditionAlreadyExistsError"


class ConditionFailedError(_FixedCodeError):
    """The condition failed: read the message."""

    code = "ConditionFailedError"


class ConditionNotFoundError(_FixedCodeError):
    """There is no condition of that name: create it first."""

    code = "ConditionNotFoundError"


class AppleSiliconError(RuntimeUserError):
    """A task on an Apple Silicon device failed: read the message.

    Args:
        message: What happened.
        worker: The worker where it happened.
    """

    code = "APPLE_SILICON_ERROR"

    def __init__(self, message: str, worker: str | None = None) -> None:
        super().__init__(self.code, message, worker)
        self.args = (message, worker)

    @classmethod
    def _received(cls, code: str, message: str, worker: str | None) -> Self:
        return cls(message, worker)


class AppleSiliconNotAvailableError(AppleSiliconError):
    """This machine has no Apple Silicon device: start the worker on a Mac."""

    code = "APPLE_SILICON_NOT_AVAILABLE"


class AppleSiliconHostExecFailedError(AppleSiliconError):
    """A command on the host failed: read the message."""

    code = "APPLE_SILICON_HOST_EXEC_FAILED"


class AppleSiliconDaemonStartFailedError(AppleSiliconError):
    """The daemon on the host did not start: start it by hand to see why."""

    code = "APPLE_SILICON_DAEMON_START_FAILED"


class AppleSiliconDaemonOOMError(AppleSiliconError):
    """The daemon on the host ran out of memory: use a smaller model or a smaller batch."""

    code = "APPLE_SILICON_DAEMON_OOM"


class AppleSiliconModelNotFoundError(AppleSiliconError):
    """The model is not on the host: fetch it first."""

    code = "APPLE_SILICON_MODEL_NOT_FOUND"


class AppleSiliconBridgeUnreachableError(AppleSiliconError):
    """The host does not answer: check that its bridge runs."""

    code = "APPLE_SILICON_BRIDGE_UNREACHABLE"


class ActionNotFoundError(RuntimeError):
    """There is no run or task of that id: check the id; results also expire (`result_expires`)."""


# -- Crossing from a replica to its caller ---------------------------------------------------------------------------

#: How the note begins that quotes the traceback of a failed task.
REMOTE_TRACEBACK = "Remote traceback"

#: Codes of faulty GPUs.
GPU_FAULT_CODES = (
    "GpuXidError",
    "GpuFallenOffBus",
    "GpuEccUncorrectable",
    "GpuRowRemapPending",
    "GpuNvlinkError",
    "GpuGspError",
)

_BY_CODE: dict[str, type[RuntimeUserError]] = {
    **{
        cls.code: cls
        for cls in (
            TaskTimeoutError,
            MaxQueuedTimeExceededError,
            MaxRuntimeExceededError,
            DeadlineExceededError,
            StarvationError,
            AppleSiliconNotAvailableError,
            AppleSiliconHostExecFailedError,
            AppleSiliconDaemonStartFailedError,
            AppleSiliconDaemonOOMError,
            AppleSiliconModelNotFoundError,
            AppleSiliconBridgeUnreachableError,
        )
    },
    "QUEUED_TIMEOUT_EXCEEDED": MaxQueuedTimeExceededError,
    "MAX_RUNTIME_EXCEEDED": MaxRuntimeExceededError,
    "DEADLINE_EXCEEDED": DeadlineExceededError,
    **dict.fromkeys(GPU_FAULT_CODES, GPUFaultUserError),
}

#: Tried in this order after `OOM`, which counts in any case: a part of the code, and the class that it means.
_BY_PART: dict[str, type[RuntimeUserError | RuntimeUnknownError]] = {
    "Interrupted": TaskInterruptedError,
    "PrimaryContainerNotFound": PrimaryContainerNotFoundError,
    "RetriesExhausted": RetriesExhaustedError,
    "Unknown": RuntimeUnknownError,
    "InvalidImageName": InvalidImageNameError,
    "ImagePullBackOff": ImagePullBackOffError,
}


def raised(
    kind: str,
    code: str,
    message: str,
    *,
    worker: str | None = None,
    traceback: str | None = None,
    original: BaseException | None = None,
) -> BaseRuntimeError:
    """The error that a caller raises for what failed elsewhere.

    Args:
        kind: `"user"`, `"system"`, or anything else for unknown.
        code: Chooses the class. A code that contains `OOM` in any case means `OOMError`, as in Flyte.
        message: The original's message, which becomes `str(error)`.
        worker: Where it failed.
        traceback: The remote traceback, which becomes a note on the error.
        original: The exception itself, re-created here. It becomes the `__cause__`, and the error is also an instance
            of its class where Python can combine the two. An original that is no `Exception` (`SystemExit`,
            `CancelledError`) or that ends an iteration is the cause only: as an error it would do what it says.

    Returns:
        The error, not raised yet.
    """
    error: BaseRuntimeError = _chosen(kind, code)._received(code, message, worker)
    if original is not None:
        error = also_an_instance(error, original)
        error.__cause__ = original
    if traceback:
        where = f" (worker {worker})" if worker else ""
        error.add_note(f"{REMOTE_TRACEBACK}{where}:\n{cut(traceback.rstrip(), MOST_QUOTED)}")
    return error


def _chosen(kind: str, code: str) -> type[RuntimeUserError | RuntimeSystemError | RuntimeUnknownError]:
    if kind == "system":
        return GPUFaultSystemError if code in GPU_FAULT_CODES else RuntimeSystemError
    if kind != "user":
        return RuntimeUnknownError
    if cls := _BY_CODE.get(code):
        return cls
    if "OOM" in code.upper():
        return OOMError
    return next((cls for part, cls in _BY_PART.items() if part in code), RuntimeUserError)


def message_of(exc: BaseException) -> str:
    """What an exception says; never fails."""
    try:
        return str(exc)
    except Exception as problem:
        return f"(a {type(exc).__name__} whose message cannot be read: its __str__ raised {type(problem).__name__})"
