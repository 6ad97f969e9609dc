"""`Environment`: what task and app environments have in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .image import Image
from .names import check_environment_name
from .resources import Resources
from .secret import Secret, SecretRequest, secrets_of
from .variables import check_env_vars

#: Longest description that is kept, in characters.
MAX_DESCRIPTION = 255


@dataclass
class Environment:
    """What task and app environments have in common. Use `TaskEnvironment`.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: The name is not valid.
    """

    name: str
    """Lower-case words of letters and digits, joined by `-` or `_`. Also the name of the environment's queue."""

    depends_on: list[Environment] = field(default_factory=list)
    """Environments that are deployed together with this one."""

    pod_template: Any = None
    """For Kubernetes: the name of a pod template, its manifest as a dict, or an object with a `pod_spec`."""

    description: str | None = None
    """For people; cut after 255 characters."""

    secrets: SecretRequest | None = None
    """Secrets that the tasks read: found by the worker, set in its replicas before your modules are imported."""

    env_vars: dict[str, str] | None = None
    """Environment variables of the replicas, set before any of your modules is imported."""

    resources: Resources | None = None
    """What one replica needs. None: whatever there is."""

    interruptible: bool = False
    """Whether replicas may run on machines that can be taken away."""

    image: str | Image | None = "auto"
    """The container image that replicas are deployed with. `"auto"`: this project's own."""

    include: tuple[str, ...] = ()
    """Files that belong to the code although no module imports them."""

    service_account: str | None = None
    """For Kubernetes: the service account of the pods."""

    def __post_init__(self) -> None:
        check_environment_name(self.name)
        if isinstance(self.depends_on, str | Environment) or not _all(self.depends_on, Environment):
            raise self._wrong("depends_on", "a list of environments")
        self.depends_on = list(self.depends_on)
        if not _is_pod_template(self.pod_template):
            raise self._wrong("pod_template", "the name of a pod template, a dict, or an object with a pod_spec")
        if not isinstance(self.description, str | None):
            raise self._wrong("description", "a str")
        if self.description is not None:
            self.description = self.description[:MAX_DESCRIPTION]
        several = isinstance(self.secrets, list) and _all(self.secrets, str | Secret)
        if not isinstance(self.secrets, str | Secret | None) and not several:
            raise self._wrong("secrets", "a key, a Secret, or a list of those")
        secrets_of(self.secrets)
        if not isinstance(self.env_vars, dict | None):
            raise self._wrong("env_vars", "a dict of names to values")
        check_env_vars(f"Environment {self.name!r}", self.env_vars or {})
        if not isinstance(self.resources, Resources | None):
            raise self._wrong("resources", "Resources(...)")
        if not isinstance(self.image, str | Image | None):
            raise self._wrong("image", "a str or an Image")
        if isinstance(self.include, str) or not _all(self.include, str):
            raise self._wrong("include", "a list or tuple of paths as str")
        self.include = tuple(self.include)
        if not isinstance(self.service_account, str | None):
            raise self._wrong("service_account", "a str")

    def _wrong(self, name: str, wanted: str) -> TypeError:
        value = getattr(self, name)
        return TypeError(
            f"Environment {self.name!r} got {name}={value!r} ({type(value).__name__}), but takes {wanted}: pass that."
        )

    def add_dependency(self, *env: Environment) -> None:
        """Add environments that are deployed together with this one.

        Raises:
            TypeError: An argument is no environment.
            ValueError: An argument is this environment.
        """
        for each in env:
            if not isinstance(each, Environment):
                raise TypeError(f"Environment {self.name!r} cannot depend on {each!r}: pass an environment.")
            if each is self:
                raise ValueError(f"Environment {self.name!r} cannot depend on itself: leave it out.")
        self.depends_on.extend(each for each in env if not any(each is known for known in self.depends_on))


def _all(values: Any, kind: Any) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(value, kind) for value in values)


def _is_pod_template(value: object) -> bool:
    return value is None or isinstance(value, str | dict) or hasattr(value, "pod_spec")
