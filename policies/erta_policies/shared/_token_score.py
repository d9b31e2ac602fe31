"""Which tokens are worth running again: by norm, by age, and spread over the grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from erta_framework.errors import CapabilityError, PolicyError
from erta_framework.modules import Parts, Place, Tokens
from erta_policies.shared._signals import grid_dims

EPS = 1e-12
"""So that a score of zeros stays one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScore:
    """Scores the tokens of each sample, and takes the best.

    `s = norm / |norms| + age_weight * age / age_scale`, and in each cell of `cell` x `cell` tokens
    the best one gets `spread * s` on top. The norm is that of what the place keeps of a token. Ties
    go to the earlier token.

    Source: steps 2 and 3 of the score are ToCa's (arXiv 2410.05317), which ProCache takes over. The
    first step is the norm of ProCache's paper (arXiv 2512.17298, known from a reading of it); the
    code of both scores by the attention that a token receives, which fused kernels do not give.

    Attributes:
        age_weight: Weight of the steps since a token ran; 0 leaves age out.
        age_scale: Steps that count as age 1, N_f.
        spread: Bonus of the best token of each cell, as a part of its score; 0 for none.
        cell: Side of a cell, in tokens.
        grid: Height and width of the tokens; None reads them off the latents. Frames follow each
            other.

    Raises:
        PolicyError: A setting is out of range.

    Example:
        >>> kept = torch.tensor([[[1.0], [3.0], [2.0], [0.0]]])
        >>> TokenScore().choose(kept, count=2)
        tensor([[1, 2]])
    """

    age_weight: float = 0.25
    age_scale: float = 4.0
    spread: float = 0.0
    cell: int = 2
    grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        numbers = {"age_weight": self.age_weight, "spread": self.spread}
        for name, value in numbers.items():
            if not 0.0 <= value < math.inf:
                raise PolicyError(f"{name} of a token score is {value}, it must be at least 0")
        if not 0.0 < self.age_scale < math.inf:
            raise PolicyError(f"age_scale of a token score is {self.age_scale}, it must be above 0")
        if self.cell < 1 or (self.grid is not None and min(self.grid) < 1):
            raise PolicyError(
                f"a token score has cells of {self.cell} and the grid {self.grid}; both must be at "
                "least 1"
            )

    def choose(
        self,
        kept: Tensor,
        *,
        count: int,
        ages: Tensor | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """The best tokens of each sample.

        Args:
            kept: What is kept of them, `[B, N, D]`.
            count: How many, K.
            ages: Steps since each ran, `[B, N]`.
            grid: Height and width, where tokens are spread; by default the setting.

        Returns:
            Their places, rising, `[B, K]`.

        Raises:
            PolicyError: Tokens are to be spread, and the grid is not known or does not fit.
        """
        score = self.score(kept, ages=ages, grid=grid)
        best: Tensor = score.argsort(dim=1, descending=True, stable=True)[:, :count]
        return best.sort(dim=1).values

    def score(
        self, kept: Tensor, *, ages: Tensor | None = None, grid: tuple[int, int] | None = None
    ) -> Tensor:
        """The score of each token, `[B, N]`; arguments as in `choose`."""
        norms = torch.linalg.vector_norm(kept, dim=-1, dtype=torch.float32)
        score: Tensor = norms / norms.norm(dim=1, keepdim=True).clamp_min(EPS)
        if ages is not None and self.age_weight:
            score = score + self.age_weight / self.age_scale * ages
        if self.spread:
            score = score + self.spread * mark_best(score, self._find_grid(score, grid), self.cell)
        return score

    def _find_grid(self, score: Tensor, grid: tuple[int, int] | None) -> tuple[int, int]:
        height, width = self.grid or grid or (0, 0)
        number = score.shape[1]
        if not height or number % (height * width) or height % self.cell or width % self.cell:
            known = f"{height} x {width}" if height else "not known here"
            raise PolicyError(
                f"{number} tokens are to be spread over cells of {self.cell} x {self.cell}, but "
                f"their grid is {known}; give grid=(height, width) in tokens that divides into "
                "such cells, or spread=0"
            )
        return height, width


def mark_best(score: Tensor, grid: tuple[int, int], cell: int) -> Tensor:
    """The score where it is the highest of its cell, else 0; the first one of equals.

    Args:
        score: `[B, N]`, frame by frame and row by row.
        grid: Height and width.
        cell: Side of a cell; it divides both.

    Example:
        >>> mark_best(torch.tensor([[1.0, 4.0, 2.0, 3.0]]), (2, 2), 2)
        tensor([[0., 4., 0., 0.]])
    """
    (height, width), batch = grid, score.shape[0]
    rows, columns = height // cell, width // cell
    cells = score.reshape(batch, -1, rows, cell, columns, cell).transpose(3, 4)
    flat = cells.reshape(*cells.shape[:4], cell * cell)
    best = flat.argmax(dim=-1, keepdim=True)
    marked = torch.zeros_like(flat).scatter(-1, best, flat.gather(-1, best))
    return marked.reshape(cells.shape).transpose(3, 4).reshape(batch, -1)


def read_token_grid(x: Tensor, channel_dim: int, tokens: int) -> tuple[int, int] | None:
    """Height and width of the tokens of latents, where they are square patches.

    Args:
        x: The latents, `[B, C, H, W]` or `[B, C, F, H, W]`.
        channel_dim: Dimension of the channels.
        tokens: How many there are.

    Returns:
        None for packed latents, and where no size of patches gives as many tokens.

    Example:
        >>> read_token_grid(torch.zeros(1, 4, 16, 32), 1, 128)
        (8, 16)
    """
    dims = grid_dims(x.shape, channel_dim)
    if len(dims) < 2:
        return None
    height, width = (x.shape[d] for d in dims[-2:])
    frames = math.prod(x.shape[d] for d in dims[:-2])
    sizes = (p for p in range(1, min(height, width) + 1) if height % p == width % p == 0)
    for patch in sizes:
        grid = height // patch, width // patch
        if grid[0] * grid[1] * frames == tokens:
            return grid
    return None


@dataclass(slots=True)
class TokenAges:
    """Steps since each token of a place ran, `[B, N]`, for the whole batch.

    Attributes:
        ages: The ages; None before the first refresh after a whole run.
        since: Step of that whole run, for each sample.
    """

    ages: Tensor | None = None
    since: tuple[int, ...] = field(default=())

    def read(self, kept: Tensor, batch: int, since: Sequence[int], rows: Sequence[int]) -> Tensor:
        """Ages of the tokens of the samples that run, `[R, N]`; 0 for a sample that ran whole.

        Args:
            kept: What the place keeps of them, `[R, N, D]`.
            batch: Samples of the whole batch.
            since: Step at which each of these samples ran whole, `R` of them.
            rows: Their places in the batch.
        """
        if self.ages is None or self.ages.shape[1] != kept.shape[1]:
            self.ages = torch.zeros(batch, kept.shape[1], dtype=torch.int32, device=kept.device)
            self.since = (-1,) * batch
        known = list(self.since)
        renewed = [row for row, step in zip(rows, since, strict=True) if known[row] != step]
        if renewed:
            self.ages[renewed] = 0
            for row, step in zip(rows, since, strict=True):
                known[row] = step
            self.since = tuple(known)
        return self.ages if len(rows) == batch else self.ages[list(rows)]

    def advance(self, chosen: Tensor, rows: Sequence[int]) -> None:
        """One refresh further: the chosen tokens have age 0, the others are one older.

        Args:
            chosen: Places of the chosen tokens, `[R, K]`.
            rows: The samples.
        """
        assert self.ages is not None
        aged = (self.ages[list(rows)] + 1).scatter(1, chosen, 0)
        self.ages = self.ages.index_copy(
            0, torch.tensor(list(rows), device=aged.device), aged.to(self.ages.dtype)
        )


def require_tokens(policy: object, place: Place, kept: Tensor, samples: int) -> None:
    """Refuse a place whose output is no `[B, N, D]`, such as one with frames in place of samples.

    Raises:
        CapabilityError: Names the place and its shape.
    """
    if kept.ndim != 3 or kept.shape[0] != samples:
        raise CapabilityError(
            f"{policy!r} refreshes tokens [{samples}, N, D] of {samples} samples, and {place} "
            f"returns {tuple(kept.shape)}; give select=False, or sites without such modules"
        )


def refresh_tokens(
    policy: object, call: Parts, place: Place, score: TokenScore, ratio: float, channel_dim: int = 1
) -> Tokens | None:
    """Run a place again on its best tokens; what comes out replaces what is kept of these.

    It lasts: later steps reuse it. Ages of tokens count refreshes, as in ToCa, and begin anew when
    the place runs as a whole.

    Args:
        policy: Keeps the ages.
        call: The network call.
        place: A place of it that keeps one output `[B, N, D]`.
        score: Says which are best.
        ratio: Part of the tokens, rounded down; outside of [0, 1] it is the nearer end.
        channel_dim: Dimension of the channels of the latents.

    Returns:
        The action; None where no token is due, and the place is reused.

    Raises:
        CapabilityError: The place keeps no tokens of each sample.
    """
    kept = call.kept(place)[0].example
    count = math.floor(min(max(ratio, 0.0), 1.0) * kept.shape[1] + 1e-9)
    rows = range(call.batch) if call.rows is None else call.rows
    require_tokens(policy, place, kept, len(rows))
    since = [stamp[0] for stamp in call.stamps(place)[0]]
    held = call.states.get(policy, call.site_of(place), TokenAges)
    ages = held.read(kept, call.batch, since, rows)
    if not count:
        held.advance(torch.empty(len(rows), 0, dtype=torch.long, device=kept.device), rows)
        return None
    grid = None
    if score.spread and score.grid is None:
        grid = read_token_grid(call.x, channel_dim, kept.shape[1])
    chosen = score.choose(kept, count=count, ages=ages, grid=grid)
    held.advance(chosen, rows)
    return Tokens(chosen)
