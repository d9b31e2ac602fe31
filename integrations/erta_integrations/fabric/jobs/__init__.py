"""Sampling jobs: many prompts, any number of processes, one folder.

`run_job` is the whole of it for one process. It reads the prompts (`load_items`), claims samples
(`Claims`, `Worker`), makes them with a `SampleSource`, and commits them to the `Store`. What
remains of a killed process is taken over by the others, or by a later run in the same folder.
"""

from erta_integrations.fabric.jobs._claims import Claim, Claims
from erta_integrations.fabric.jobs._job import run_job
from erta_integrations.fabric.jobs._manifest import Tally, WorkerLog, write_manifest
from erta_integrations.fabric.jobs._opened import name_precision, open_source
from erta_integrations.fabric.jobs._pipeline_source import PipelineSource
from erta_integrations.fabric.jobs._progress import JobProgress, ProgressWatch, show_progress
from erta_integrations.fabric.jobs._prompts import Item, load_items
from erta_integrations.fabric.jobs._runner import JobRunner, is_device_lost
from erta_integrations.fabric.jobs._sample_source import SampledItem, SamplerSource, SampleSource
from erta_integrations.fabric.jobs._shares import list_shares, merge_shares
from erta_integrations.fabric.jobs._store import SHARD, Store, count_committed, open_folder
from erta_integrations.fabric.jobs._workers import Worker

__all__ = [
    "SHARD",
    "Claim",
    "Claims",
    "Item",
    "JobProgress",
    "JobRunner",
    "PipelineSource",
    "ProgressWatch",
    "SampleSource",
    "SampledItem",
    "SamplerSource",
    "Store",
    "Tally",
    "Worker",
    "WorkerLog",
    "count_committed",
    "is_device_lost",
    "list_shares",
    "load_items",
    "merge_shares",
    "name_precision",
    "open_folder",
    "open_source",
    "run_job",
    "show_progress",
    "write_manifest",
]
