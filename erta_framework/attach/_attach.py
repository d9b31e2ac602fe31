"""`attach`: policies on an unmodified pipeline, through a driver of the catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, cast

from erta_framework.calibration import Profile
from erta_framework.plugins import Engine, Policy, drivers, load_with_extra
from erta_framework.session import Trace


class Attached(AbstractContextManager["Attached"], Protocol):
    """A pipeline with policies, which are active within its `with` block."""

    engine: Engine

    def detach(self) -> None:
        """Put the pipeline's own attributes back and drop all state; safe to call twice."""
        ...

    @property
    def traces(self) -> list[Trace]:
        """One trace for each finished or aborted request, oldest first."""
        ...

    @property
    def newest(self) -> Trace | None:
        """The trace of the running request, else of the last one; None before the first."""
        ...

    @property
    def emitted(self) -> list[Profile]:
        """The profiles that profilers emitted, one for each request."""
        ...

    def profile(self) -> Profile:
        """The emitted profiles of all requests so far, merged."""
        ...

    def summary(self) -> str:
        """Computed and reused calls of every request, with the reasons."""
        ...

    def explain(self) -> str:
        """What is on: the policies, what every request will cost, and why they were chosen."""
        ...

    def plot(self, path: str | Path, request: int = -1) -> Path:
        """Draw which steps of a request were computed or reused."""
        ...


def attach(
    pipe: Any,
    policies: str | Path | Policy | Engine | Sequence[Any] | None = None,
    *,
    driver: str = "diffusers",
    **options: Any,
) -> Attached:
    """Attach policies to an unmodified pipeline, for as long as a `with` block lasts.

    Args:
        pipe: The pipeline, such as a diffusers one.
        policies: A policy's name, a policy, a list of either (or of `{name: options}`), a path to
            a configuration file, or an `Engine`. Without any the driver chooses, if it can;
            `run.explain()` says what, and why.
        driver: Name of an entry of `erta_framework.drivers` that can drive this pipeline.
        options: A budget for the first policy that takes one (`calls=20`, `speedup=2`,
            `quality="high"`), options of the policy when `policies` is a name (`profile=...`), and
            those of the driver (`networks=[...]`, `seam="trunk"`).

    Raises:
        MissingExtraError: What the driver needs is not installed; names the extra.
        RegistryError: No distribution provides the driver, or it cannot be imported.
        CapabilityError: The driver cannot drive this pipeline, or not with these policies.

    Example:
        >>> policy = MyPolicy(threshold=0.1)  # doctest: +SKIP
        >>> with attach(pipe, policy) as run:
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
    return load_with_extra(drivers(), name, extra=name.partition("-")[0], what="driver")
