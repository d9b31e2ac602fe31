"""The facts of a run that its calibration depends on."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache

from erta_framework.session import Seam, SessionInfo


def make_fingerprint(session: SessionInfo) -> dict[str, str]:
    """The facts of a run that its calibration depends on, as readable strings.

    Guidance branches, the network and its configuration, solver, sigma grid, latent shape without
    the batch, dtype and guidance.
    """
    return {
        **{f"model.{key}": value for key, value in sorted(session.model.items())},
        # residuals of tokens are no residuals of latents
        **({} if session.seam is Seam.LATENT else {"model.seam": session.seam.value}),
        # what is reused of an evaluation is what was measured of it
        **({} if session.reused == "residual" else {"reused": session.reused}),
        "solver": session.solver,
        "num_steps": str(session.num_steps),
        "sigma_grid": hash_grid(
            tuple(map(float, session.sigmas)), tuple(map(float, session.times))
        ),
        "guidance": session.guidance,
        "branches": ",".join(session.branches),
        "latent_shape": "x".join(str(size) for size in session.shape[1:]),
        "dtype": str(session.dtype).removeprefix("torch."),
    }


@lru_cache(maxsize=64)
def hash_grid(sigmas: tuple[float, ...], times: tuple[float, ...]) -> str:
    """Hash of a sigma grid; the requests of a pipeline share theirs."""
    return hashlib.sha256(json.dumps([sigmas, times]).encode()).hexdigest()[:16]
