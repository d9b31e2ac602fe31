"""Which ranks share a sample."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from erta_framework.errors import InputError
from erta_integrations.fabric.agreement._collectives import AgreementError

HOW = (
    "give a DeviceMesh with the names of its dimensions, a process group, or the ranks that share "
    "a sample"
)


def find_group(
    source: Any, dims: str | Sequence[str] = (), *, timeout: float | None = None
) -> dist.ProcessGroup | None:
    """Find the ranks that compute one sample, or one network, together with this rank.

    Data-parallel ranks are no such group. For them the result is None: nobody has to agree.

    Args:
        source: A launched `Fabric` (or its strategy), a `DeviceMesh`, a process group, or a list
            of global ranks. Ranks that are not in a list need not call this.
        dims: Names of the mesh dimensions over which a sample is split, such as `"ulysses"` or
            `("cfg", "ulysses")`. May be left out for a mesh of one dimension, and for a strategy
            that leaves no choice.
        timeout: Makes a group of its own over these ranks, whose collectives fail after this many
            seconds; by default an existing group is used.

    Raises:
        InputError: What is given names no group, or leaves a choice.
        AgreementError: A new group could not be made, because some rank did not take part.

    Example:
        >>> mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "context"))
        ... # doctest: +SKIP
        >>> find_group(mesh, "context")  # doctest: +SKIP
    """
    if isinstance(source, dist.ProcessGroup):
        return (
            source
            if timeout is None
            else create_group(dist.get_process_group_ranks(source), timeout)
        )
    if isinstance(source, DeviceMesh):
        return find_mesh_group(source, (dims,) if isinstance(dims, str) else tuple(dims), timeout)
    if isinstance(source, Sequence) and not isinstance(source, str):
        return create_group([int(rank) for rank in source], timeout)
    strategy = getattr(source, "strategy", source)
    if type(strategy).__module__.split(".")[0] not in ("lightning", "lightning_fabric"):
        raise InputError(f"find_group got {source!r}; {HOW}")
    found = find_strategy_group(strategy, (dims,) if isinstance(dims, str) else tuple(dims))
    if isinstance(found, tuple):
        return find_mesh_group(*found, timeout)
    if found is None or timeout is None:
        return found
    return create_group(dist.get_process_group_ranks(found), timeout)


def find_mesh_group(
    mesh: DeviceMesh, dims: tuple[str, ...], timeout: float | None
) -> dist.ProcessGroup | None:
    """The group of some dimensions of a mesh."""
    known = mesh.mesh_dim_names or ()
    unknown = [name for name in dims if name not in known]
    if unknown:
        raise InputError(
            f"the mesh has no dimension {unknown[0]!r}, it has {', '.join(known) or 'no names'}"
        )
    if not dims and mesh.ndim > 1:
        raise InputError(
            f"the mesh has the dimensions {', '.join(known) or mesh.shape}; name those over which "
            f"a sample is split, such as find_group(mesh, {(known or ('name',))[-1]!r})"
        )
    if len(dims) < 2 and timeout is None:
        return mesh.get_group(dims[0] if dims else None)
    chosen = mesh[dims] if dims else mesh
    return create_group(chosen.mesh.flatten().tolist(), timeout)


def find_strategy_group(
    strategy: Any, dims: tuple[str, ...]
) -> dist.ProcessGroup | tuple[DeviceMesh, tuple[str, ...]] | None:
    """The group of a strategy of Fabric, or the dimensions of its mesh."""
    from lightning.fabric.strategies.ddp import DDPStrategy
    from lightning.fabric.strategies.deepspeed import DeepSpeedStrategy
    from lightning.fabric.strategies.fsdp import FSDPStrategy
    from lightning.fabric.strategies.model_parallel import ModelParallelStrategy
    from lightning.fabric.strategies.single_device import SingleDeviceStrategy

    # DeepSpeed's is a DDPStrategy as well, but may gather weights from other ranks
    whole = isinstance(strategy, SingleDeviceStrategy | DDPStrategy)
    if whole and not isinstance(strategy, DeepSpeedStrategy):
        return None
    if isinstance(strategy, ModelParallelStrategy):
        mesh = require_launched(strategy).device_mesh
        several = tuple(n for n in mesh.mesh_dim_names or () if mesh[n].size() > 1)
        if not dims and len(several) > 1:
            raise InputError(
                "ModelParallelStrategy has the dimensions data_parallel and tensor_parallel; name "
                "('tensor_parallel',) if each data-parallel rank has weights of its own, or "
                "('data_parallel', 'tensor_parallel') if fully_shard divides them between these "
                "ranks, since they then compute together"
            )
        chosen = dims or several
        return (mesh, chosen) if chosen else None
    if isinstance(strategy, FSDPStrategy):
        return find_fsdp_group(require_launched(strategy), dims)
    raise InputError(
        f"the ranks of {type(strategy).__name__} that compute together are not known; {HOW}"
    )


def find_fsdp_group(
    strategy: Any, dims: tuple[str, ...]
) -> dist.ProcessGroup | tuple[DeviceMesh, tuple[str, ...]]:
    """The ranks between which FSDP divides the weights: replicas of the whole stay apart."""
    settings = strategy._fsdp_kwargs
    mesh, given = settings.get("device_mesh"), settings.get("process_group")
    if isinstance(mesh, DeviceMesh):
        if mesh.ndim == 1 or dims:
            return mesh, dims
        if mesh.mesh_dim_names:
            return mesh, (mesh.mesh_dim_names[-1],)
        return mesh.get_group(mesh.ndim - 1)
    if isinstance(given, tuple):  # hybrid: shards, then replicas
        given = given[0]
    if isinstance(given, dist.ProcessGroup):
        return given
    world = dist.group.WORLD
    assert world is not None
    return world


def require_launched(strategy: Any) -> Any:
    """The strategy, if its processes are running.

    Raises:
        InputError: They are not.
    """
    if not dist.is_initialized():
        raise InputError(
            f"the processes of {type(strategy).__name__} do not exist yet; call fabric.launch() "
            "before find_group(fabric)"
        )
    return strategy


def create_group(
    ranks: Sequence[int], timeout: float | None, backend: str | None = None
) -> dist.ProcessGroup:
    """A new group over these ranks; only they call this.

    Args:
        ranks: Global ranks.
        timeout: Seconds after which its collectives fail.
        backend: What carries its messages; by default that of all ranks.

    Raises:
        InputError: This rank is not among them.
        AgreementError: The others did not make it as well.
    """
    rank = dist.get_rank()
    if rank not in ranks:
        raise InputError(
            f"rank {rank} is not among the ranks {list(ranks)} that share a sample; give each rank "
            "the list of its own group"
        )
    limit = None if timeout is None else timedelta(seconds=timeout)
    try:
        group = dist.new_group(
            list(ranks), timeout=limit, backend=backend, use_local_synchronization=True
        )
    except RuntimeError as error:
        raise AgreementError(
            f"rank {rank} could not make a group of the ranks {list(ranks)}: {error}. One of them "
            "died, or did not call find_group with the same ranks as often as the others"
        ) from error
    assert isinstance(group, dist.ProcessGroup)
    return group
