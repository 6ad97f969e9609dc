"""Where workers find secrets, in which order, and what they say of one that is missing."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import flyte_celery as flyte
from flyte_celery.secret import MOUNT, Secret
from flyte_celery.secret_sources import SecretError, SecretProvider, Secrets, Sources, provider_of, set_provider


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "secrets"
    folder.mkdir()
    return folder


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    folder = tmp_path / "mount"
    folder.mkdir()
    return folder


def resolve(
    secret: Secret,
    files: Path,
    *,
    provider: SecretProvider | None = None,
    environ: Mapping[str, str] | None = None,
    mount: Path = MOUNT,
) -> Secrets:
    return Sources(provider, files, environ or {}, mount).resolve([secret])


# -- Sources ---------------------------------------------------------------------------------------------------------


def test_the_most_deliberate_source_wins(files: Path) -> None:
    secret = Secret("k")
    environ = {"K": "from the environment"}
    assert resolve(secret, files, environ=environ).environ == {"K": "from the environment"}
    (files / "k").write_text("from a file\n")
    assert resolve(secret, files, environ=environ).environ == {"K": "from a file"}
    found = resolve(secret, files, environ=environ, provider=lambda _: "from the provider")
    assert found.environ == {"K": "from the provider"}
    assert found.values == ("from the provider",)
    assert resolve(secret, files, environ=environ, provider=lambda _: None).environ == {"K": "from a file"}


@pytest.mark.parametrize("name", ["g/k", "g_k"])
def test_a_group_is_a_folder_or_part_of_the_name(files: Path, name: str) -> None:
    (files / name).parent.mkdir(exist_ok=True)
    (files / name).write_text("value")
    assert resolve(Secret("k", "g"), files).environ == {"G_K": "value"}


def test_the_provider_is_told_which_secret() -> None:
    asked: list[Secret] = []
    secret = Secret("a.b", group="g", as_env_var="X")
    Sources(lambda s: asked.append(s) or b"bytes", Path("/nowhere"), {}).resolve([secret])
    assert asked == [secret]


@pytest.mark.parametrize(
    ("content", "value"),
    [(b"v", "v"), (b"v\n", "v"), (b"v\r\n", "v"), (b"v\n\n", "v\n"), (b" v ", " v "), ("ö".encode(), "ö")],
)
def test_one_newline_at_the_end_is_the_editors(files: Path, content: bytes, value: str) -> None:
    (files / "k").write_bytes(content)
    assert resolve(Secret("k"), files).environ == {"K": value}


@pytest.mark.parametrize("key", ["../outside", "/etc/hostname", "a/../../outside", "", "x\0"])
def test_no_key_leads_out_of_the_directory(files: Path, key: str) -> None:
    (files.parent / "outside").write_text("value")
    with pytest.raises(SecretError, match="is missing"):
        resolve(Secret(key, as_env_var="X"), files)


@pytest.mark.parametrize("empty", ["", "\n"])
def test_an_empty_value_is_none(files: Path, empty: str) -> None:
    (files / "k").write_text(empty)
    with pytest.raises(SecretError, match="is missing"):
        resolve(Secret("k"), files, environ={"K": ""}, provider=lambda _: "")


def test_a_missing_secret_says_where_it_was_looked_for_and_how_to_give_it(files: Path) -> None:
    with pytest.raises(SecretError) as missing:
        resolve(Secret("api-key", "openai"), files)
    text = str(missing.value)
    assert "The secret 'api-key' of group 'openai' is missing" in text
    assert "the app has no secret provider" in text
    assert f"there is no file {files}/openai/api-key or {files}/openai_api-key" in text
    assert "the environment variable OPENAI_API_KEY is not set" in text
    assert f"set OPENAI_API_KEY for the worker, put it into {files}/openai/api-key, or return it from" in text
    with pytest.raises(SecretError, match="provider does not know it"):
        resolve(Secret("k"), files, provider=lambda _: None)


def test_a_provider_that_fails_is_named(files: Path) -> None:
    def fail(secret: Secret) -> str:
        raise ConnectionError("vault is away")

    with pytest.raises(SecretError, match="provider failed for The secret 'k': ConnectionError: vault is away"):
        resolve(Secret("k"), files, provider=fail)


def test_what_a_provider_returns_has_to_be_text_and_is_not_shown(files: Path) -> None:
    value: Any = ["hidden"]
    with pytest.raises(SecretError, match="returned a list") as refused:
        resolve(Secret("k"), files, provider=lambda _: value)
    assert "hidden" not in str(refused.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_cannot_be_read_is_named(files: Path) -> None:
    (files / "k").touch(mode=0)
    with pytest.raises(SecretError, match=r"cannot be read from .*/k"):
        resolve(Secret("k"), files)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a\0b"])
def test_what_is_no_text_cannot_be_a_variable_and_is_not_shown(files: Path, content: bytes) -> None:
    (files / "k").write_bytes(content)
    with pytest.raises(SecretError, match="is no text, so it cannot be the environment variable K") as refused:
        resolve(Secret("k"), files)
    assert refused.value.__cause__ is None


def test_two_secrets_for_one_variable_are_refused(files: Path) -> None:
    with pytest.raises(SecretError, match="Two secrets are to be the environment variable A_B"):
        Sources(lambda _: "value", files, {}).resolve([Secret("a-b"), Secret("b", "a")])


def test_secrets_are_never_shown(files: Path) -> None:
    secrets = resolve(Secret("k"), files, provider=lambda _: "hidden value")
    assert "hidden" not in f"{secrets!r} {secrets}"
    assert "hidden" not in repr(Sources(None, files, {"K": "hidden"}))


# -- Mounted ones ----------------------------------------------------------------------------------------------------


def test_a_mounted_secret_that_is_there_is_used_as_it_is(files: Path, mount: Path) -> None:
    (mount / "k").write_bytes(b"\xffbinary\n")
    found = resolve(Secret("k", mount=MOUNT), files, mount=mount)
    assert found.environ == {}
    assert found.values == ("\udcffbinary\n",)
    assert (mount / "k").read_bytes() == b"\xffbinary\n"


def test_a_mounted_secret_may_be_a_variable_too(files: Path, mount: Path) -> None:
    (mount / "k").write_text("value\n")
    assert resolve(Secret("k", mount=MOUNT, as_env_var="X"), files, mount=mount).environ == {"X": "value"}


@pytest.mark.parametrize("before", [None, "older"])
def test_what_another_source_has_is_put_into_place_for_its_owner_alone(
    files: Path, mount: Path, before: str | None
) -> None:
    place = mount / "g" / "k"
    if before is not None:
        place.parent.mkdir()
        place.write_text(before)
    resolve(Secret("k", "g", mount=MOUNT), files, mount=mount, environ={"G_K": "value"})
    assert place.read_text() == "value"
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert [path.name for path in place.parent.iterdir()] == ["k"]


def test_a_mounted_secret_needs_a_directory_that_somebody_has_made(files: Path, tmp_path: Path) -> None:
    """To put secrets on a disk is for the operator to decide."""
    nowhere = tmp_path / "nowhere"
    with pytest.raises(SecretError, match=f"cannot be written to {nowhere}/k .*: mount it there, or make"):
        resolve(Secret("k", mount=MOUNT), files, mount=nowhere, environ={"K": "value"})
    assert not nowhere.exists()


def test_a_missing_mounted_secret_is_named(files: Path, mount: Path) -> None:
    (mount / "k").touch()
    with pytest.raises(SecretError, match=f"'k' is missing: .*put it into {mount}/k, or return it"):
        resolve(Secret("k", mount=MOUNT), files, mount=mount)
    with pytest.raises(SecretError, match="its name is no path"):
        resolve(Secret("../k", mount=MOUNT), files, mount=mount)


# -- The app's provider ----------------------------------------------------------------------------------------------


class App:
    """Stands for a Celery app."""


def test_an_app_keeps_its_provider() -> None:
    app, other = App(), App()
    provider = {"k": "v"}.get
    set_provider(app, provider)  # type: ignore[arg-type]
    set_provider(app, None)
    assert provider_of(app) is provider
    assert provider_of(other) is None


def test_what_is_no_function_is_a_type_error() -> None:
    value: Any = "vault"
    with pytest.raises(TypeError, match="secret_provider is a str: give a function"):
        set_provider(App(), value)

    async def ask(secret: Secret) -> str:
        return ""

    coroutine: Any = ask
    with pytest.raises(TypeError, match="is `async def`"):
        set_provider(App(), coroutine)


# -- Environments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_vars", [{}, {"A": "1"}, {"A": 1}, {"a.b": 1.5}, {"A": True}, {"A": ""}])
def test_these_variables_are_possible(env_vars: Any) -> None:
    assert flyte.TaskEnvironment("variables", env_vars=env_vars).env_vars is env_vars


@pytest.mark.parametrize(
    ("env_vars", "error", "message"),
    [
        ({5: "x"}, TypeError, "with the name 5"),
        ({"": "x"}, ValueError, "with the name ''"),
        ({"A=B": "x"}, ValueError, "with the name 'A=B'"),
        ({"A\0": "x"}, ValueError, "which no environment variable can have"),
        ({"A": None}, TypeError, "a NoneType for 'A'"),
        ({"A": ["hidden"]}, TypeError, "a list for 'A'"),
        ({"A": "hid\0den"}, ValueError, "zero byte for 'A'"),
    ],
)
def test_a_variable_that_no_process_can_have_is_refused_when_it_is_defined(
    env_vars: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"Environment 'variables' got .*{message}") as refused:
        flyte.TaskEnvironment("variables", env_vars=env_vars)
    assert "hid" not in str(refused.value)
    task = flyte.TaskEnvironment("overridden").task(abs)
    with pytest.raises(error, match=rf"override\(\) of 'overridden.abs' got .*{message}"):
        task.override(env_vars=env_vars)


@pytest.mark.parametrize("secrets", ["a.b", ["k", "1k"]])
def test_a_key_that_makes_no_variable_is_refused_when_it_is_asked_for(secrets: Any) -> None:
    with pytest.raises(ValueError, match="is no environment variable"):
        flyte.TaskEnvironment("secretive", secrets=secrets)
