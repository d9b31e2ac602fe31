"""`erta demo`: ERTACache against other ways to spend the same number of network calls."""

from __future__ import annotations

import shlex
import webbrowser
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated

import torch
import typer

from erta_framework.cli import (
    Device,
    OverallProgress,
    PolicyOptions,
    find_own_demo,
    get_demo_prompts,
    load_model,
    make_console,
    read_lines,
    show_comparison,
)
from erta_framework.environment import is_shared, use_fastest_threads
from erta_framework.errors import InputError, ProfileMismatchError
from erta_framework.files import require_writable_folder
from erta_framework.optional_dependencies import require_extra
from erta_framework.plugins import Policy
from erta_framework.report import (
    Clock,
    Comparison,
    Method,
    compare,
    write_report,
)
from erta_framework.sampling import Callback, TextModel, TextSampler, resolve_device
from erta_integrations.shapes_wan.demo._methods import (
    list_methods,
    make_sampler,
    runs_in_pipeline,
)
from erta_integrations.shapes_wan.demo._subject import choose_subject

SEED = 5000


def demo(
    policies: PolicyOptions,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path(
        "runs/demo"
    ),
    prompts: Annotated[
        str, typer.Option(help="How many held-out prompts to sample, or a file with one a line.")
    ] = "8",
    steps: Annotated[int, typer.Option(help="Steps of the full run.")] = 50,
    model: Annotated[str, typer.Option(help="Model of the catalogue.")] = "shapes-wan",
    device: Device = "auto",
    recalibrate: Annotated[
        bool, typer.Option("--recalibrate", help="Calibrate even if the model ships a profile.")
    ] = False,
    show: Annotated[bool, typer.Option("--open", help="Open the report in a browser.")] = False,
) -> None:
    """Sample held-out prompts with and without ERTACache; writes pictures and a report.

    --policy shows another policy, and without one there are 25 network calls unless a budget says
    otherwise. A model with a demo of its own, such as words, shows that instead.
    """
    if (own := find_own_demo(model)) is not None:
        if given := policies.as_arguments():
            raise InputError(
                f"{' '.join(given)}: no effect on the model {model!r}, whose demo is its own; use "
                "`erta sample`"
            )
        own(output, make_console())
        return
    for module in ("PIL", "jinja2", "matplotlib", "torchmetrics"):
        require_extra(module, extra="report", wanted_by="erta demo")
    require_writable_folder(output)
    shared, out = is_shared(), make_console()  # the load before this one's own
    network = load_model(model)
    calibration, held_out = choose_prompts(network, model, prompts)
    placed = resolve_device(device, 1)
    clock: Clock = "processor" if shared and placed.type == "cpu" else "wall"
    with choose_threads(network, held_out, placed):
        subject = choose_subject(
            policies, network, calibration, steps, output, out, recalibrate, device
        )
        number = subject.count_calls(network, held_out[0], SEED, steps, device)
        methods = list_methods(
            subject.name, subject.policies, number, steps, pipeline=runs_in_pipeline(network)
        )
        comparison = run_methods(network, methods, held_out, clock, device)
        report = write_report(
            comparison,
            output,
            title=f"{subject.name} on {model}: {number} of {steps} steps",
            setting=describe_setting(model, network, comparison, subject.origin),
            forecast=subject.plan(steps),
            device=placed,
            command=shlex.join(["erta", "demo", *policies.as_arguments()]),
        )
    show_comparison(out, comparison, report)
    if show:
        webbrowser.open(report.html.resolve().as_uri())


def choose_threads(
    model: TextModel, prompts: list[str], device: torch.device
) -> AbstractContextManager[object]:
    """The number of CPU threads that suits the model on this machine right now."""
    if device.type != "cpu":
        return nullcontext()
    condition = model.encode(prompts)
    x = torch.zeros(len(prompts), *model.latent_shape)
    times = torch.full((len(prompts),), 500.0)

    def call() -> object:
        with torch.no_grad():
            return model(x, times, condition)

    return use_fastest_threads(call)


def choose_prompts(model: TextModel, name: str, asked: str) -> tuple[list[str], list[str]]:
    """Calibration prompts, and as many held-out ones as are asked for, or those of a file.

    Raises:
        InputError: The model brings no prompts, or fewer than were asked for.
    """
    offered = get_demo_prompts(model)
    if offered is None:
        raise InputError(
            f"the model {name!r} brings no prompts for a demo (demo_prompts); use `erta sample`"
        )
    calibration, held_out = offered
    if not asked.isdigit():
        return calibration, read_lines(asked)
    if not 1 <= int(asked) <= len(held_out):
        raise InputError(
            f"--prompts {asked}: {name!r} brings 1 to {len(held_out)} held-out prompts"
        )
    return calibration, held_out[: int(asked)]


def run_methods(
    model: TextModel, methods: list[Method], prompts: list[str], clock: Clock, accelerator: str
) -> Comparison:
    """Compare the methods under one progress bar.

    Raises:
        ProfileMismatchError: The shipped profile is not of this model.
    """
    rounds = min(2, len(prompts))

    def sampler_of(
        method: Method,
        policies: Sequence[Policy],
        callbacks: Sequence[Callback],
        batch_size: int,
    ) -> TextSampler:
        return make_sampler(
            model,
            policies,
            callbacks,
            steps=method.steps,
            batch_size=batch_size,
            solver=method.solver,
            scheduler=method.scheduler,
            accelerator=accelerator,
        )

    total = (1 + rounds) * sum(method.steps for method in methods)
    with OverallProgress(total, "sampling") as bar:
        try:
            return compare(
                model,
                methods,
                prompts,
                seed=SEED,
                rounds=rounds,
                callbacks=[bar],
                make_sampler=sampler_of,
                clock=clock,
            )
        except ProfileMismatchError as error:
            error.add_note("the shipped profile does not fit; run `erta demo --recalibrate`")
            raise


def describe_setting(
    name: str, model: TextModel, comparison: Comparison, origin: str
) -> dict[str, str]:
    """The facts of the run that the report states."""
    sampler = make_sampler(model, (), (), steps=comparison.methods[0].steps)
    shape = " x ".join(map(str, model.latent_shape))
    return {
        "model": f"{name}, samples of {shape}",
        "network": ", ".join(f"{key} {value}" for key, value in model.fingerprint().items()),
        **sampler.facts,
        **({"profile": origin} if origin else {}),
    }
