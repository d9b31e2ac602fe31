"""`erta sample` and `erta calibrate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from safetensors.torch import save_file

from erta_framework.calibration import Profile, require_profiler
from erta_framework.cli.app import app
from erta_framework.cli.common import (
    Settings,
    console,
    demo_prompts,
    load_model,
    prompts_of,
    read_settings,
    run_at_seam,
    sampler_of,
    with_seam,
)
from erta_framework.cli.jobs import (
    JobOptions,
    LogJson,
    Resume,
    calibrate_job,
    many,
    require_own_loop,
    sample_job,
)
from erta_framework.cli.pipeline import (
    Dtype,
    Frames,
    GuidanceScale,
    Height,
    Pipeline,
    PipelineOptions,
    PromptsFile,
    SeamOption,
    Seed,
    Steps,
    Width,
    write_picture,
)
from erta_framework.compatibility import Role, role_of
from erta_framework.config import RunConfig, build_policy
from erta_framework.errors import CapabilityError, InputError, PolicyError, RegistryError
from erta_framework.plugins import Policy
from erta_framework.plugins import policies as policy_catalogue
from erta_framework.sampling import (
    BatchEnd,
    Callback,
    Observers,
    PictureWriter,
    ProgressBar,
    RunStart,
    Samples,
    TraceLogger,
)
from erta_framework.session import Seam

Prompts = Annotated[
    list[str] | None,
    typer.Option("--prompt", "-p", help="A prompt; may be repeated.", show_default=False),
]


@app.command()
def sample(
    settings: Settings = None,
    prompt: Prompts = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to write to; the config's by default."),
    ] = None,
    gifs: Annotated[
        bool, typer.Option(help="Write a GIF of each sample, or a PNG of a still.")
    ] = True,
    pipeline: Pipeline = None,
    prompts: PromptsFile = None,
    steps: Steps = None,
    guidance: GuidanceScale = None,
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
    seed: Seed = None,
    dtype: Dtype = None,
    seam: SeamOption = None,
    resume: Resume = False,
    log_json: LogJson = False,
) -> None:
    """Sample prompts; writes GIFs or PNGs, samples.safetensors and trace.jsonl.

    A .jsonl file of prompts, --resume, --log-json or fabric.devices=N make it a job: one file a
    sample, divided over devices and machines, that can be resumed.
    """
    config = with_seam(read_settings(settings), seam)
    folder = output if output is not None else Path(config.output)
    options = PipelineOptions(
        pipeline, prompts, steps, guidance, height, width, frames, seed, dtype
    )
    job = JobOptions(prompts, folder, resume, log_json)
    if job.wanted(config):
        sample_job(job, options, config, settings, prompt, gifs)
        return
    if options.wanted(config, settings):
        sample_pipeline(options, config, prompt, folder, gifs)
        return
    batches = Batches()
    callbacks: list[Callback] = [ProgressBar(), TraceLogger(folder / "trace.jsonl"), batches]
    if gifs:
        from erta_framework.report import write_gif

        callbacks.append(PictureWriter(folder / "gifs", write_gif))
    if config.seam == "latent":  # refused before the model is loaded
        sampler_of(config, config.policies)
    model = load_model(config.model)
    sampler = run_at_seam(config, model, config.policies, callbacks)
    texts = prompts_of(config, prompt, fallback=())
    (folder / "trace.jsonl").unlink(missing_ok=True)  # the logger appends to it
    show_samples(sampler.sample(model, texts, seed=config.seed), batches, folder)


def sample_pipeline(
    options: PipelineOptions,
    config: RunConfig,
    prompt: Sequence[str] | None,
    folder: Path,
    pictures: bool,
) -> None:
    """What `erta sample --pipeline` does."""
    texts = prompts_of(config, options.given_prompts(prompt), fallback=())
    run = options.open(config)
    result: Samples = run.sample(texts, config.policies, **options.arguments(config))
    batches = Batches()
    callbacks: list[Callback] = [TraceLogger(folder / "trace.jsonl"), batches]
    if pictures:
        callbacks.append(PictureWriter(folder / "pictures", write_picture))
    (folder / "trace.jsonl").unlink(missing_ok=True)  # the logger appends to it
    seconds = result.seconds / len(texts)
    start = RunStart(len(texts), len(texts), result.traces[0].num_steps, "sampling")
    with Observers(tuple(callbacks), start) as observers:
        for text, number, one, trace in zip(
            result.prompts, result.seeds, result.samples, result.traces, strict=True
        ):
            for step in trace.steps:
                observers.step(step)
            observers.batch(BatchEnd((text,), (number,), one.unsqueeze(0), trace, seconds))
    show_samples(result, batches, folder)


def show_samples(result: Samples, batches: Batches, folder: Path) -> None:
    """Write the samples with their prompts and seeds, and print what ran."""
    facts = {"prompts": "\n".join(result.prompts), "seeds": ",".join(map(str, result.seeds))}
    save_file({"samples": result.samples.contiguous()}, folder / "samples.safetensors", facts)
    out = console()
    out.print(batches.table())
    out.print(result.traces[0].summary(), markup=False)
    out.print(f"written to {folder}", markup=False, soft_wrap=True)


class Batches(Callback):
    """Keeps the finished batches."""

    def __init__(self) -> None:
        self.done: list[BatchEnd] = []

    def on_batch_end(self, batch: BatchEnd) -> None:
        """Keep it."""
        self.done.append(batch)

    def table(self) -> Table:
        """What ran in each batch, and in total."""
        calls = sum(batch.trace.network_calls for batch in self.done)
        samples = sum(len(batch.prompts) for batch in self.done)
        seconds = sum(batch.seconds for batch in self.done)
        table = Table(caption=f"{samples} samples, {calls} network calls, {seconds:.2f} s")
        table.add_column("batch", no_wrap=True)
        for name in ("samples", "network calls", "reused calls", "steps computed", "seconds"):
            table.add_column(name, justify="right")
        for batch in self.done:
            trace = batch.trace
            table.add_row(
                trace.request_id,
                str(len(batch.prompts)),
                str(trace.network_calls),
                str(trace.reused_calls),
                f"{len(trace.computed_steps)} of {len(trace.steps)}",
                f"{batch.seconds:.2f}",
            )
        return table


@app.command()
def calibrate(
    settings: Settings = None,
    prompt: Prompts = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Profile to write; by default the file that the policy reads."
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="Policy to calibrate, instead of the config's.", show_default=False),
    ] = None,
    profiler: Annotated[
        str | None,
        typer.Option(help="The profiler itself, instead of asking a policy.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing profile.")] = False,
    pipeline: Pipeline = None,
    prompts: PromptsFile = None,
    steps: Steps = None,
    guidance: GuidanceScale = None,
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
    seed: Seed = None,
    dtype: Dtype = None,
    seam: SeamOption = None,
) -> None:
    """Run the full network on calibration prompts and write a profile.

    With --pipeline, and nothing that asks for a profiler, for the policy ertacache.
    """
    config = with_seam(read_settings(settings), seam)
    options = PipelineOptions(
        pipeline, prompts, steps, guidance, height, width, frames, seed, dtype
    )
    piped = options.wanted(config, settings)
    if piped and policy is None and profiler is None and not config.policies:
        policy = "ertacache"
    asked = [blank_policy(policy)] if policy is not None else list(config.policies)
    target = output if output is not None else output_of(asked)
    if target.exists() and not force:
        raise InputError(f"{target} exists; give --force to replace it, or another --output")
    chosen = require_profiler(profiler_of(asked, profiler))
    require_seam(chosen, Seam(config.seam))
    if piped:
        if many(config):
            raise InputError(
                "a pipeline is calibrated by one process; calibrate parts of the prompts apart, "
                "with other --seed, and add them up with `erta profile merge`"
            )
        texts = prompts_of(
            config, options.given_prompts(prompt), fallback=chosen.calibration_prompts
        )
        made: Profile = options.open(config).calibrate(texts, chosen, **options.arguments(config))
    else:
        model = load_model(config.model)
        offered = demo_prompts(model)
        shown = offered[0] if offered is not None else ()
        texts = prompts_of(config, prompt, fallback=chosen.calibration_prompts or shown)
        if many(config):
            require_own_loop(config)
            made, leader = calibrate_job(config, texts, chosen)
            if not leader:
                return
        else:
            sampler = run_at_seam(config, model, (), [ProgressBar()])
            made = sampler.calibrate(model, texts, seed=config.seed, profiler=chosen)
    made.save(target)
    out = console()
    out.print(f"{made!r} by {chosen!r}", markup=False)
    out.print(f"written to {target}", markup=False, soft_wrap=True)


def profiler_of(policies: Sequence[Policy], name: str | None) -> Policy:
    """The profiler of that name, else the first that a policy asks for or is.

    Raises:
        PolicyError: No policy asks for one; names those that do.
    """
    if name is not None:
        return build_policy(name, where="--profiler")
    for policy in policies:
        found = policy if role_of(type(policy)) is Role.OBSERVER else calibrator_of(policy)
        if found is not None:
            return found
    names = ", ".join(policy.name for policy in policies) or "no policies"
    raise PolicyError(
        f"nothing asks for calibration ({names}); give --policy NAME, --profiler NAME, or a "
        f"config whose policies read a profile, such as {', '.join(calibrated_policies())}"
    )


def calibrator_of(policy: Policy) -> Policy | None:
    """What a policy is calibrated with, also where it has none of its settings."""
    try:
        return policy.calibrator()
    except AttributeError:
        if vars(policy):
            raise
        return None  # it asks a setting, such as a policy inside, which a blank one has not


def calibrated_policies() -> list[str]:
    """Names of the installed policies that read a profile, which `--policy` takes."""
    catalogue, found = policy_catalogue(), []
    for name in catalogue.names():
        try:
            asks = calibrator_of(blank_policy(name))
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
    if seam not in seams:
        raise CapabilityError(
            f"{profiler!r} observes the {' and '.join(sorted(seams))} seam, not the "
            f"{seam.value} seam; calibrate with --seam {min(seams)}, or another policy"
        )


def blank_policy(name: str) -> Policy:
    """A policy by name without its settings, good only to ask what it is calibrated with.

    Which profiler it needs is asked before its budget is known, so its settings are not checked.
    """
    cls: type[Policy] = policy_catalogue().load(name)
    return object.__new__(cls)


def output_of(policies: Sequence[Policy]) -> Path:
    """The profile file that the first of the policies reads, else `profile.safetensors`."""
    for policy in policies:
        named = getattr(policy, "profile", None)
        if isinstance(named, str | Path):
            return Path(named)
    return Path("profile.safetensors")
