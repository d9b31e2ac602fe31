"""`erta calibrate`: a profile from the full network on calibration prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from erta_framework.calibration import Profile, refuse_reference, require_profiler
from erta_framework.cli._jobs import calibrate_job, is_distributed
from erta_framework.cli._models import find_profile_path, get_demo_prompts, load_model
from erta_framework.cli._options import (
    ConfigOptions,
    Force,
    PipelineOptions,
    Prompts,
    RequestOptions,
    unset,
)
from erta_framework.cli._pipeline import load_pipeline, read_prompts, to_arguments, wants_pipeline
from erta_framework.cli._policy_specs import Spec, read_policies
from erta_framework.cli._samplers import make_sampler_at_seam, require_own_loop
from erta_framework.cli._settings import choose_prompts
from erta_framework.compatibility import Role, find_role
from erta_framework.config import RunConfig, build_policy
from erta_framework.console import make_console
from erta_framework.errors import CapabilityError, InputError, PolicyError, RegistryError
from erta_framework.files import require_writable
from erta_framework.plugins import Policy, Profiler, find_default_policy
from erta_framework.plugins import policies as policy_catalogue
from erta_framework.sampling import ProgressBar
from erta_framework.session import Seam
from erta_framework.text import escape_line


def calibrate(
    config_options: ConfigOptions,
    pipeline_options: PipelineOptions,
    request: RequestOptions,
    prompt: Prompts = None,
    output: Annotated[
        Path | None,
        unset(
            "Profile to write. Default: the file that the policy reads, or profile.safetensors.",
            "--output",
            "-o",
        ),
    ] = None,
    policy: Annotated[
        list[str] | None,
        unset(
            'Policy to calibrate, instead of those of the configuration: a name, or "{name: '
            '{option: value}}" where its options matter.'
        ),
    ] = None,
    profiler: Annotated[
        str | None, unset("Profiler to run, instead of the one that belongs to a policy.")
    ] = None,
    force: Force = False,
) -> None:
    """Run the full network on calibration prompts and write a profile.

    Name a policy or a profiler, or give a configuration whose policies read a profile. With
    --pipeline and none of these, the default policy is calibrated.
    """
    settings, config = config_options.settings, config_options.read()
    piped = wants_pipeline(pipeline_options, config, settings)
    config = config if piped else request.apply(config)
    if piped and policy is None and profiler is None and not config.policies:
        policy = [find_default_policy()]
    policies = list(config.policies)
    if policy is not None:
        policies = [make_asked_policy(spec) for text in policy for spec in read_policies(text)]
    target = output or find_profile_path(policies) or Path("profile.safetensors")
    refuse_reference(target)
    if target.exists() and not force:
        raise InputError(f"{target} exists; give --force to replace it, or another --output")
    require_writable(target, "profile")
    chosen = require_profiler(find_profiler(policies, profiler))
    require_seam(chosen, Seam(config.seam))
    texts = read_prompts(request.prompts, prompt)
    if piped:
        made = calibrate_pipeline(pipeline_options, request.steps, config, texts, chosen)
    else:
        found = calibrate_model(config, texts, chosen)
        if found is None:
            return
        made = found
    made.save(target)
    out = make_console()
    out.print(f"{made!r} by {chosen!r}")
    out.print(escape_line(f"written to {target}"), soft_wrap=True)


def calibrate_pipeline(
    options: PipelineOptions,
    steps: int | None,
    config: RunConfig,
    prompts: Sequence[str] | None,
    profiler: Profiler,
) -> Profile:
    """Calibrate a pipeline in this process.

    Raises:
        InputError: Several processes are asked for, or there are no prompts.
    """
    if is_distributed(config):
        raise InputError(
            "a pipeline is calibrated by one process; calibrate parts of the prompts apart, "
            "with other --seed, and add them up with `erta profile merge`"
        )
    texts = choose_prompts(config, prompts, fallback=profiler.calibration_prompts)
    run = load_pipeline(options, config)
    made: Profile = run.calibrate(
        texts, profiler, callbacks=[ProgressBar()], **to_arguments(options, steps, config)
    )
    return made


def calibrate_model(
    config: RunConfig, prompt: Sequence[str] | None, profiler: Profiler
) -> Profile | None:
    """Calibrate a bundled model; None on the ranks that do not write the profile.

    Raises:
        InputError: There are no prompts.
    """
    model = load_model(config.model)
    offered = get_demo_prompts(model)
    shown = offered[0] if offered is not None else ()
    texts = choose_prompts(config, prompt, fallback=profiler.calibration_prompts or shown)
    if is_distributed(config):
        require_own_loop(config)
        made, leader = calibrate_job(config, texts, profiler)
        return made if leader else None
    sampler = make_sampler_at_seam(config, model, (), [ProgressBar()])
    return sampler.calibrate(model, texts, seed=config.seed, profiler=profiler)


def find_profiler(policies: Sequence[Policy], name: str | None) -> Policy:
    """The profiler of that name, else the first that a policy asks for or is.

    Raises:
        PolicyError: No policy asks for one; names those that do.
    """
    if name is not None:
        return build_policy(name, where="--profiler")
    for policy in policies:
        found = policy if find_role(type(policy)) is Role.OBSERVER else find_calibrator(policy)
        if found is not None:
            return found
    names = ", ".join(policy.name for policy in policies) or "no policies"
    raise PolicyError(
        f"nothing to calibrate ({names}); give --policy NAME, --profiler NAME, or a configuration "
        f"whose policies read a profile, such as {', '.join(list_calibrated())}"
    )


def find_calibrator(policy: Policy) -> Policy | None:
    """The profiler of a policy, or None; the policy may lack its settings."""
    try:
        return policy.calibrator()
    except AttributeError:
        if vars(policy):
            raise
        return None  # it looks at a setting, such as the policy inside, which a blank one lacks


def list_calibrated() -> list[str]:
    """Names of this project's policies that read a profile, which `--policy` takes.

    Those of others are left out: their code is not imported to word an error.
    """
    catalogue, found = policy_catalogue(only=()), []
    for name in catalogue.names():
        try:
            asks = find_calibrator(make_blank_policy(name))
        except RegistryError:  # it cannot be imported; `erta policies` says why
            continue
        if asks is not None:
            found.append(name)
    return found


def require_seam(profiler: Policy, seam: Seam) -> None:
    """Refuse a profiler that does not observe this seam, before anything is loaded.

    Raises:
        CapabilityError: Names both seams.
    """
    seams = profiler.traits.seams
    # places lie inside the network, at whichever seam it is run
    if seam not in seams and not profiler.selects:
        raise CapabilityError(
            f"{profiler!r} observes the {' and '.join(sorted(seams))} seam, not the "
            f"{seam.value} seam; calibrate with --seam {min(seams)}, or another policy"
        )


def make_asked_policy(spec: Spec) -> Policy:
    """The policy of a `--policy`: blank where no options are given.

    Raises:
        ConfigError: An option is unknown, or one that it needs is missing.
    """
    ((name, options),) = spec.items()
    return build_policy(spec, where="--policy") if options else make_blank_policy(name)


def make_blank_policy(name: str) -> Policy:
    """A policy by name without its settings, good only to ask for its profiler.

    The profiler is needed before the settings, such as the budget, are known.
    """
    cls: type[Policy] = policy_catalogue().load(name)
    return object.__new__(cls)
