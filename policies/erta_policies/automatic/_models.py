"""Recognises a pipeline's model by class, configuration and name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from erta_framework.plugins import PipelineFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model that constants were published for, and what it is known by.

    Attributes:
        model: Its name.
        name: Regular expression that its hub id or folder holds.
        network: Class of its networks.
        config: What their configuration must say.
        constants: The name under which each method has its constants.
        pipeline: Class of its pipeline; empty where any will do.
        networks: How many networks it has.
        by_name: Whether only its name tells it from others.
    """

    model: str
    name: str
    network: str
    config: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, str] = field(default_factory=dict)
    pipeline: str = ""
    networks: int = 1
    by_name: bool = False

    def fits(self, facts: PipelineFacts) -> bool:
        """Whether classes and configuration are those of this model."""
        return (
            len(facts.networks) == self.networks
            and self.pipeline in ("", facts.pipeline)
            and all(
                network.kind == self.network
                and all(
                    key in network.config and network.config[key] == value
                    for key, value in self.config.items()
                )
                for network in facts.networks.values()
            )
        )

    def is_named(self, facts: PipelineFacts) -> bool:
        """Whether a name of the pipeline is its own."""
        return any(re.search(self.name, normalise(name)) for name in facts.names)


@dataclass(frozen=True, slots=True)
class Recognised:
    """A model, and how it was recognised, in words."""

    model: KnownModel
    how: str


@cache
def list_known() -> tuple[KnownModel, ...]:
    """The models that constants were published for, as the package's file lists them."""
    text = (files("erta_policies.automatic") / "models.json").read_text(encoding="utf-8")
    return tuple(KnownModel(**entry) for entry in json.loads(text))


def recognise(facts: PipelineFacts) -> Recognised | None:
    """The model of a pipeline; None where it is none of the known, or cannot be told apart.

    Class and configuration must fit in any case, so that a name alone decides nothing. A name that
    fits comes before a configuration that fits.

    Example:
        >>> recognise(PipelineFacts("MyPipeline")) is None
        True
    """
    fitting = [known for known in list_known() if known.fits(facts)]
    named = [known for known in fitting if known.is_named(facts)]
    if named:
        # "cogvideox1.5-5b-i2v" holds "cogvideox1.5-5b" as well
        best = max(named, key=lambda known: len(known.name))
        return Recognised(best, f"by its name, {find_name(best, facts)!r}, and its configuration")
    told = [known for known in fitting if not known.by_name]
    if len(told) != 1:
        return None
    said = f"; its name, {facts.names[0]!r}, says nothing" if facts.names else ""
    return Recognised(told[0], f"by the configuration of its {told[0].network}{said}")


def find_name(known: KnownModel, facts: PipelineFacts) -> str:
    """The name of the pipeline that is the model's."""
    return next(name for name in facts.names if re.search(known.name, normalise(name)))


def normalise(name: str) -> str:
    """A hub id or folder as the patterns expect it.

    Example:
        >>> normalise("Wan-AI/Wan2.1_T2V-1.3B-Diffusers")
        'wan2.1-t2v-1.3b'
    """
    # a folder of the hub's cache: models--owner--name/snapshots/revision
    cached = re.search(r"models--[^/\\]+?--([^/\\]+)", name)
    last = cached.group(1) if cached else re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    return re.sub(r"[-_ ]+", "-", last.lower()).removesuffix("-diffusers")
