"""`erta sample` of a configuration that decodes tokens: texts, a trace and what was computed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from rich.table import Table

from erta_framework.cli._models import load_token_model
from erta_framework.cli._options import JobOptions, PipelineOptions, RequestOptions
from erta_framework.cli._settings import choose_prompts
from erta_framework.config import MaskedRunConfig
from erta_framework.console import make_console
from erta_framework.errors import InputError
from erta_framework.files import stage_outputs
from erta_framework.jobs import is_launched
from erta_framework.masked import MaskedSamples
from erta_framework.sampling import ProgressBar, TraceLogger
from erta_framework.text import escape_line

TRACE = "trace.jsonl"
SHOWN = 5
"""Texts that are printed; the file has all."""


def refuse_unread(pipeline: PipelineOptions, request: RequestOptions, job: JobOptions) -> None:
    """Refuse options that a run of tokens does not read: it is neither a pipeline nor a job.

    Raises:
        InputError: Names them.
    """
    given = [
        f"--{field.name.replace('_', '-')}"
        for group in (pipeline, request, job)
        for field in fields(group)
        if getattr(group, field.name) != field.default and field.name != "prompts"
    ]
    if request.prompts is not None and request.prompts.suffix == ".jsonl":
        given.append(f"--prompts {request.prompts}")
    if is_launched():
        given.append("a launcher of several processes")
    if given:
        raise InputError(
            f"{', '.join(given)}: no effect on a configuration with a decoder, which decodes "
            "tokens of a bundled model in one process; give key=value, such as steps=8 seed=1, "
            "and prompts as text, one a line"
        )


def sample_tokens(config: MaskedRunConfig, given: Sequence[str] | None, folder: Path) -> None:
    """Decode the tokens of a bundled model in this process; write `texts.jsonl`.

    Args:
        config: The run.
        given: Prompts instead of the configuration's; None takes those.
        folder: Where to write.

    Raises:
        CapabilityError: A policy serves latents only, or needs what the model does not offer.
        InputError: The model samples latents, a prompt does not fit, or guidance has no effect.
    """
    asked = choose_prompts(config, given, fallback=("",))
    prompts = [prompt for prompt in asked for _ in range(config.samples)]
    with stage_outputs(folder) as staged:
        callbacks = (ProgressBar(), TraceLogger(staged / TRACE))
        sampler = config.make_sampler(callbacks)  # refuses policies before a model is loaded
        model = load_token_model(config.model)
        ids, seen, start = model.encode_prompts(prompts, config.length)
        if start == 0 and len(config.guidance.names) > 1:
            raise InputError(
                f"guidance is {config.guidance!r}, which compares with a masked prompt, but no "
                f"prompt of the model {config.model!r} stands before the answer; set guidance=none"
            )
        result = sampler.sample(model, ids, start=start, seed=config.seed, seen=seen)
        texts = [model.spell(row) for row in result.ids.tolist()]
        with (staged / "texts.jsonl").open("w", encoding="utf-8") as file:
            for prompt, seed, text in zip(prompts, result.seeds, texts, strict=True):
                line = {"prompt": prompt, "seed": seed, "text": text}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    show_texts(result, texts, folder)


def show_texts(result: MaskedSamples, texts: Sequence[str], folder: Path) -> None:
    """Print the first texts, and what the network ran on."""
    total = sum(trace.token_total for trace in result.traces)
    cells = {
        "samples": str(len(texts)),
        "network calls": str(sum(trace.network_calls for trace in result.traces)),
        "tokens computed": f"{sum(trace.token_rows for trace in result.traces):,} of {total:,}",
        "share": f"{result.rows_computed:.2f}",
        "work": f"{result.work:.2f}",
        "seconds": f"{result.seconds:.2f}",
    }
    table = Table()
    for name in cells:
        table.add_column(name, justify="right")
    table.add_row(*cells.values())
    out = make_console()
    for text in texts[:SHOWN]:
        out.print(escape_line(text), soft_wrap=True)
    out.print(table)
    out.print(result.traces[0].summary(), soft_wrap=True)
    out.print(escape_line(f"written to {folder}"), soft_wrap=True)
