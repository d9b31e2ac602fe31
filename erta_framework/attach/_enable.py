"""`enable` and `disable`: policies on a pipeline without a `with` block."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from erta_framework.attach._attach import Attached, attach
from erta_framework.console import make_console
from erta_framework.errors import InputError
from erta_framework.plugins import Engine, Policy

log = logging.getLogger(__name__)

# held by the patches on the pipeline, so an entry goes when its pipeline does
_enabled: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def enable(
    pipe: Any,
    policies: str | Path | Policy | Engine | Sequence[Any] | None = None,
    *,
    driver: str = "diffusers",
    quiet: bool = False,
    **options: Any,
) -> Attached:
    """Run a pipeline under policies from now on, until `disable(pipe)`.

    Without policies they are chosen: published constants if the pipeline's model is one that they
    were published for, else a rule that needs no profile. What was chosen, why, and what a request
    will cost is printed.

    Args:
        pipe: The pipeline, such as a diffusers one.
        policies: As for `attach`.
        driver: As for `attach`.
        quiet: Whether to print nothing; it is logged all the same.
        options: As for `attach`: a budget such as `calls=20`, `speedup=2` or `quality="high"`, and
            options of the policy and of the driver.

    Returns:
        What `with attach(...) as run` gives: traces, summary, report.

    Raises:
        CapabilityError: The driver cannot drive this pipeline, or nothing was named and the model
            makes only a few steps.
        ConflictError: The pipeline has policies already.
        MissingExtraError: What the driver needs is not installed.

    Example:
        >>> run = enable(pipe)  # doctest: +SKIP
        >>> pipe("a cat")  # doctest: +SKIP
        >>> disable(pipe)  # doctest: +SKIP
    """
    attached = attach(pipe, policies, driver=driver, **options)
    attached.__enter__()
    _enabled[id(pipe)] = attached
    said = attached.explain()
    log.info("%s", said)
    if not quiet:
        make_console(stderr=True).print(said, soft_wrap=True)
    return attached


def disable(pipe: Any) -> None:
    """Take the policies of `enable` off a pipeline; its own methods are put back.

    Raises:
        InputError: Nothing is enabled on this pipeline.

    Warns:
        UnusedWarning: Nothing was reused, although policies were asked to.
    """
    attached = _enabled.pop(id(pipe), None)
    if attached is None:
        raise InputError(
            f"nothing is enabled on this {type(pipe).__name__}; erta.disable takes the pipeline "
            "that erta.enable got, and leaves what `with erta.attach(...)` attached"
        )
    attached.__exit__(None, None, None)
