"""`attach`: run an unmodified diffusers pipeline under policies, within a `with` block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from erta_framework import Policy, Seam
from erta_framework.attach import KEEP_TRACES
from erta_framework.config import PolicyLike, build_engine
from erta_framework.errors import CapabilityError, InputError
from erta_framework.plugins import Choice, PipelineFacts, find_default_policy, take_budget
from erta_integrations.diffusers._attachment import Attachment
from erta_integrations.diffusers._automatic import (
    choose_again,
    choose_policies,
    describe_pipeline,
    read_default_steps,
)
from erta_integrations.diffusers.network import find_networks
from erta_integrations.diffusers.pipeline import Rechoose, capabilities


def attach(
    pipe: Any,
    policies: PolicyLike | None = None,
    *,
    networks: Sequence[str] | None = None,
    seam: str | None = None,
    keep_traces: int | None = KEEP_TRACES,
    memory: str | int | None = None,
    **options: Any,
) -> Attachment:
    """Attach policies to an unmodified diffusers pipeline.

    Only methods of this pipeline's own scheduler and networks are replaced, and only within the
    `with` block.

    Args:
        pipe: A pipeline with a `scheduler` and a denoising network.
        policies: A policy's name, a policy, a list of either (or of `{name: options}`), a path to
            a configuration file, or an `Engine`. Without any, they are chosen: for `profile=...`
            the policy that commands take, else published constants for the pipeline's model, else
            a rule that needs no profile. `run.explain()` says which, and why.
        networks: Names of the components to drive; by default every module of the pipeline whose
            `forward` takes latents and a timestep. With names, any other network that the pipeline
            steps with, such as Wan 2.2's second one, always runs; the trace says so.
        seam: What a reused step leaves out: `"latent"` the whole network, `"trunk"` only its block
            stack, so that embedders, final norm and head run at the current timestep. By default
            the latent seam; policies that are chosen bring their own.
        keep_traces: Traces to keep, of the newest requests, so that a server does not fill its
            memory; None keeps all.
        memory: The most that places inside the networks may keep in a request, such as `"2GiB"`.
            The first network call says how much it will be, before anything is reused.
        options: A budget for the first policy that takes one: `calls=20`, `speedup=2`, `psnr=35`,
            `seconds=3` or `quality="high"`. Options of the policy, when `policies` is a name:
            `profile=...`.

    Raises:
        CapabilityError: The scheduler cannot be driven or lacks what a policy requires; the
            pipeline has no network; a network was compiled in place, has no trunk, or lacks a
            signal that a policy requires, or a place that one selects. No policies are named, and
            the model makes only a few steps.
        InputError: `seam` is no seam of a pipeline, `keep_traces` is below 1, `memory` is no size,
            or options belong to no policy.
        PolicyError: No policy takes the budget.
        ConflictError: Two policies own the same place inside a network; or on entering, if a
            network or the scheduler is attached already. While it runs, if a second request begins
            on the scheduler of one that has not ended.

    Warns:
        UnusedWarning: On leaving the block, if a network ran but never in a request, or if nothing
            could ever be reused. When the attachment is dropped, if the pipeline ran and it was
            never entered.

    Example:
        >>> with attach(pipe, "skip_policy", every=2) as run:  # doctest: +SKIP
        ...     pipe("a cat")
        >>> print(run.summary())  # doctest: +SKIP
    """
    if getattr(pipe, "scheduler", None) is None:
        raise CapabilityError(
            f"{type(pipe).__name__} has no scheduler; a diffusers pipeline is needed"
        )
    if seam not in (None, Seam.LATENT, Seam.TRUNK):
        raise InputError(f"seam is {seam!r}, it must be 'latent' or 'trunk'")
    capabilities(pipe.scheduler)  # refuses a scheduler that cannot be driven, first of all
    choice: Choice | None = None
    rechoose: Rechoose | None = None
    if policies is None and "profile" in options:
        policies = find_default_policy()
    if policies is None:
        budget, others = take_budget(options)
        if others:
            raise InputError(f"{', '.join(others)} belong to no policy; name one beside them")
        facts = describe_pipeline(pipe, networks, seam)
        choice = choose_policies(facts, budget)
        seam, rechoose = choice.seam, partial(choose_for_request, facts, choice, budget)
        policies, options = list(choice.policies), {}
    engine, bound = build_engine(policies, options)
    return Attachment(
        pipe,
        engine,
        find_networks(pipe, networks),
        Seam(seam or Seam.LATENT),
        keep_traces,
        bound if memory is None else memory,
        choice,
        rechoose,
        read_default_steps(pipe),
    )


def choose_for_request(
    facts: PipelineFacts,
    choice: Choice,
    asked: Mapping[str, Any],
    num_steps: int | None,
    budget: Mapping[str, Any],
) -> Sequence[Policy]:
    """The policies of a request, which may have another number of steps or a budget of its own.

    Args:
        facts: What is known of the pipeline.
        choice: What was chosen for it.
        asked: The budget that it was attached with.
        num_steps: Steps of the request; None where they are not known yet.
        budget: That of the request; empty where it has none of its own.
    """
    if not budget and num_steps == facts.num_steps:
        return choice.policies
    return choose_again(facts, choice.seam, num_steps, budget or asked).policies
