"""Loads whole pipelines by name; `erta ... --pipeline` runs this."""

from __future__ import annotations

from pathlib import Path

import torch

from erta_framework import Seam
from erta_framework.errors import InputError
from erta_framework.optional_dependencies import require_extra
from erta_framework.sampling import resolve_device
from erta_integrations.diffusers._loaded_pipeline import LoadedPipeline

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    source: str,
    *,
    accelerator: str = "auto",
    dtype: str | None = None,
    seam: str = Seam.LATENT,
    memory: str | int | None = None,
) -> LoadedPipeline:
    """Load a pipeline from a folder, or from the hub by its id.

    Loading a folder needs no network. A hub id is downloaded once into the hub's cache; after that
    it loads offline too (`HF_HUB_OFFLINE=1`).

    Args:
        source: Folder that `pipe.save_pretrained` wrote, or a hub id such as `owner/name`.
        accelerator: `"auto"`, `"cpu"`, `"cuda"` or `"mps"`.
        dtype: `"float32"`, `"bfloat16"` or `"float16"`; None takes diffusers' default.
        seam: What a reused step leaves out, `"latent"` or `"trunk"`.
        memory: The most that places inside the networks may keep in a request, such as `"2GiB"`.

    Raises:
        InputError: There is no such folder, it holds no pipeline, the hub and its cache have no
            such id, or the dtype is unknown.
        CapabilityError: The accelerator is not there.
        MissingExtraError: diffusers or transformers is not installed.
    """
    for module in ("diffusers", "transformers"):
        require_extra(module, extra="diffusers", wanted_by="running a pipeline")
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown; give {', '.join(DTYPES)}")
    from diffusers import DiffusionPipeline

    folder = Path(source).expanduser()
    local = folder.is_dir()
    if not local and (source.startswith((".", "~", "/")) or source.count("/") != 1):
        raise InputError(
            f"no folder {source}; give the folder of a saved pipeline, or a hub id as owner/name"
        )
    if local and not (folder / "model_index.json").is_file():
        raise InputError(
            f"{source} holds no model_index.json; give a folder that pipe.save_pretrained wrote"
        )
    device = resolve_device(accelerator, devices=1)
    chosen = {} if dtype is None else {"torch_dtype": DTYPES[dtype]}
    try:
        pipe = DiffusionPipeline.from_pretrained(
            str(folder) if local else source, local_files_only=local, **chosen
        )
    except OSError as error:
        remedy = (
            "save the pipeline again with pipe.save_pretrained"
            if local
            else f"check the id, fetch it once while online with `hf download {source}`, or give "
            "the folder of a saved pipeline"
        )
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"the pipeline {source} cannot be loaded; {remedy}: {said[0]}") from error
    pipe.set_progress_bar_config(disable=True)  # `callbacks` show one bar for all prompts
    return LoadedPipeline(pipe.to(device), folder.name if local else source, seam, memory)
