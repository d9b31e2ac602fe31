"""`erta sample`: a few prompts in one process, or a job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from safetensors.torch import save_file

from erta_framework.cli._jobs import is_job, sample_job
from erta_framework.cli._masked import TRACE, refuse_unread, sample_tokens
from erta_framework.cli._models import load_model
from erta_framework.cli._options import (
    ConfigOptions,
    JobOptions,
    PipelineOptions,
    Prompts,
    RequestOptions,
    unset,
)
from erta_framework.cli._pipeline import (
    load_pipeline,
    read_prompts,
    to_arguments,
    wants_pipeline,
    write_picture,
)
from erta_framework.cli._policy_options import PolicyOptions
from erta_framework.cli._samplers import make_sampler, make_sampler_at_seam
from erta_framework.cli._settings import choose_prompts
from erta_framework.config import MaskedRunConfig, RunConfig
from erta_framework.console import make_console
from erta_framework.errors import InputError
from erta_framework.files import stage_outputs
from erta_framework.plugins import Policy
from erta_framework.sampling import (
    BatchEnd,
    Callback,
    PictureWriter,
    ProgressBar,
    Samples,
    TraceLogger,
)
from erta_framework.text import escape_line

Choose = Callable[[Any, int | None], tuple[Policy, ...]]
"""Policies for a loaded pipeline and a number of steps, where none were named."""


def sample(
    config_options: ConfigOptions,
    pipeline_options: PipelineOptions,
    request: RequestOptions,
    policies: PolicyOptions,
    job: JobOptions,
    prompt: Prompts = None,
    output: Annotated[
        Path | None,
        unset("Folder to write to. Default: the configuration's.", "--output", "-o"),
    ] = None,
    gifs: Annotated[
        bool, typer.Option(help="Write a GIF of each video, a PNG of each image.")
    ] = True,
) -> None:
    """Sample prompts; writes GIFs or PNGs, samples.safetensors and trace.jsonl.

    A configuration with a decoder writes texts, as texts.jsonl.

    A .jsonl file of prompts, --resume, --log-json, fabric.devices=N or launcher=ray make it a job.
    A job is divided over devices and machines, writes one file for each sample, and can be resumed.
    """
    settings, config = config_options.settings, config_options.read_run()
    folder = output if output is not None else Path(config.output)
    if isinstance(config, MaskedRunConfig):
        refuse_unread(pipeline_options, request, job)
        sample_tokens(policies.apply(config), read_prompts(request.prompts, prompt), folder)
        return
    piped = wants_pipeline(pipeline_options, config, settings)
    many = is_job(job, request.prompts, config)
    choose: Choose | None = None
    if piped and policies.leaves_open(config):
        if many:
            raise InputError(
                "a budget alone in a job of a pipeline: name a policy too, by --policy NAME; "
                "policies are chosen for a loaded pipeline, and each process of a job loads its own"
            )
        asked = config_options.seam or (None if config.seam == "latent" else config.seam)
        choose = partial(choose_for_pipeline, policies, asked)
    else:
        config = policies.apply(config if piped else request.apply(config))
    if many:
        sample_job(job, pipeline_options, request, config, settings, prompt, folder, gifs)
    elif piped:
        sample_pipeline(pipeline_options, request, config, prompt, folder, gifs, choose)
    else:
        sample_model(config, read_prompts(request.prompts, prompt), folder, gifs)


def sample_model(
    config: RunConfig, prompt: Sequence[str] | None, folder: Path, pictures: bool
) -> None:
    """Sample a bundled model in this process."""
    batches = Batches()
    if config.seam == "latent":  # refused before the model is loaded
        make_sampler(config, config.policies)
    with stage_outputs(folder) as staged:
        callbacks: list[Callback] = [ProgressBar(), TraceLogger(staged / TRACE), batches]
        if pictures:
            from erta_framework.report import write_gif

            callbacks.append(PictureWriter(staged / "gifs", write_gif))
        model = load_model(config.model)
        sampler = make_sampler_at_seam(config, model, config.policies, callbacks)
        texts = choose_prompts(config, prompt, fallback=())
        result = sampler.sample(model, texts, seed=config.seed)
        write_samples(result, staged)
    show_samples(result, batches, folder)


def sample_pipeline(
    options: PipelineOptions,
    request: RequestOptions,
    config: RunConfig,
    prompt: Sequence[str] | None,
    folder: Path,
    pictures: bool,
    choose: Choose | None = None,
) -> None:
    """Sample a loaded pipeline in this process; `choose` chooses its policies when it is there."""
    texts = choose_prompts(config, read_prompts(request.prompts, prompt), fallback=())
    batches = Batches()
    with stage_outputs(folder) as staged:
        run = load_pipeline(options, config)
        arguments = to_arguments(options, request.steps, config)
        policies = config.policies if choose is None else choose(run, request.steps)
        callbacks: list[Callback] = [ProgressBar(), TraceLogger(staged / TRACE), batches]
        if pictures:
            callbacks.append(PictureWriter(staged / "pictures", write_picture))
        result: Samples = run.sample(texts, policies, callbacks=callbacks, **arguments)
        write_samples(result, staged)
    show_samples(result, batches, folder)


def choose_for_pipeline(
    options: PolicyOptions, seam: str | None, run: Any, steps: int | None
) -> tuple[Policy, ...]:
    """What is chosen for the budget of the options and the model of a loaded pipeline."""
    chosen = options.choose(run.describe(steps, seam))
    run.seam = chosen.seam
    return chosen.policies


def write_samples(result: Samples, folder: Path) -> None:
    """Write the samples with their prompts and seeds."""
    facts = {"prompts": "\n".join(result.prompts), "seeds": ",".join(map(str, result.seeds))}
    save_file({"samples": result.samples.contiguous()}, folder / "samples.safetensors", facts)


def show_samples(result: Samples, batches: Batches, folder: Path) -> None:
    """Print what ran."""
    out = make_console()
    out.print(batches.make_table())
    out.print(result.traces[0].summary())
    out.print(escape_line(f"written to {folder}"), soft_wrap=True)


class Batches(Callback):
    """Keeps the finished batches."""

    def __init__(self) -> None:
        self.done: list[BatchEnd] = []

    def on_batch_end(self, batch: BatchEnd) -> None:
        """Keep it."""
        self.done.append(batch)

    def make_table(self) -> Table:
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
