"""`choose`: published constants for a recognised model, else a rule that needs no profile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from erta_framework import Policy
from erta_framework.errors import PolicyError
from erta_framework.plugins import Choice, PipelineFacts
from erta_policies.automatic._few_steps import refuse_few_steps
from erta_policies.automatic._models import Recognised, recognise
from erta_policies.constants import read_published
from erta_policies.forecast import Forecaster
from erta_policies.magcache import MagCache
from erta_policies.meancache import MeanCache
from erta_policies.shared import PlanBudget, read_quality
from erta_policies.taylorseer import RefreshInterval
from erta_policies.teacache import TeaCache

MEANCACHE_STEPS, MEANCACHE_CALLS = 50, 25
"""The released tables are for 50 steps; that of 25 calls is the most careful one."""


BY_QUALITY = MappingProxyType({"high": 2.0, "medium": 3.0, "low": 4.0})
"""Steps a network call that a named quality stands for without a profile. Ours, and a guess."""
DEFAULT = "high"
RULE = "A line through the last two outputs (TaylorSeer's), at steps that are spread evenly,"


def choose(facts: PipelineFacts, budget: Mapping[str, Any]) -> Choice:
    """Choose policies for a pipeline.

    Args:
        facts: What is known of the pipeline.
        budget: What was asked for, such as `{"speedup": 2.0}`; empty where nothing was.

    Raises:
        CapabilityError: The model makes only a few steps.
        PolicyError: The budget is none, or needs a profile.

    Example:
        >>> [part.name for part in choose(PipelineFacts("MyPipeline"), {"calls": 20}).policies]
        ['refresh_interval', 'forecaster']
    """
    refuse_few_steps(facts)
    if budget:
        PlanBudget(**budget)  # refuses what is none
    known = recognise(facts)
    missed: list[str] = []
    for policy, seam, why in find_published(known, facts, budget) if known is not None else ():
        if facts.seam not in (None, seam):
            missed.append(f"{why} at seam={seam!r}, and seam={facts.seam!r} was asked for")
        elif problem := find_problem(policy, seam, facts):
            missed.append(f"{why}, but {problem}")
        else:
            assert known is not None
            said = f"{known.model.model}, recognised {known.how}: {why}"
            return Choice((policy,), said, seam)
    return choose_without_profile(facts, budget, known, missed)


def find_published(
    known: Recognised, facts: PipelineFacts, budget: Mapping[str, Any]
) -> Iterator[tuple[Policy, str, str]]:
    """Policies with published constants of the model, the seam of each and what it is, best first.

    Constants are for their own settings. Only a released table of exactly so many calls answers a
    number of calls.
    """
    constants = known.model.constants
    if (name := constants.get("meancache")) and facts.num_steps == MEANCACHE_STEPS:
        calls = find_calls(budget, MEANCACHE_STEPS)
        if (policy := find_table(name, calls)) is not None:
            yield policy, "latent", "MeanCache released a table of steps for it"
    if budget and "quality" not in budget:
        return
    if budget and read_quality(budget["quality"]) < read_quality(DEFAULT):
        return
    if name := constants.get("magcache"):
        source = read_published("magcache", name)["repository"]
        yield MagCache(model=name), "trunk", f"MagCache published its ratios for it ({source})"
    if name := constants.get("teacache"):
        source = read_published("teacache", name)["repository"]
        yield TeaCache(model=name), "trunk", f"TeaCache published its polynomial for it ({source})"


def find_table(name: str, calls: int) -> MeanCache | None:
    """MeanCache with its released table of so many calls; None if there is none."""
    try:
        return MeanCache(model=name, calls=calls)
    except PolicyError:
        return None


def find_calls(budget: Mapping[str, Any], num_steps: int) -> int:
    """The network calls that a budget means; 0 where it means none in particular."""
    if not budget:
        return MEANCACHE_CALLS
    if "quality" in budget:
        return PlanBudget(speedup=BY_QUALITY[budget["quality"]]).calls_for(num_steps)
    named = "calls" in budget or "speedup" in budget
    return PlanBudget(**budget).calls_for(num_steps) if named else 0


def find_problem(policy: Policy, seam: str, facts: PipelineFacts) -> str:
    """Why a policy cannot run on the networks of a pipeline; empty if it can."""
    signals = {name for name in policy.traits.requires if name.startswith("signal:")}
    for part in policy.parts():
        signals |= {name for name in part.traits.requires if name.startswith("signal:")}
    for component, network in facts.networks.items():
        if seam not in network.seams:
            return f"{component} ({network.kind}) has no {seam}"
        if missing := sorted(signals - network.signals):
            return f"{component} ({network.kind}) does not offer {', '.join(missing)}"
    return ""


def choose_without_profile(
    facts: PipelineFacts,
    budget: Mapping[str, Any],
    known: Recognised | None,
    missed: list[str],
) -> Choice:
    """The rule that needs no profile, for the budget.

    Raises:
        PolicyError: The budget needs a profile, or is none.
    """
    asked, guess = dict(budget), ""
    if not budget or "quality" in budget:
        quality = asked.pop("quality", DEFAULT)
        read_quality(quality)
        asked["speedup"] = BY_QUALITY[quality]
        guess = (
            f"; {asked['speedup']:g} steps a call stand for quality={quality!r}, unmeasured here"
        )
    policies = make_rule(asked)
    if known is None:
        reason = f"no constants ship for {describe(facts)}"
    elif missed:
        reason = f"{known.model.model}, recognised {known.how}: {'; '.join(missed)}"
    else:
        reason = (
            f"{known.model.model}, recognised {known.how}: constants ship for it, each for its own "
            "number of calls, which is not what was asked for"
        )
    said = f"{reason}. {RULE} needs no profile{guess}"
    return Choice(policies, said, facts.seam or "latent")


def make_rule(budget: Mapping[str, Any]) -> tuple[Policy, ...]:
    """A rule that needs no profile, for so many calls.

    Computed steps spread evenly over the run, its first and last among them, and between them
    TaylorSeer's line through the last two computed outputs. The guide to diffusers has what it was
    chosen by.

    Raises:
        PolicyError: The budget needs a profile, or is none.
    """
    every = RefreshInterval(budget=budget, first=1, counting="even")
    return every, Forecaster(basis="taylor", order=1, over="index", what="output")


def describe(facts: PipelineFacts) -> str:
    """A pipeline in words, by its networks and its name."""
    kinds = " and ".join(sorted({network.kind for network in facts.networks.values()}))
    named = f" ({facts.names[0]})" if facts.names else ""
    return f"{kinds or facts.pipeline}{named}"
