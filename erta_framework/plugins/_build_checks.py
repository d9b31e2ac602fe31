"""What an engine checks once, before it runs anything: owners, settings and traits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from erta_framework.errors import CapabilityError, ConflictError, ErtaError, PolicyError
from erta_framework.modules import Selection
from erta_framework.plugins._hooks import find_hooks, is_wrapper
from erta_framework.plugins._policy import Policy
from erta_framework.plugins._traits import Traits
from erta_framework.session import Seam


def check_one_owner(owners: Sequence[Policy]) -> None:
    """Refuse a second policy that moves the interval.

    Raises:
        ConflictError: Names them.
    """
    if len(owners) > 1:
        raise ConflictError(
            "the interval has one owner, but adjust_interval is implemented by "
            + " and ".join(repr(policy) for policy in owners)
            + "; remove one of them"
        )


def check_selecting(policies: Sequence[Policy]) -> None:
    """Refuse policies that select places without answering for them, or the other way round.

    Raises:
        PolicyError: Names the policy.
    """
    for policy in policies:
        assigns = "assign" in find_hooks(type(policy))
        if assigns and is_wrapper("assign", policy):
            raise PolicyError(
                f"{policy!r} wraps assign, but each policy answers for its own places; mark it "
                "with a plain @hookimpl"
            )
        selected = list(policy.selects)
        for one in selected:
            if not isinstance(one, Selection):
                raise PolicyError(
                    f"{policy!r} selects {one!r}; give Select(...), Cut(...) or Named(...)"
                )
        if assigns and not selected:
            raise PolicyError(f"{policy!r} implements assign, but its selects is empty")
        if selected and not assigns:
            raise PolicyError(
                f"{policy!r} selects places inside the network, but has no assign with @hookimpl"
            )
        if selected and Seam.MODULE not in policy.traits.seams:
            raise PolicyError(
                f"{policy!r} selects places inside the network, but its traits name no "
                "Seam.MODULE; add it to traits.seams"
            )
        if selected and policy.keeps() < 1:
            raise PolicyError(f"{policy!r} keeps {policy.keeps()} outputs, it must keep 1 or more")


def prepare_policies(policies: Sequence[Policy]) -> None:
    """Let every policy check its settings and load its files.

    Raises:
        PolicyError: One raised something that is not an `ErtaError`.
    """
    for policy in policies:
        try:
            policy.prepare()
        except ErtaError:
            raise
        except Exception as error:
            raise PolicyError(
                f"{policy!r} raised {type(error).__name__} in prepare(): {error}"
            ) from error


def merge_traits(policies: Sequence[Policy], reuses: bool) -> Traits:
    """The traits of all policies together.

    Args:
        policies: All of them.
        reuses: Whether one decides; reuse without a predictor needs one evaluation.

    Raises:
        PolicyError: The traits of a policy are something else.
    """
    for policy in policies:
        if not isinstance(policy.traits, Traits):
            raise PolicyError(f"the traits of {policy!r} are {policy.traits!r}; give a Traits(...)")
    traits = Traits.merge(policy.traits for policy in policies)
    if not reuses:
        return traits
    depth = max(traits.memory.evaluations, 1)
    return replace(traits, memory=replace(traits.memory, evaluations=depth))


def check_traits(policies: Sequence[Policy], merged: Traits, owners: Sequence[Policy]) -> None:
    """Refuse traits that do not fit a policy's hooks, or the policies beside it.

    Args:
        policies: All of them.
        merged: Their traits together.
        owners: Those that move the interval.

    Raises:
        PolicyError: A policy that sees every branch does not wrap `decide`.
        ConflictError: One decides for each sample while another moves the interval of all; or one
            makes ranks decide alike, beside one that decides inside the network and does not ask.
    """
    for policy in policies:
        if policy.traits.sees_every_branch and not (
            "decide" in find_hooks(type(policy)) and is_wrapper("decide", policy)
        ):
            raise PolicyError(
                f"{policy!r} declares sees_every_branch=True in its traits, but does not wrap "
                "decide; mark it with @hookimpl(wrapper=True)"
            )
    if merged.collective:
        agreeing = [repr(p) for p in policies if p.traits.collective]
        for policy in policies:
            if policy.selects and not (policy.traits.static or policy.traits.agrees_inside):
                raise ConflictError(
                    f"{policy!r} decides inside the network while sampling, and ranks that share a "
                    f"sample could decide differently: {agreeing[0]} makes them agree on whole "
                    "steps only; read values through visit.agree and declare agrees_inside=True in "
                    "its traits, or use a schedule, whose traits are static"
                )
    if merged.decides == "sample" and owners:
        deciders = [repr(p) for p in policies if p.traits.decides == "sample"]
        raise ConflictError(
            f"{' and '.join(deciders)} decides for each sample of a batch, {owners[0]!r} moves "
            "the interval of the whole batch; remove it, or decide for the whole batch"
        )


def refuse_noise(policies: Sequence[Policy], driver: str) -> None:
    """Refuse policies that compare runs of one sample, for a driver whose steps draw noise.

    Raises:
        CapabilityError: Names the policy and the driver.
    """
    for policy in policies:
        if policy.traits.deterministic:
            raise CapabilityError(
                f"{policy!r} compares runs of the same sample, which must then differ in nothing "
                f"else, but {driver} draws new noise at every step; use a solver that draws none, "
                "such as FlowEuler() or DDIM() of the own loop, or UniPCMultistepScheduler or "
                "DDIMScheduler with eta=0 in a pipeline"
            )
