"""What is asked of whoever chooses policies for a pipeline: facts of the pipeline, and the choice.

The core names no policy. A function of the group `erta_framework.defaults` chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from erta_framework.plugins._policy import Policy
from erta_framework.plugins._registry import Catalogue, check_function

NO_CONFIG: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """One denoising network of a pipeline.

    Attributes:
        kind: Name of its class.
        config: Its configuration.
        seams: Where its outputs can be reused: `"latent"`, and `"trunk"` where it has one.
        signals: What it offers at the trunk, such as `"signal:modulated_input"`.
        adapters: Names of its active adapters.
    """

    kind: str
    config: Mapping[str, Any] = field(default_factory=lambda: NO_CONFIG)
    seams: frozenset[str] = frozenset({"latent"})
    signals: frozenset[str] = frozenset()
    adapters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PipelineFacts:
    """What is known of a pipeline before its first request.

    Attributes:
        pipeline: Name of its class.
        networks: Its denoising networks, by component name.
        names: Where it and its networks were loaded from: hub ids or folders.
        scheduler: Name of its scheduler's class.
        num_steps: Steps of a request; before one, those that the pipeline takes by default. None
            where neither is known.
        seam: The seam that the user asked for; None leaves it open.
        distilled: Whether its configuration says that it was distilled to a few steps.
    """

    pipeline: str
    networks: Mapping[str, NetworkFacts] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    scheduler: str = ""
    num_steps: int | None = None
    seam: str | None = None
    distilled: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """Policies that were chosen for a pipeline, and why.

    Attributes:
        policies: The policies, in call order.
        why: The reason, in a sentence or two for the user.
        seam: What a reused step leaves out.
    """

    policies: tuple[Policy, ...]
    why: str
    seam: str = "latent"


Chooser = Callable[[PipelineFacts, Mapping[str, Any]], Choice]
"""Chooses policies for a pipeline and a budget such as `{"speedup": 2.0}`, which may be empty."""


def load_chooser() -> Chooser:
    """The function that chooses policies where none is named.

    It is the entry `chooser` of the group `erta_framework.defaults`, of first-party distributions
    alone: installing a package changes no choice.

    Raises:
        RegistryError: There is none, or it does not load.
    """
    check = check_function("chooses policies for a pipeline")
    chooser: Chooser = Catalogue("erta_framework.defaults", check, only=()).load("chooser")
    return chooser
