"""`BandForecast` and `BandCorrection`: a forecast in the high band, reuse in the low one."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial

from torch import Tensor

from erta_framework import Call, Needs, Policy, SessionInfo, Step, Traits, hookimpl
from erta_framework.errors import CapabilityError, PolicyError
from erta_framework.modules import Of, Parts, Place
from erta_policies.at import Correction
from erta_policies.freqca._bands import HighPass, Transform
from erta_policies.shared import grid_dims


class BandForecast(Policy):
    """Keeps the low frequencies of a forecast output at those of the newest computed output.

    Stands before a predictor, such as `forecaster`: what that gives, P, becomes F + high(P - F)
    with the newest computed output F. That is F's low band and P's high band, for one transform.

    Source: FreqCa (Tammytcl/FreqCa at e0a4bf3), which splits every kept feature; that it comes to
    one high-pass of the difference is ours.

    Attributes:
        transform: `fft` along all places of the grid in order, as along tokens; `dct` over height
            and width.
        cutoff: Part of the highest frequency up to which a frequency is low.

    Raises:
        PolicyError: A setting is out of range.
        CapabilityError: At the start of a request, `dct` for latents without height and width.

    Example:
        >>> BandForecast(cutoff=0.2).traits.memory.evaluations
        1
    """

    transform: Transform = "fft"
    cutoff: float = 0.1

    traits = Traits(static=True, memory=Needs(evaluations=1, pairs=True))

    def __post_init__(self) -> None:
        self.band  # noqa: B018 - refuses settings out of range

    @property
    def band(self) -> HighPass:
        """What is forecast."""
        return HighPass(self.transform, self.cutoff)

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        dims = grid_dims(session.shape, session.channel_dim)
        if self.transform == "dct" and len(dims) < 2:
            raise CapabilityError(
                f"{self!r} splits height and width, and this request has latents of "
                f"{tuple(session.shape)} with the channels at {session.channel_dim}, which have "
                "none; give transform='fft'"
            )

    @hookimpl(wrapper=True)
    def forward(self, step: Step, call: Call) -> Generator[None, Tensor, Tensor]:
        made = yield
        if not call.reused:
            return made
        newest = call.history[0].tensor("output")
        # packed tokens are one axis
        dims = grid_dims(made.shape, step.session.channel_dim) or (1,)
        return mix_bands(made, newest, self.band, dims)


class BandCorrection(Correction):
    """The same at places inside the network, whose tokens stand in the second dimension.

    Source: FreqCa, as `BandForecast`.

    Attributes:
        cutoff: Part of the highest frequency up to which a frequency is low.

    Raises:
        PolicyError: The cutoff is out of range.

    Example:
        >>> BandCorrection(cutoff=0.2).band.transform
        'fft'
    """

    cutoff: float = 0.1

    def __post_init__(self) -> None:
        self.band  # noqa: B018 - refuses settings out of range

    @property
    def band(self) -> HighPass:
        """What is forecast."""
        return HighPass("fft", self.cutoff)

    def correct(
        self, index: int, call: Parts, place: Place, of: Of
    ) -> tuple[Callable[[Tensor], Tensor], ...]:
        newest = call.newest(place, of)
        return tuple(partial(mix_tokens, newest=one, band=self.band) for one in newest)


def mix_tokens(made: Tensor, newest: Tensor, band: HighPass) -> Tensor:
    """A forecast's high frequencies along the tokens `[B, N, C]`, and what was kept for the rest.

    Raises:
        PolicyError: It has no tokens.
    """
    if made.ndim < 3:
        raise PolicyError(
            f"band_correction got a tensor {tuple(made.shape)}, which has no tokens [B, N, C]; "
            "select blocks, attention or MLPs"
        )
    return mix_bands(made, newest, band, tuple(range(1, made.ndim - 1)))


def mix_bands(made: Tensor, newest: Tensor, band: HighPass, dims: tuple[int, ...]) -> Tensor:
    """`F + high(P - F)`: a forecast's high frequencies, and the rest of what was computed.

    Args:
        made: The forecast P.
        newest: What was computed, F.
        band: The high-pass.
        dims: Dimensions of the tokens or of the grid.
    """
    return newest + band(made - newest, dims)
