"""`RunConfig`: a run as a configuration file describes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from erta_framework.jobs import LAUNCHER, FabricConfig, JobConfig
from erta_framework.plugins import Policy
from erta_framework.sampling import CFG, FlowEuler, Guidance, Solver


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """A sampling or calibration run, as written in a configuration file.

    Attributes:
        model: Name of a bundled model.
        policies: The policies, in call order.
        solver: Integrates the trajectory.
        guidance: Combines the branches.
        steps: Number of steps of the nominal schedule.
        sigmas: A list of sigmas instead of `steps`.
        prompts: The prompts themselves.
        prompts_file: A file with one prompt a line.
        seed: Seed of the first sample; sample k has seed + k.
        batch_size: Samples a batch.
        precision: `"32"`, `"bf16-mixed"` or `"16-mixed"`.
        accelerator: `"auto"`, `"cpu"` or `"cuda"`.
        devices: Number of devices.
        seam: What a reused step skips: `"latent"` the whole network, `"trunk"` the stack of blocks
            of a pipeline's network. Read by `erta sample`, `erta calibrate` and `erta plan`.
        memory: The most that places inside the network may keep in a batch, such as `2GiB`.
        output: Folder to write to.
        launcher: Who runs a job over several devices: `"fabric"`, or another installed launcher
            such as `"ray"`. Any but `"fabric"` makes a run a job, also on one device.
        fabric: Where a job over several devices runs, in the names of Lightning Fabric.
        job: How such a job is divided.
    """

    model: str = "shapes-wan"
    policies: tuple[Policy, ...] = ()
    solver: Solver = field(default_factory=FlowEuler)
    guidance: Guidance = field(default_factory=lambda: CFG(scale=3.0))
    steps: int = 50
    sigmas: tuple[float, ...] | None = None
    prompts: tuple[str, ...] = ()
    prompts_file: str | None = None
    seed: int = 0
    batch_size: int = 16
    precision: str = "32"
    accelerator: str = "auto"
    devices: int = 1
    seam: Literal["latent", "trunk"] = "latent"
    memory: str | None = None
    output: str = "runs"
    launcher: str = LAUNCHER
    fabric: FabricConfig = field(default_factory=FabricConfig)
    job: JobConfig = field(default_factory=JobConfig)
