"""`attach`: an engine on a pipeline that nobody changed, through the driver that can follow it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, cast

from erta_framework.calibration import Profile
from erta_framework.errors import RegistryError
from erta_framework.optional_dependencies import MissingExtraError
from erta_framework.plugins import FIRST_PARTY, Engine, Policy, drivers
from erta_framework.session import Trace


class Attached(AbstractContextManager["Attached"], Protocol):
    """What `attach` gives: the policies are active within its `with` block."""

    engine: Engine

    def detach(self) -> None:
        """Put back the very same attributes and drop every state; safe to call twice."""
        ...

    @property
    def traces(self) -> list[Trace]:
        """One trace a finished (or aborted) request, oldest first."""
        ...

    @property
    def newest(self) -> Trace | None:
        """The trace of the request that runs, else of the last one; None before the first."""
        ...

    @property
    def emitted(self) -> list[Profile]:
        """Profiles that profilers emitted, one a request."""
        ...

    def profile(self) -> Profile:
        """The emitted profiles of all requests so far, merged."""
        ...

    def summary(self) -> str:
        """Real against reused calls of every request, with the reasons."""
        ...

    def plot(self, path: str | Path, request: int = -1) -> Path:
        """Draw which steps of a request were computed or reused."""
        ...


def attach(
    pipe: Any,
    policies: str | Path | Policy | Engine | Sequence[Any],
    *,
    driver: str = "diffusers",
    **options: Any,
) -> Attached:
    """Attach policies to a pipeline that nobody changed, for as long as a `with` block lasts.

    Args:
        pipe: The pipeline, such as a diffusers one.
        policies: A policy's name, a policy, a list of either (or of `{name: options}`), a path to
            a configuration file, or an `Engine`.
        driver: Entry of the catalogue `erta_framework.drivers` that can follow this pipeline.
        options: Options of the policy when `policies` is a name (`profile=...`, `calls=...`), and
            those of the driver (`networks=[...]`, `seam="trunk"`).

    Raises:
        MissingExtraError: What the driver needs is not installed; names the extra.
        RegistryError: No distribution provides the driver, or it cannot be imported.
        CapabilityError: The driver cannot follow this pipeline, or not with these policies.

    Example:
        >>> with attach(pipe, "ertacache", profile="p.safetensors", calls=25) as run:
        ...     pipe("a cat")  # doctest: +SKIP
        >>> print(run.summary())  # doctest: +SKIP
    """
    return cast(Attached, load_driver(driver)(pipe, policies, **options))


def load_driver(name: str) -> Any:
    """An entry of the catalogue of drivers.

    Ours are named after the extra that brings what they need: `diffusers`, `diffusers-run`.

    Raises:
        MissingExtraError: What one of our drivers imports is not installed.
        RegistryError: No distribution provides it, or its import failed otherwise.
    """
    catalogue = drivers()
    try:
        return catalogue.load(name)
    except RegistryError as error:
        cause = error.__cause__
        ours = any(e.name == name and e.distribution == FIRST_PARTY for e in catalogue.entries())
        if not ours or not isinstance(cause, ImportError) or isinstance(cause, MissingExtraError):
            raise
        extra = name.partition("-")[0]
        raise MissingExtraError(
            f"the driver {name!r} cannot be imported ({cause}); pip install "
            f'"erta-framework[{extra}]"'
        ) from cause
