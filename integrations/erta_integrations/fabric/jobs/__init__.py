"""Sampling jobs: many prompts, many workers, one folder."""

from erta_integrations.fabric.jobs.division import Claim, Claims
from erta_integrations.fabric.jobs.job import run_job
from erta_integrations.fabric.jobs.manifest import Tally
from erta_integrations.fabric.jobs.pipelines import PipelineWork
from erta_integrations.fabric.jobs.progress import Reporter, State, Watch
from erta_integrations.fabric.jobs.prompts import Item, load_items
from erta_integrations.fabric.jobs.runner import Runner
from erta_integrations.fabric.jobs.store import Store
from erta_integrations.fabric.jobs.work import Made, SamplerWork, Work
from erta_integrations.fabric.jobs.workers import Worker

__all__ = [
    "Claim",
    "Claims",
    "Item",
    "Made",
    "PipelineWork",
    "Reporter",
    "Runner",
    "SamplerWork",
    "State",
    "Store",
    "Tally",
    "Watch",
    "Work",
    "Worker",
    "load_items",
    "run_job",
]
