"""Plain values to a `RunConfig` and to policies, each part by its name in a catalogue."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from erta_framework.config._bounds import check_bounds
from erta_framework.config._budgets import place_budget
from erta_framework.config._convert import construct, convert, split_name
from erta_framework.config._masked_config import MaskedRunConfig
from erta_framework.config._problems import Misfit
from erta_framework.config._run_config import RunConfig
from erta_framework.errors import ConfigError, suggest
from erta_framework.jobs import ACCELERATORS, LAUNCHER, FabricConfig, JobConfig, check_accelerator
from erta_framework.masked import Decoder, open_decoder_catalogue
from erta_framework.plugins import Catalogue, PipelineFacts, Policy, load_chooser, take_budget
from erta_framework.sampling import Guidance, Solver, open_guidance_catalogue, open_solver_catalogue
from erta_framework.text import show_value


def build_run(values: Mapping[str, Any], only: Collection[str] | None = None) -> RunConfig:
    """Plain values as a `RunConfig`; parts are given as `{name: {option: value}}` or a name.

    Raises:
        ConfigError: A key is unknown, a value of the wrong type or beyond a bound, this machine
            lacks what `fabric.accelerator` names, or the configuration decodes tokens.
        RegistryError: A policy is not installed, or a part does not load.

    Example:
        >>> build_run({"steps": 20, "solver": "flow_ab2"}).solver
        FlowAdamsBashforth2(shift=3.0, time_scale=1000.0)
    """
    if "decoder" in values:
        raise ConfigError(
            f"decoder is {show_value(values['decoder'])}: such a configuration decodes tokens, and "
            "here latents are sampled; give it to `erta sample`, `erta explain` or "
            "load_masked_config, or leave decoder out"
        )
    check_bounds(values, "configuration")
    values = build_shared_parts(place_run_budget(values, only), only)
    if "solver" in values:
        values["solver"] = build_solver(values["solver"], only)
    for key, section in (("fabric", FabricConfig), ("job", JobConfig)):
        if key in values:
            if not isinstance(values[key], Mapping):
                raise ConfigError(f"{key} is {show_value(values[key])}; write {key}.option=value")
            values[key] = construct(section, values[key], where=key)
    run = construct(RunConfig, values, where="configuration")
    asked = run.fabric.accelerator
    # the workers of another launcher run on other machines, and it knows what those have
    if asked in (None, "auto") or run.launcher != LAUNCHER:
        return run
    check_accelerator(asked, "fabric.accelerator")
    # one process without Fabric runs there as well, unless told otherwise
    kind = ACCELERATORS.get(asked, asked)
    return replace(run, accelerator=kind) if run.accelerator == "auto" else run


def place_run_budget(
    values: Mapping[str, Any], only: Collection[str] | None = None
) -> dict[str, Any]:
    """The values with a budget at the top, such as `speedup: 2`, among the policies.

    Without policies, some that need no profile are chosen.

    Raises:
        ConfigError: The policy that takes it has another budget already.
        PolicyError: None of the policies takes it.
    """
    budget, rest = take_budget(values)
    listed = rest.get("policies") or []
    if not budget or isinstance(listed, str | Mapping) or not isinstance(listed, Sequence):
        return rest
    if not listed:
        named: dict[str, Any] = {key: rest[key] for key in ("model", "steps") if key in rest}
        run = construct(RunConfig, named, where="configuration")
        facts = PipelineFacts(run.model, num_steps=run.steps)
        chosen = load_chooser()(facts, budget)
        return {**rest, "policies": chosen.policies}
    return {**rest, "policies": place_budget(listed, budget, only)}


def build_masked_run(
    values: Mapping[str, Any], only: Collection[str] | None = None
) -> MaskedRunConfig:
    """Plain values as a `MaskedRunConfig`; parts are given as in `build_run`.

    Raises:
        ConfigError: A key is unknown or the decoder missing, or a value of the wrong type or
            beyond a bound.
        RegistryError: A policy is not installed, or a part does not load.

    Example:
        >>> build_masked_run({"decoder": {"random": {"temperature": 0.7}}}).decoder.temperature
        0.7
    """
    check_bounds(values, "configuration")
    values = build_shared_parts(values, only)
    if "decoder" in values:
        values["decoder"] = build_decoder(values["decoder"], only)
    return construct(MaskedRunConfig, values, where="configuration of tokens")


def build_shared_parts(values: Mapping[str, Any], only: Collection[str] | None) -> dict[str, Any]:
    """The values, with the policies and the guidance made."""
    values = dict(values)
    if "policies" in values:
        values["policies"] = build_policies(values["policies"] or [], only)
    if "guidance" in values:
        values["guidance"] = build_guidance(values["guidance"], only)
    return values


def build_decoder(spec: object, only: Collection[str] | None = None) -> Decoder:
    """A decoder from `name` or `{name: {option: value}}`.

    Raises:
        ConfigError: The name or an option is unknown, or a value of the wrong type.
        RegistryError: The class does not load.

    Example:
        >>> build_decoder({"confidence": {"threshold": 0.9}}).threshold
        0.9
    """
    decoder: Decoder = build_part(spec, "decoder", open_decoder_catalogue(only), only)
    return decoder


def build_solver(spec: object, only: Collection[str] | None = None) -> Solver:
    """A solver from `name` or `{name: {option: value}}`.

    Raises:
        ConfigError: The name or an option is unknown, or a value of the wrong type.
        RegistryError: The class does not load.
    """
    solver: Solver = build_part(spec, "solver", open_solver_catalogue(only), only)
    return solver


def build_guidance(spec: object, only: Collection[str] | None = None) -> Guidance:
    """A guidance rule from `name` or `{name: {option: value}}`.

    Raises:
        ConfigError: The name or an option is unknown, or a value of the wrong type.
    """
    guidance: Guidance = build_part(spec, "guidance", open_guidance_catalogue(only), only)
    return guidance


def build_part(
    spec: object, key: str, catalogue: Catalogue, only: Collection[str] | None = None
) -> Any:
    """The part that the configuration names under `key`."""
    check_bounds(spec, key)
    try:
        name, options = split_name(spec)
    except Misfit as problem:
        raise ConfigError(f"{key} {problem}") from None
    known = catalogue.names()
    if name not in known:
        raise ConfigError(
            f"unknown {key} {show_value(name)}{catalogue.limit}; " + suggest(name, known)
        )
    return construct(catalogue.load(name), options, where=f"{key}.{name}", only=only)


def build_policies(specs: object, only: Collection[str] | None = None) -> tuple[Policy, ...]:
    """A list of `{name: {option: value}}`, names or policies as policies, in order.

    Raises:
        ConfigError: The value is no list, or an option is unknown.
        RegistryError: A policy is not installed.
    """
    if isinstance(specs, str | Mapping) or not isinstance(specs, Sequence):
        raise ConfigError(
            f"policies is {show_value(specs)}; it is a list, so that the order is visible, "
            "as in [{name: {option: value}}, another_name]"
        )
    check_bounds(list(specs), "policies")
    built: tuple[Policy, ...] = convert(list(specs), tuple[Policy, ...], "policies", only)
    return built


def build_policy(spec: object, where: str, only: Collection[str] | None = None) -> Policy:
    """One policy, from its name, from `{name: {option: value}}` or finished.

    Raises:
        ConfigError: An option is unknown; the message says `where`.
        RegistryError: The policy is not installed.
    """
    check_bounds(spec, where)
    policy: Policy = convert(spec, Policy, where, only)
    return policy
