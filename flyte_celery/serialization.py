"""The typed signature of a task: what its arguments and its result look like in a message, and what fits.

Annotations are read when the task is first called, not when it is defined: importing a module of tasks must not cost
what pydantic costs, and an annotation may name a class that is defined further down.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import json
import re
import reprlib
import types
import typing
from collections.abc import Callable, Coroutine, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from inspect import Parameter
from typing import Any

from .codec import ANNOTATE, Codec, Unfit, codec_for, jsonable

Convert = Callable[[Any], Any]

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_VARIABLE = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 80
_repr.maxlevel = 3


@dataclass(frozen=True, slots=True)
class NativeInterface:
    """A task's interface in Python's own types, under Flyte's names."""

    inputs: dict[str, tuple[Any, Any]]
    """Annotation and default by parameter; `inspect.Parameter.empty` where there is none."""

    outputs: dict[str, Any]
    """Annotations of the results: `o0`, `o1`, ... for the elements of a tuple, fields of a named tuple."""


class Signature:
    """The parameters and the return value of a task's function.

    Args:
        func: The function.
        skip_first: Whether the first parameter is not the caller's (the Celery task of `bind=True`).
        task_name: The task's name, for messages.
        pickled: Whether values travel in a pickle: they are checked all the same, and go unchanged.

    Raises:
        ValueError: If the function takes `*args` or `**kwargs`, or has no first parameter to skip.
    """

    def __init__(self, func: Callable[..., Any], skip_first: bool, task_name: str, *, pickled: bool = False) -> None:
        self._func = func
        self._task = task_name
        self._pickled = pickled
        parameters = list(inspect.signature(func).parameters.values())
        if skip_first:
            if not parameters or parameters[0].kind not in _POSITIONAL:
                raise ValueError(
                    f"Task {task_name!r} has bind=True, so its function needs a first parameter for the Celery task: "
                    "add `self`, or leave out bind."
                )
            del parameters[0]
        for parameter in parameters:
            if parameter.kind in _VARIABLE:
                raise ValueError(
                    f"Task {task_name!r} takes {parameter}, but the parameters of a task must be known: name each one, "
                    "or take a list or a dict."
                )
        self._parameters = {parameter.name: parameter for parameter in parameters}
        self._positional = [p.name for p in parameters if p.kind in _POSITIONAL]
        self._required = [p.name for p in parameters if p.default is Parameter.empty]
        self._by_position = frozenset(p.name for p in parameters if p.kind is Parameter.POSITIONAL_ONLY)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters, in order. Needs no annotation to be resolved."""
        return tuple(self._parameters)

    # -- Arguments ---------------------------------------------------------------------------------------------------

    def dump_call(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Check the arguments of a call and give them the form in which they travel.

        Positional arguments stay positional. Defaults are not filled in: the replica's own apply.

        Returns:
            Arguments made of str, int, float, bool, None, list and dict alone (unchanged ones with pickle).

        Raises:
            TypeError: An argument is missing, unknown or of the wrong type; names the task and the parameter.
        """
        self._check_arity(args, kwargs, complete=True)
        return self._converted(args, kwargs, self._dumpers)

    def load_call(self, args: Sequence[Any], kwargs: dict[str, Any] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Turn the arguments of a received message into values of the parameters' types.

        Raises:
            TypeError: As `dump_call`: the sender may not have known the task.
        """
        self._check_arity(args, kwargs, complete=True)
        return self._converted(args, kwargs, self._loaders)

    def dump_partial(
        self, args: tuple[Any, ...], kwargs: dict[str, Any] | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Give some of the arguments the form in which they travel, for a Celery signature (`task.s(...)`).

        Positional arguments take the form of their own type, because Celery puts others in front of them: nobody
        knows yet which parameter they are for. All are checked when the signature is applied.

        Raises:
            TypeError: An argument is unknown, one too many, or has no such form.
        """
        self._check_arity(args, kwargs, complete=False)
        if self._pickled:
            return args, dict(kwargs or {})
        dumped = []
        for number, value in enumerate(args, 1):
            try:
                dumped.append(jsonable(value))
            except Unfit as exc:
                what = f"cannot take {_shown(value)} as positional argument {number} of a signature"
                problem = self._problem(what, exc)
                break
        else:
            return tuple(dumped), self._converted((), kwargs, self._dumpers)[1]
        raise problem

    def _converted(
        self, args: Sequence[Any], kwargs: dict[str, Any] | None, converters: dict[str, Convert]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        name, value = "", None
        positional: list[Any] = []
        named: dict[str, Any] = {}
        try:
            for name, value in zip(self._positional, args, strict=False):
                positional.append(converters[name](value))
            for name, value in (kwargs or named).items():
                named[name] = converters[name](value)
        except Unfit as exc:
            what = f"takes {self._expected(name)} for its parameter {name!r}, not {_shown(value)}"
            problem = self._problem(what, exc, "Pass a value of that type, or its JSON form")
        else:
            return tuple(positional), named
        raise problem  # outside of the handler: callers see their own stack and this, not pydantic's

    def _check_arity(self, args: Sequence[Any], kwargs: dict[str, Any] | None, complete: bool) -> None:
        """Bind like Python does.

        Raises:
            TypeError: As a call of the function would, with the task's name.
        """
        if len(args) > len(self._positional):
            names = f" ({', '.join(self._positional)})" if self._positional else ""
            raise TypeError(
                f"Task {self._task!r} takes {len(self._positional)} positional arguments{names}, but got {len(args)}: "
                "leave out the others, or pass them by name."
            )
        given = self._positional[: len(args)]
        for name in kwargs or ():
            if name not in self._parameters:
                raise TypeError(f"Task {self._task!r} has no parameter {name!r}: {self._nearest(name)}.")
            if name in self._by_position:
                raise TypeError(f"Task {self._task!r} takes its parameter {name!r} by position only: pass it first.")
            if complete and name in given:
                raise TypeError(f"Task {self._task!r} got two values for its parameter {name!r}: pass it once.")
        if complete and (missing := [n for n in self._required if n not in given and n not in (kwargs or ())]):
            names = ", ".join(map(repr, missing))
            raise TypeError(f"Task {self._task!r} is missing a value for its parameter {names}: pass one.")

    def _nearest(self, name: str) -> str:
        if near := difflib.get_close_matches(name, self._parameters, 1):
            return f"did you mean {near[0]!r}"
        return f"it takes {', '.join(self._parameters) or 'none'}"

    # -- Equal calls -------------------------------------------------------------------------------------------------

    def inputs(self, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments as they travel (see `dump_call`) by parameter, in one form for all calls that are equal.

        Defaults are filled in, and elements of sets are in order.
        """
        given = {**dict(zip(self._positional, args, strict=False)), **kwargs}
        for name, parameter in self._parameters.items():
            if name not in given:
                with contextlib.suppress(Unfit):  # a default need not fit the annotation
                    given[name] = self._dumpers[name](parameter.default)
            if name in given and isinstance(given[name], list) and self._is_set(name):
                given[name] = sorted(given[name], key=_text)
        return given

    def _is_set(self, name: str) -> bool:
        hint = self._hints.get(name)
        return (typing.get_origin(hint) or hint) in (set, frozenset, Set)

    @cached_property
    def interface(self) -> str:
        """Parameters and return value, as text that changes when one of their types does."""
        names = [*self._parameters, "return"]
        return "; ".join(f"{name}: {self._form(name)}" for name in names)

    def _form(self, name: str) -> str:
        codec = self._result if name == "return" else self._codecs[name]
        try:
            schema = json.dumps(codec.schema("#/$defs/{model}"), sort_keys=True, default=str)
        except Exception:  # not every type that pydantic can check has one
            schema = ""
        # Not where in memory something is: that differs between processes.
        return re.sub(r" at 0x[0-9a-f]+", "", f"{self._expected(name)} {schema}")

    # -- Result ------------------------------------------------------------------------------------------------------

    def dump_result(self, value: Any) -> Any:
        """Check what the function returned and give it the form in which it travels.

        Raises:
            TypeError: It does not fit the return annotation, or cannot be written; names the task and the annotation.
        """
        try:
            return self._result.dump(value)
        except Unfit as exc:
            if isinstance(value, Coroutine):
                problem = self._not_awaited(value)
            else:
                what = f"is annotated to return {self._expected('return')}, but returned {_shown(value)}"
                problem = self._problem(what, exc, "Return a value of that type, or correct the annotation")
        raise problem

    def _not_awaited(self, coroutine: Coroutine[Any, Any, Any]) -> TypeError:
        coroutine.close()  # else Python warns of it, too
        return TypeError(
            f"Task {self._task!r} returned a coroutine that nobody has awaited: make the task `async def` and return "
            "`await child(...)`, or call an async child with `flyte.run(child, ...).outputs()`."
        )

    def load_result(self, value: Any) -> Any:
        """Turn a received result into a value of the return type.

        Raises:
            TypeError: It does not fit: the task has another annotation there than here.
        """
        try:
            return self._result.load(value)
        except Unfit as exc:
            what = f"should have returned {self._expected('return')}, but {_shown(value)} arrived"
            problem = self._problem(what, exc, "Run the same version of the code on both sides")
        raise problem

    # -- Annotations -------------------------------------------------------------------------------------------------

    @cached_property
    def _hints(self) -> dict[str, Any]:
        try:
            return typing.get_type_hints(self._func, include_extras=True)
        except (NameError, AttributeError, TypeError, SyntaxError) as exc:
            problem = exc
        module = getattr(self._func, "__module__", None)
        raise TypeError(
            f"Task {self._task!r} has an annotation that cannot be resolved in module {module!r}: {problem}. Define or "
            "import what it names at the top level of that module, and not under `if TYPE_CHECKING`."
        )

    @cached_property
    def _codecs(self) -> dict[str, Codec]:
        return {name: self._codec(name, f"parameter {name!r}") for name in self._parameters}

    @cached_property
    def _dumpers(self) -> dict[str, Convert]:
        return {name: codec.dump for name, codec in self._codecs.items()}

    @cached_property
    def _loaders(self) -> dict[str, Convert]:
        return {name: codec.load for name, codec in self._codecs.items()}

    @cached_property
    def _result(self) -> Codec:
        return self._codec("return", "result")

    def _codec(self, name: str, what: str) -> Codec:
        try:
            return codec_for(self._hints.get(name, Any), self._pickled)
        except Unfit as exc:
            problem = self._problem(f"cannot use the annotation {self._expected(name)} of its {what}", exc)
        raise problem

    @cached_property
    def native_interface(self) -> NativeInterface:
        """The interface under Flyte's names."""
        hints = self._hints
        inputs = {n: (hints.get(n, Parameter.empty), p.default) for n, p in self._parameters.items()}
        return NativeInterface(inputs, _outputs(hints.get("return")))

    @cached_property
    def json_schema(self) -> dict[str, Any]:
        """JSON Schema of the arguments, as one object."""
        properties: dict[str, Any] = {}
        definitions: dict[str, Any] = {}
        for name in self._parameters:
            schema = self._codecs[name].schema("#/$defs/{model}")
            own = schema.pop("$defs", {})
            if any(definitions.get(key, value) != value for key, value in own.items()):
                # Another parameter has another class of the same name.
                schema = self._codecs[name].schema(f"#/$defs/{name}.{{model}}")
                own = {f"{name}.{key}": value for key, value in schema.pop("$defs").items()}
            definitions |= own
            properties[name] = schema
        schema = {"type": "object", "properties": properties, "required": list(self._required)}
        return schema | {"$defs": definitions} if definitions else schema

    # -- Messages ----------------------------------------------------------------------------------------------------

    def _expected(self, name: str) -> str:
        hint = self._hints.get(name, Any)
        return "a JSON value" if hint is Any else inspect.formatannotation(hint)

    def _problem(self, what: str, unfit: Unfit, fix: str = ANNOTATE) -> TypeError:
        return TypeError(f"Task {self._task!r} {what}: {unfit.reason}. {unfit.fix or fix}.")


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _outputs(annotation: Any) -> dict[str, Any]:
    if annotation is None or annotation is types.NoneType:
        return {}
    if isinstance(annotation, type) and issubclass(annotation, tuple) and hasattr(annotation, "_fields"):
        return dict(typing.get_type_hints(annotation))
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is tuple and Ellipsis not in arguments:
        return {f"o{number}": argument for number, argument in enumerate(arguments)}
    return {"o0": annotation}


def _shown(value: Any) -> str:
    text = _repr.repr(value)
    return f"{text[:117] + '...' if len(text) > 120 else text} ({type(value).__name__})"
