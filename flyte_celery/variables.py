"""Environment variables that an environment's processes are given: what a name and a value may be."""

from __future__ import annotations

from collections.abc import Mapping


def check_env_vars(where: str, env_vars: Mapping[str, object]) -> None:
    """Refuse what no process can be given.

    Args:
        where: Who asks for them, as a message begins: `"Environment 'shop'"`.
        env_vars: Values by names. Numbers are values too; they become text.

    Raises:
        TypeError: A name is no string, or a value neither a string nor a number. Values are not shown.
        ValueError: A name is empty or contains `=`, or one of both contains a zero byte.
    """
    for name, value in env_vars.items():
        if not isinstance(name, str):
            raise TypeError(f"{where} got env_vars with the name {name!r} ({type(name).__name__}): use a string.")
        if not name or "=" in name or "\0" in name:
            raise ValueError(
                f"{where} got env_vars with the name {name!r}, which no environment variable can have: use letters, "
                "digits and '_', such as 'LOG_LEVEL'."
            )
        if not isinstance(value, str | int | float):
            raise TypeError(
                f"{where} got a {type(value).__name__} for {name!r} in env_vars: give its value as text, or leave the "
                "variable out."
            )
        if isinstance(value, str) and "\0" in value:
            raise ValueError(f"{where} got a value with a zero byte for {name!r} in env_vars: take it out.")


def as_environ(env_vars: Mapping[str, object] | None) -> dict[str, str]:
    """The variables as a process gets them: with all values as text."""
    return {name: str(value) for name, value in (env_vars or {}).items()}
