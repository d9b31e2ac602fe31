"""Imported once by the process that others are forked from, so that each starts at once.

Diffusers imports a pipeline when it is first asked for, hence every family is built once.
"""

from __future__ import annotations

import logging
import threading
import warnings

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from erta_bench.families import _cell
from tiny_pipelines import FAMILIES

__all__ = ["_cell"]

logging.disable(logging.CRITICAL)
warnings.simplefilter("ignore")
tqdm.set_lock(threading.RLock())  # its default is a semaphore that nobody would release
torch.set_num_threads(1)  # a pool of threads does not survive a fork
for family in FAMILIES.values():
    family.build()
