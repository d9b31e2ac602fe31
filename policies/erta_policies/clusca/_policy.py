"""`ClusCa` and `ClusterRefresh`: forecasts of modules, and one fresh token for each cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from erta_framework import Policy, Seam, SessionInfo, Step, Traits, hookimpl
from erta_framework.errors import PolicyError
from erta_framework.modules import (
    Action,
    Ask,
    Keep,
    Parts,
    Place,
    ReuseKept,
    Select,
    Selection,
    Visit,
    list_tensors,
)
from erta_policies.at import At
from erta_policies.clusca._clusters import (
    find_clusters,
    pick_tokens,
    spread_tokens,
    start_clusters,
)
from erta_policies.forecast import Forecaster
from erta_policies.taylorseer import RefreshInterval

PARTS = Select(kind=("attention", "cross", "mlp"))
LAST_BLOCK = Select(kind=("block",), pick="-1")


class ClusterRefresh(Policy):
    """At steps where `of` reuses MLPs, runs them on one token of each cluster, and spreads it.

    At a step where the modules run, the tokens that come out of the last block are grouped by
    k-means; clusters begin where they were. At a reused step an MLP runs on one random token of
    each cluster. Every token becomes `ratio` times the fresh token of its cluster and the rest its
    forecast, and a fresh token is itself. An MLP on other tokens, such as those of the text, keeps
    its forecast, and so do attention and what is fused with it.

    Source: ClusCa, arXiv 2509.10312, and a copy of its code (Cache4Diffusion, `dit/clusca-dit`).
    The code writes into the newest kept output and forecasts from there; mixing after the forecast,
    a fixed number of rounds, and the same random places in every sample are ours.

    Attributes:
        of: An `at` on attention and MLPs.
        clusters: K.
        ratio: Part of the fresh token in the others of its cluster; 0 runs nothing, and is `of`.
        rounds: How often k-means assigns tokens.
        seed: Of the random tokens. They depend on it, the step and the place alone.

    Raises:
        PolicyError: A setting is out of range, or `of` has whole blocks; in the first step, where
            there are fewer tokens than clusters.

    Example:
        >>> when = RefreshInterval(interval=4, first=2)
        >>> ClusterRefresh(of=At(sites=PARTS, when=when)).keeps()
        1
    """

    of: At
    clusters: int = 16
    ratio: float = 0.03
    rounds: int = 10
    seed: int = 0

    traits = Traits(static=True, seams=frozenset({Seam.MODULE}))

    def __post_init__(self) -> None:
        if self.clusters < 1 or self.rounds < 1 or not 0.0 <= self.ratio <= 1.0:
            raise PolicyError(
                f"ClusterRefresh has {self.clusters} clusters, {self.rounds} rounds and ratio "
                f"{self.ratio}; give at least 1 of each, and a ratio within 0 and 1"
            )
        sites = self.of.sites
        if not isinstance(sites, Select) or not set(sites.kind) <= {"attention", "cross", "mlp"}:
            raise PolicyError(
                f"ClusterRefresh refreshes MLPs inside blocks, and of has {sites!r}; give "
                "attention, cross and mlp"
            )

    @property
    def selects(self) -> Sequence[Selection]:
        """The modules, and the last block, whose tokens are grouped."""
        return (*self.of.selects, *((LAST_BLOCK,) if self.ratio else ()))

    def keeps(self) -> int:
        return self.of.keeps()

    def prepare(self) -> None:
        self.of.prepare()

    @hookimpl
    def on_session_start(self, session: SessionInfo) -> None:
        self.of.on_session_start(session)

    @hookimpl
    def assign(self, step: Step, call: Parts) -> Mapping[Place, Action]:
        parts = tuple(place for place in call.sites if place.kind != "block")
        plan = dict(self.of.assign(step, replace(call, sites=parts)))
        if not self.ratio:
            return plan
        (last,) = (place for place in call.sites if place.kind == "block")
        if any(isinstance(action, Keep) for action in plan.values()):
            plan[last] = Ask(self._group)
            return plan
        labels = call.features(last)[0]
        for place, action in plan.items():
            single = place.kind == "mlp" and len(place.modules) == 1
            if single and isinstance(action, ReuseKept):
                plan[place] = Ask(partial(self._refresh, action, labels))
        return plan

    def _group(self, visit: Visit) -> Any:
        """Run the last block, and group its tokens."""
        before = visit.features
        output = visit.run()
        streams = visit.name_streams(output)
        tokens = streams.get(next(iter(visit.streams)), next(iter(streams.values())))
        centroids = before[1] if before else self._start(tokens, visit)
        visit.keep(*find_clusters(tokens, centroids, self.rounds))
        return output

    def _start(self, tokens: Tensor, visit: Visit) -> Tensor:
        if tokens.ndim != 3:
            raise PolicyError(
                f"ClusterRefresh groups tokens [B, N, D], and {visit.place} returns "
                f"{tuple(tokens.shape)}"
            )
        if tokens.shape[1] < self.clusters:
            raise PolicyError(
                f"ClusterRefresh makes {self.clusters} clusters of the {tokens.shape[1]} tokens "
                f"that {visit.place} returns; give at most so many"
            )
        return start_clusters(tokens, self.clusters, self._draw(visit))

    def _refresh(self, action: ReuseKept, labels: Tensor, visit: Visit) -> Any:
        """The forecast of an MLP, with one fresh token a cluster."""
        forecast = visit.reuse(action)
        tensors = list_tensors(forecast)
        if visit.x.shape[:2] != labels.shape or len(tensors) != 1:
            return forecast
        picked = pick_tokens(labels, self.clusters, self._draw(visit))
        made = visit.run_tokens(picked, tensors[0])
        return visit.build([spread_tokens(made, picked, labels, self.ratio)])

    def _draw(self, visit: Visit) -> torch.Generator:
        """Random numbers of one place at one step, on the CPU: alike on any device."""
        number = (self.seed * 10_007 + visit.step.index) * 10_007 + visit.place.depth
        return torch.Generator().manual_seed(number)


class ClusCa(Policy):
    """ClusCa (arXiv 2509.10312), as a recipe: a `ClusterRefresh` on TaylorSeer's forecast.

    Attributes:
        interval: N, a computed step and N - 1 forecasts.
        first: Steps at the start that are computed.
        order: Highest difference of the forecast.
        clusters: K, as in `ClusterRefresh`, like all that follow.
        ratio: Part of the fresh token; the paper's value is not known to us, 0.03 is ours.
        rounds: How often k-means assigns tokens.
        seed: Of the random tokens.
        sites: Which modules.

    Raises:
        PolicyError: A setting is out of range.

    Example:
        >>> [part.name for part in ClusCa(interval=4).parts()]
        ['cluster_refresh']
    """

    interval: int = 5
    first: int = 2
    order: int = 2
    clusters: int = 16
    ratio: float = 0.03
    rounds: int = 10
    seed: int = 0
    sites: Select = field(default_factory=lambda: PARTS)

    def __post_init__(self) -> None:
        self.parts()

    def parts(self) -> Sequence[Policy]:
        what = Forecaster(
            basis="taylor", order=self.order, over="index", since=max(0, self.first - 2)
        )
        when = RefreshInterval(interval=self.interval, first=self.first)
        return (
            ClusterRefresh(
                of=At(sites=self.sites, when=when, what=what),
                clusters=self.clusters,
                ratio=self.ratio,
                rounds=self.rounds,
                seed=self.seed,
            ),
        )
