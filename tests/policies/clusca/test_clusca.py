"""ClusCa: clusters, one fresh token of each, and the algorithm written out."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from erta_framework import CFG, NoGuidance
from erta_framework.config import build_policies
from erta_framework.errors import PolicyError
from erta_framework.modules import Select
from erta_framework.testing import AlternateSteps, BlockFlow
from erta_policies.at import At
from erta_policies.clusca import ClusCa, ClusterRefresh, find_clusters, pick_tokens, spread_tokens
from erta_policies.forecast import taylor
from erta_policies.taylorseer import RefreshInterval, TaylorSeer
from module_plans import gated, request, sample

PARTS = Select(kind=("attention", "mlp"))
STEPS, WIDTH, TOKENS = 9, 8, 32
SMALL = {"sites": PARTS, "interval": 3, "clusters": 4}


def noise(*shape, seed=5):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------- the clusters
def test_separate_groups_are_found():
    centres = torch.tensor([[-9.0], [0.0], [9.0]])
    truth = torch.randint(3, (2, 30), generator=torch.Generator().manual_seed(0))
    tokens = centres[truth] + 0.1 * noise(2, 30, 1)
    labels, centroids = find_clusters(tokens, centres.expand(2, 3, 1) + 1.0, 5)
    assert torch.equal(labels, truth)
    assert torch.allclose(centroids, centres.expand(2, 3, 1), atol=0.2)


def test_tokens_belong_to_their_nearest_centroid():
    tokens, start = noise(2, 20, 3), noise(2, 4, 3, seed=6)
    labels, _ = find_clusters(tokens, start, 1)
    for sample_ in range(2):
        for token in range(20):
            distances = (tokens[sample_, token] - start[sample_]).abs().sum(-1)
            assert labels[sample_, token] == distances.argmin()


def test_an_empty_cluster_keeps_its_centroid_and_others_get_the_mean():
    tokens = torch.tensor([[[1.0], [3.0]]])
    labels, centroids = find_clusters(tokens, torch.tensor([[[2.0], [99.0]]]), 3)
    assert labels.tolist() == [[0, 0]]
    assert centroids.tolist() == [[[2.0], [99.0]]]


def test_more_rounds_fit_no_worse():
    tokens, start = noise(1, 60, 4), noise(1, 5, 4, seed=8)
    errors = []
    for rounds in (1, 3, 20):
        labels, centroids = find_clusters(tokens, start, rounds)
        # means minimise squares
        errors.append(float(((tokens - centroids[0][labels]) ** 2).sum()))
    assert errors[2] <= errors[0]


def test_one_token_of_each_cluster_is_picked():
    labels = torch.tensor([[0, 1, 1, 2, 2, 2], [2, 2, 1, 0, 0, 1]])
    seen = set()
    for seed in range(20):
        picked = pick_tokens(labels, 3, torch.Generator().manual_seed(seed))
        assert torch.equal(labels.gather(1, picked), torch.tensor([[0, 1, 2]] * 2))
        alone = pick_tokens(labels[1:], 3, torch.Generator().manual_seed(seed))
        assert torch.equal(alone[0], picked[1])  # the other samples do not matter
        seen.add(tuple(picked[0].tolist()))
    assert len(seen) == 6


def test_a_token_is_spread_over_its_cluster():
    made = noise(1, 4, 2)
    labels, picked = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[1, 2]])
    for ratio in (0.0, 0.3, 1.0):
        found = spread_tokens(made, picked, labels, ratio)
        expected = ratio * made[:, [1, 1, 2, 2]] + (1 - ratio) * made
        assert torch.allclose(found, expected)
        assert torch.equal(found[:, [1, 2]], made[:, [1, 2]])


# --------------------------------------------------------------------------- the algorithm
class Plain(BlockFlow):
    """The steps of ClusterRefresh, for one branch."""

    def __init__(self, policy):
        super().__init__()
        (self.refresh,) = policy.parts()
        self.schedule = policy.interval, policy.first
        self.step, self.kept, self.labels, self.centroids = 0, {}, None, None

    def draw(self, depth):
        number = (self.refresh.seed * 10_007 + self.step) * 10_007 + depth
        return torch.Generator().manual_seed(number)

    def part(self, key, module, tokens, full, depth=None):
        kept = self.kept.setdefault(key, [])
        if full:
            output = module(tokens)
            kept.insert(0, (float(self.step), output))
            return output
        used = kept[:3]
        weights = taylor([node for node, _ in used], float(self.step), 0.0)
        forecast = sum(w * value for w, (_, value) in zip(weights, used, strict=True))
        if depth is None:
            return forecast
        picked = pick_tokens(self.labels, self.refresh.clusters, self.draw(depth))
        rows = torch.arange(len(tokens))[:, None]
        made = forecast.clone()
        made[rows, picked] = module(tokens[rows, picked])
        fresh = made[rows, picked[rows, self.labels]]
        return self.refresh.ratio * fresh + (1 - self.refresh.ratio) * made

    def _predict(self, x, sigma, shift):
        interval, first = self.schedule
        full = self.step < first or (self.step - first + 1) % interval == 0
        hidden = self.embed((x - shift).flatten(2).transpose(1, 2))
        gate = 0.5 + sigma.reshape(-1, 1, 1)

        def norm(tokens):
            return functional.layer_norm(tokens, tokens.shape[-1:])

        for k, block in enumerate(self.blocks):
            hidden = hidden + gate * self.part((k, "attn"), block.attn, norm(hidden), full)
            hidden = hidden + gate * self.part((k, "mlp"), block.mlp, norm(hidden), full, k)
        if full:
            if self.centroids is None:
                places = torch.randint(
                    hidden.shape[1], (self.refresh.clusters,), generator=self.draw(2)
                )
                self.centroids = hidden[:, places]
            found = find_clusters(hidden, self.centroids, self.refresh.rounds)
            self.labels, self.centroids = found
        self.step += 1
        return x - shift + self.head(hidden).transpose(1, 2).reshape(x.shape)


def run(*policies, network=None, guidance=None, batch=2):
    given = request(steps=STEPS, batch=batch)
    return sample(
        *policies, network=network or BlockFlow(), given=given, guidance=guidance or NoGuidance()
    )


@pytest.mark.parametrize("ratio", [0.1, 0.6, 1.0])
@pytest.mark.parametrize("seed", [0, 3])
def test_it_is_the_algorithm(ratio, seed):
    policy = ClusCa(**SMALL, ratio=ratio, seed=seed)
    expected = run(network=Plain(policy)).sample
    assert torch.allclose(run(policy).sample, expected, rtol=1e-4, atol=1e-5)


def test_ratio_0_is_taylorseer_bit_for_bit():
    plain = TaylorSeer(interval=3, order=2, first=2, level="modules", sites=PARTS)
    for guidance in (NoGuidance(), CFG(scale=2.0)):
        found, expected = (
            run(ClusCa(**SMALL, ratio=0.0), guidance=guidance),
            run(plain, guidance=guidance),
        )
        assert torch.equal(found.sample, expected.sample)
        assert found.trace.work == expected.trace.work


def test_interval_1_changes_nothing():
    policy = ClusCa(sites=PARTS, interval=1, clusters=4)
    assert torch.equal(run(policy).sample, run().sample)


def test_mlps_run_on_as_many_tokens_as_there_are_clusters():
    network, sizes = BlockFlow(), []
    network.blocks[1].mlp.up.register_forward_pre_hook(
        lambda module, args: sizes.append(args[0].shape[1])
    )
    run(ClusCa(**SMALL), network=network)
    full = {0, 1, 4, 7}
    assert sizes == [TOKENS if step in full else 4 for step in range(STEPS)]
    assert not gated(network)


def test_the_work_of_fresh_tokens_counts():
    plain, fresh = run(ClusCa(**SMALL, ratio=0.0)).trace, run(ClusCa(**SMALL, ratio=0.5)).trace
    assert plain.work < fresh.work < fresh.network_samples


def test_random_tokens_belong_to_the_request():
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = run(ClusCa(**SMALL, ratio=0.5)).sample
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(run(ClusCa(**SMALL, ratio=0.5)).sample, first)
    assert not torch.equal(run(ClusCa(**SMALL, ratio=0.5, seed=1)).sample, first)


def test_a_sample_of_a_batch_is_what_it_is_alone():
    whole, policy = request(steps=STEPS), ClusCa(**SMALL, ratio=0.5)
    together = run(policy).sample
    for row in range(2):
        part = slice(row, row + 1)
        alone = type(whole)(
            latents=whole.latents[part],
            cond=whole.cond[part],
            uncond=whole.uncond[part],
            schedule=whole.schedule,
        )
        found = sample(policy, given=alone, guidance=NoGuidance()).sample
        assert torch.allclose(found[0], together[row], rtol=1e-4, atol=1e-5)


def test_beside_a_rule_that_leaves_out_steps():
    result = run(AlternateSteps(), ClusCa(**SMALL, ratio=0.5), guidance=CFG(scale=2.0))
    assert result.sample.isfinite().all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"ratio": 1.5}, "within 0 and 1"),
        ({"clusters": 0}, "at least 1"),
        ({"sites": Select(kind=("block",))}, "attention, cross and mlp"),
        ({"interval": 0}, "at least 1"),
    ],
)
def test_settings_are_refused(options, match):
    with pytest.raises(PolicyError, match=match):
        ClusCa(**options)


def test_more_clusters_than_tokens_are_refused():
    with pytest.raises(
        PolicyError, match=r"makes 33 clusters of the 32 tokens that blocks\.2 returns"
    ):
        run(ClusCa(**{**SMALL, "clusters": 33}))


WHEN = {"refresh_interval": {"interval": 2}}


def test_configuration():
    one, other = build_policies(
        [
            {"clusca": {"interval": 4, "clusters": 8}},
            {"cluster_refresh": {"of": {"at": {"sites": {"kind": ["mlp"]}, "when": WHEN}}}},
        ]
    )
    assert (one.clusters, type(other), type(other.of)) == (8, ClusterRefresh, At)
    assert type(other.of.when) is RefreshInterval
