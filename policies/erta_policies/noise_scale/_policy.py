"""`NoiseScale`: multiplies the noise of the guided prediction, whatever the network predicts."""

from __future__ import annotations

import math
from collections.abc import Generator

from torch import Tensor

from erta_framework import Policy, Seam, SessionInfo, Step, Traits, hookimpl
from erta_framework.errors import CapabilityError, PolicyError
from erta_framework.session import Guided
from erta_policies.noise_scale._curve import NoiseCurve

UNCHANGED = 1e-6
LEAST_ALPHA = 1e-3
"""Below it the latents hold no clean sample that the rest of the prediction could be solved for."""
PREDICTIONS = ("epsilon", "sample", "v_prediction", "velocity")


class NoiseScale(Policy):
    """Multiplies the noise in the guided prediction by a factor for each step.

    Errors of reuse that are alike in neighbouring steps add up; a factor a little below 1 is to
    take out what they add (FEB-Cache, arXiv 2503.07120, where it is b(t)). It acts once a step,
    after guidance and before the solver, at computed steps as well, beside any other policy.

    The paper multiplies predicted noise. For networks that predict v, a flow's velocity or the
    clean sample, the noise that the prediction stands for is scaled, and the prediction is rebuilt
    with the clean sample that the same latents then hold; that is ours, see `scale_noise`. Nothing
    is changed where the factor is 1, and where the latents hold next to no clean sample. Channels
    of a learned variance are left alone.

    Source: FEB-Cache, arXiv 2503.07120; its repository (aSleepyTree/EB-Cache) *divides* by 0.965
    instead. The docs say which direction our measurements favour.

    Attributes:
        scale: One factor for all steps, or one for each step of the schedule, noisiest first; None
            follows `curve`.
        curve: The factor by the part of the run that is left; reading t of the paper as the share
            of the steps is ours.

    Raises:
        PolicyError: A factor is not above 0.

    Example:
        >>> NoiseScale(scale=0.99).factors(3)
        (0.99, 0.99, 0.99)
        >>> [round(factor, 3) for factor in NoiseScale().factors(3)]
        [1.0, 0.98, 0.961]
    """

    traits = Traits(static=True, seams=frozenset(Seam))

    scale: float | tuple[float, ...] | None = None
    curve: NoiseCurve = NoiseCurve()

    def __post_init__(self) -> None:
        given = self.scale if isinstance(self.scale, tuple) else (self.scale,)
        for factor in given:
            if factor is not None and not 0.0 < factor < math.inf:
                raise PolicyError(f"scale of NoiseScale is {factor}; give factors above 0")
        if not given:
            raise PolicyError("scale of NoiseScale is an empty list; give a factor for each step")

    def factors(self, num_steps: int) -> tuple[float, ...]:
        """The factor of each step, noisiest first.

        Raises:
            PolicyError: `scale` is a list for another number of steps.
        """
        if isinstance(self.scale, tuple):
            if len(self.scale) != num_steps:
                raise PolicyError(
                    f"scale of NoiseScale has {len(self.scale)} factors, the run has {num_steps} "
                    "steps; give one for each, or one number"
                )
            return self.scale
        if self.scale is not None:
            return (self.scale,) * num_steps
        last = max(1, num_steps - 1)
        return tuple(self.curve.at(1.0 - index / last) for index in range(num_steps))

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        if session.prediction not in PREDICTIONS:
            raise CapabilityError(
                f"{self!r} must know what the network predicts, but this driver says "
                f"{session.prediction!r}, none of {', '.join(PREDICTIONS)}; name it as "
                "SessionInfo.prediction, or remove the policy"
            )
        factors = self.factors(session.num_steps)
        session.state_of(self, lambda: factors)

    @hookimpl(wrapper=True)
    def adjust_prediction(self, step: Step, guided: Guided) -> Generator[None, Tensor, Tensor]:
        prediction = yield
        factors: tuple[float, ...] = step.session.state_of(self, tuple)
        factor = factors[step.index]
        if abs(factor - 1.0) < UNCHANGED or guided.alpha < LEAST_ALPHA:
            return prediction
        return scale_noise(
            prediction, guided.x, factor, guided.alpha, guided.level, step.session.prediction
        )


def scale_noise(
    prediction: Tensor, x: Tensor, factor: float, alpha: float, level: float, kind: str
) -> Tensor:
    """The prediction whose noise is `factor` times as large, on the same latents.

    With `x = alpha * clean + level * noise`, noise becomes `factor * noise` and the clean sample
    what then remains, `(x - level * factor * noise) / alpha`. Solved for each prediction p:

    | p | becomes |
    |---|---|
    | noise | `s p` |
    | clean sample | `s p + (1 - s) x / alpha` |
    | velocity `noise - clean`, alpha = 1 - level | `s p - (1 - s) x / alpha` |
    | v, with n = `sqrt(alpha^2 + level^2)` | `s p - (1 - s) x * level / (alpha n)` |

    Args:
        prediction: `[B, C, ...]`, or with more channels, of which those behind the first C stay.
        x: The latents, `[B, C, ...]`.
        factor: s.
        alpha: Factor of the clean sample in the latents, above 0.
        level: Factor of the noise.
        kind: What the prediction is, such as `"v_prediction"`.

    Raises:
        PolicyError: The prediction has neither the shape of the latents nor more channels.

    Example:
        >>> import torch
        >>> x, clean = torch.tensor([1.4]), torch.tensor([1.0])
        >>> scale_noise(clean, x, 0.5, 0.8, 0.6, "sample")  # 0.8 * 1.375 + 0.6 * 0.5 = 1.4
        tensor([1.3750])
    """
    if prediction.shape != x.shape:
        dim = find_longer_dim(prediction.shape, x.shape)
        mean = prediction.narrow(dim, 0, x.shape[dim])
        whole = prediction.clone()
        scaled = scale_noise(mean, x, factor, alpha, level, kind)
        whole.narrow(dim, 0, x.shape[dim]).copy_(scaled)
        return whole
    share = {
        "epsilon": 0.0,
        "sample": 1.0 / alpha,
        "velocity": -1.0 / alpha,
        "v_prediction": -level / (alpha * math.hypot(alpha, level)),
    }[kind]
    scaled = prediction * factor
    if share:
        scaled = scaled.add(x.to(scaled.dtype), alpha=(1.0 - factor) * share)
    return scaled


def find_longer_dim(prediction: tuple[int, ...], x: tuple[int, ...]) -> int:
    """The one dimension in which a prediction is longer than its latents.

    Raises:
        PolicyError: It is not like the latents but for one longer dimension.
    """
    dims = [d for d, (a, b) in enumerate(zip(prediction, x, strict=False)) if a != b]
    if len(prediction) != len(x) or len(dims) != 1 or prediction[dims[0]] < x[dims[0]]:
        raise PolicyError(
            f"the guided prediction has the shape {tuple(prediction)} and its latents {tuple(x)}, "
            "so its noise cannot be scaled; remove noise_scale"
        )
    return dims[0]
