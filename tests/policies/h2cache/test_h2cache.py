"""H2-Cache and first-block gates against their steps written out plainly."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch.nn import functional

from erta_framework import CFG, NoGuidance, Policy, Reuse, Traits, hookimpl
from erta_framework.config import build_policies, options_of
from erta_framework.errors import CapabilityError, ConflictError, PolicyError
from erta_framework.modules import Select
from erta_framework.testing import AlternateSteps, BlockFlow
from erta_policies.h2cache import FirstBlockGate, H2Cache, count_outcomes
from erta_policies.shared import pool_squares
from erta_policies.taylorseer import RefreshInterval
from module_plans import gated, request, sample, visits

STEPS = 12


class TwoStages(BlockFlow):
    """A toy with a list of four blocks and a list of three, named as those of FLUX."""

    def __init__(self):
        super().__init__(depth=7)
        self.transformer_blocks = self.blocks[:4]
        self.single_transformer_blocks = self.blocks[4:]
        del self.blocks

    def run_blocks(self, hidden, gate):
        for block in (*self.transformer_blocks, *self.single_transformer_blocks):
            hidden = block(hidden, gate)
        return hidden

    def _predict(self, x, sigma, shift):
        tokens = (x - shift).flatten(2).transpose(1, 2)
        hidden = self.run_blocks(self.embed(tokens), 0.5 + sigma.reshape(-1, 1, 1))
        return x - shift + self.head(hidden).transpose(1, 2).reshape(x.shape)


class Published(TwoStages):
    """The step list of the released code, for one branch, written out plainly."""

    def __init__(self, tau1, tau2, sides=(1, 1)):
        super().__init__()
        self.tau, self.sides = (tau1, tau2), sides
        self.ref, self.res, self.outcomes = [None, None], [None, None], []

    def change(self, stage, now):
        k = self.sides[stage]
        before, now = (functional.avg_pool2d(t[:, None], k, k) for t in (self.ref[stage], now))
        return float((now - before).abs().mean() / before.abs().mean())

    def run_blocks(self, hidden, gate):
        hit, letters = False, ""
        for stage, blocks in enumerate((self.transformer_blocks, self.single_transformer_blocks)):
            first = blocks[0](hidden, gate)
            residual = first - hidden
            forced = stage == 1 and hit
            known = self.ref[stage] is not None
            hit = forced or (known and self.change(stage, residual) < self.tau[stage])
            letters += "MH"[hit]
            if hit:
                hidden = first + self.res[stage]
                continue
            self.ref[stage], hidden = residual, first
            for block in blocks[1:]:
                hidden = block(hidden, gate)
            self.res[stage] = hidden - first
        self.outcomes.append(letters)
        return hidden


def run(*policies, network=None, guidance=None, **options):
    network = TwoStages() if network is None else network
    given = request(steps=STEPS, **options)
    return sample(*policies, network=network, given=given, guidance=guidance or NoGuidance())


@pytest.mark.parametrize("tau1", [-1.0, 0.1, 0.2, 0.3])
@pytest.mark.parametrize("tau2", [0.0, 0.22, 0.4])
@pytest.mark.parametrize("fixed", [False, True])
def test_it_is_the_released_algorithm(tau1, tau2, fixed):
    # 32 tokens of 8 channels: fewer than the rows of the release, and a square of 12 does not fit
    published = Published(tau1, tau2, (2, 8) if fixed else (1, 1))
    expected = run(network=published)
    found = run(H2Cache(tau1=tau1, tau2=tau2, fixed_pooling=fixed))
    assert torch.equal(found.sample, expected.sample)
    counted = Counter(published.outcomes)
    assert count_outcomes(found.trace) == {k: counted[k] for k in ("HH", "MH", "MM")}
    assert "HM" not in counted


def test_every_outcome_comes_up_and_runs_the_blocks_that_it_says():
    network = TwoStages()
    lists = ("transformer_blocks", 4), ("single_transformer_blocks", 3)
    paths = [f"{name}.{k}.mlp.up" for name, size in lists for k in range(size)]
    counts = visits(network, *paths)
    found = count_outcomes(run(H2Cache(tau1=0.2, tau2=0.3), network=network).trace)
    assert min(found.values()) > 0
    for path, count in counts.items():
        stage, place = path.split(".")[:2]
        missed = found["MM"] + (found["MH"] if stage == "transformer_blocks" else 0)
        assert count == (STEPS if place == "0" else missed), path


def test_residuals_are_pooled_to_the_sizes_of_the_release_at_1024():
    """4096 image tokens, and 512 text tokens before them; 3072 channels there, 384 here."""
    first, second = H2Cache().gates
    image, text = torch.randn(1, 4096, 384), torch.randn(1, 512, 384)
    before = {"hidden_states": torch.zeros_like(image), "encoder_hidden_states": 0 * text}
    after = {"encoder_hidden_states": text, "hidden_states": image}
    one, two = first.measure(before, after), second.measure(before, after)
    assert one.shape == (1, 2048, 192)
    assert two.shape == (1, 384, 32)
    joined = torch.cat([text, image], dim=1)
    torch.testing.assert_close(one[0, 5, 7], image[0, 10:12, 14:16].mean())
    torch.testing.assert_close(two[0, 5, 7], joined[0, 60:72, 84:96].mean())


def test_a_small_image_is_not_pooled_where_the_release_divides_by_zero():
    first, _ = H2Cache().gates
    image = torch.randn(1, 1024, 16)
    assert torch.equal(first.measure({"x": 0 * image}, {"x": image}), image)
    assert pool_squares(torch.ones(1, 3, 4), 12).shape == (1, 1, 1)


def test_a_first_stage_that_is_left_out_takes_the_second_with_it():
    """Even where the second stage alone would never be left out."""
    assert count_outcomes(run(H2Cache(tau1=0.3, tau2=-1.0)).trace)["HH"] == 5


@pytest.mark.parametrize("most", [1, 2])
def test_a_limit_holds_for_both_stages_and_leaves_no_stage_alone(most):
    found = run(H2Cache(tau1=9.0, tau2=9.0, max_consecutive=most))
    outcomes = [step.calls[0].sites["span"][0] for step in found.trace.steps]
    assert outcomes == [0 if k % (most + 1) else 2 for k in range(STEPS)]
    alone = run(H2Cache(tau1=0.2, tau2=9.0, max_consecutive=most)).trace
    ages = {"span": 0}
    for step in alone.steps:
        ran, reused, _ = step.calls[0].sites["span"]
        assert ran + reused == 2
        ages["span"] = 0 if ran == 2 else ages["span"] + 1
        assert ages["span"] <= most


def test_warmup_runs_every_block():
    found = run(H2Cache(tau1=9.0, tau2=9.0, warmup=4)).trace
    assert [s.calls[0].sites["span"][0] for s in found.steps[:5]] == [2, 2, 2, 2, 0]


def test_nothing_reused_changes_no_bit():
    for policy in (H2Cache(tau1=0.0, tau2=0.0), FirstBlockGate(threshold=0.0, head=2, tail=1)):
        assert torch.equal(run(policy).sample, run().sample)


@pytest.mark.parametrize("each_branch", [False, True])
def test_the_first_branch_decides_for_all(each_branch):
    policy = H2Cache(tau1=0.2, tau2=0.3, each_branch=each_branch)
    found = run(policy, guidance=CFG(scale=3.0), network=Unlike())
    pairs = [[call.sites["span"] for call in step.calls] for step in found.trace.steps]
    assert all(len(pair) == 2 for pair in pairs)
    assert all(one == other for one, other in pairs) is not each_branch


class Unlike(TwoStages):
    """The branches change at different rates."""

    def _predict(self, x, sigma, shift):
        return super()._predict(x, sigma * (1.0 + 3.0 * shift.mean().abs()), shift)


def test_stages_of_a_network_with_one_list_are_split_at_a_block():
    found = run(H2Cache(tau1=9.0, tau2=9.0, split=4), network=BlockFlow(depth=7))
    same = run(H2Cache(tau1=9.0, tau2=9.0))
    assert torch.equal(found.sample, same.sample)
    assert count_outcomes(found.trace) == {"HH": STEPS - 1, "MH": 0, "MM": 1}
    with pytest.raises(CapabilityError, match="there are 7 block in blocks"):
        run(H2Cache(), network=BlockFlow(depth=7))
    with pytest.raises(CapabilityError, match="none of them is picked"):
        run(H2Cache(split=6), network=BlockFlow(depth=7))


def test_memory_is_what_the_two_stages_keep():
    found = run(H2Cache(tau1=0.2, tau2=0.3), batch=2).trace
    assert found.module_bytes == 4 * 2 * 32 * 8 * 4  # two residuals and two references
    pooled = run(H2Cache(tau1=0.2, tau2=0.3, fixed_pooling=True), batch=2).trace
    assert pooled.module_bytes == (2 * 32 * 8 + 16 * 4 + 4) * 2 * 4


# ------------------------------------------------------------------------ the one gate
class PlainGate(TwoStages):
    """DBCache written out plainly: Fn blocks, a test, the middle or its residual, Bn blocks."""

    def __init__(self, threshold, head, tail):
        super().__init__()
        self.settings_of = threshold, head, tail
        self.ref = self.res = None
        self.hits = []

    def run_blocks(self, hidden, gate):
        threshold, head, tail = self.settings_of
        blocks = (*self.transformer_blocks, *self.single_transformer_blocks)
        first = hidden
        for block in blocks[:head]:
            first = block(first, gate)
        now, middle = first - hidden, blocks[head : len(blocks) - tail]
        hit = self.ref is not None and (
            float((now - self.ref).abs().mean() / self.ref.abs().mean()) < threshold
        )
        out = first
        if hit:
            out = first + self.res
        else:
            for block in middle:
                out = block(out, gate)
            self.ref, self.res = now, out - first
        self.hits.append(hit)
        for block in blocks[len(blocks) - tail :]:
            out = block(out, gate)
        return out


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5])
@pytest.mark.parametrize(("head", "tail"), [(1, 0), (2, 0), (1, 1), (3, 2), (4, 0)])
def test_a_gate_is_dbcache(threshold, head, tail):
    plain = PlainGate(threshold, head, tail)
    expected, found = run(network=plain), None
    found = run(FirstBlockGate(threshold=threshold, head=head, tail=tail))
    assert [not step.calls[0].sites["span"][0] for step in found.trace.steps] == plain.hits
    assert any(plain.hits) == (threshold > 0.0)
    # a span over two lists adds what each added, which is their sum but for rounding
    torch.testing.assert_close(found.sample, expected.sample, rtol=0, atol=1e-5)


def test_blocks_that_decide_stand_in_one_list():
    blocks = Select(kind=("block",), depth="2:")
    found = run(FirstBlockGate(blocks=blocks, threshold=9.0))
    assert found.trace.steps[1].calls[0].sites["span"] == (0, 2, 0)


# --------------------------------------------------------------------------- composition
@pytest.mark.parametrize("each_branch", [False, True])
def test_beside_a_step_rule_only_computed_steps_are_asked(each_branch):
    policy = H2Cache(tau1=9.0, tau2=9.0, max_consecutive=3, each_branch=each_branch)
    found = run(AlternateSteps(), policy, guidance=CFG(scale=2.0))
    ran = {s.index: s.calls[0].sites["span"][0] for s in found.trace.steps if s.computed}
    # ages are in steps: of 0, 2, 4, ... the stages run anew after more than three
    assert ran == {0: 2, 2: 0, 4: 2, 6: 0, 8: 2, 10: 0, 11: 0}


def test_a_schedule_of_steps_beside_it():
    found = run(RefreshInterval(interval=3, first=1), H2Cache(tau1=9.0, tau2=9.0))
    assert found.trace.network_calls == STEPS // 3
    assert sum(count_outcomes(found.trace).values()) == STEPS // 3


class Rowwise(Policy):
    """Sample 0 computes at even steps, sample 1 at steps 0, 3, 4, 8 and 9."""

    traits = Traits(decides="sample")

    @hookimpl
    def decide(self, step, call):
        own = [step.index % 2 == 0, step.index in (0, 3, 4, 8, 9)]
        return Reuse("rows", mask=[not computes for computes in own])


def test_samples_that_run_alone_use_what_is_theirs():
    """With a stage left out wherever it can be, a sample of a batch is as it is alone."""
    policy = H2Cache(tau1=9.0, tau2=9.0)
    together = run(Rowwise(), policy)
    for row, steps in ((0, range(0, STEPS, 2)), (1, (0, 3, 4, 8, 9))):
        alone = run(Only(steps=tuple(steps)), policy)
        torch.testing.assert_close(together.sample[row], alone.sample[row], rtol=0, atol=1e-5)


class Only(Policy):
    """Computes some steps."""

    traits = Traits(static=True)
    steps: tuple[int, ...]

    @hookimpl
    def decide(self, step):
        return None if step.index in self.steps else Reuse("other")


def test_the_mean_is_over_the_whole_batch():
    """As published: one decision for all samples of a call, from the sum of their changes."""
    seen = []

    class Watch(FirstBlockGate):
        def _is_close(self, gate, feature, visit):
            seen.append((feature, visit.features[0]))
            return super()._is_close(gate, feature, visit)

    found = run(Watch(threshold=0.2), batch=3).trace
    hits = [not step.calls[0].sites["span"][0] for step in found.steps[1:]]
    values = [float((a - b).abs().sum() / b.abs().sum()) for a, b in seen]
    assert hits == [value < 0.2 for value in values]
    assert any(hits)


def test_a_change_that_is_no_number_runs_the_blocks():
    gate = FirstBlockGate(threshold=9.0).gates[0]

    class Seen:
        features = (torch.full((1, 2, 2), math.nan),)

        def agree(self, value):
            return float(value.max())

    assert not FirstBlockGate()._is_close(gate, torch.ones(1, 2, 2), Seen())


def test_an_exception_leaves_nothing_and_the_next_run_is_as_the_first():
    network, policy = TwoStages(), H2Cache(tau1=0.2, tau2=0.3)
    first = run(policy, network=network)
    block = network.single_transformer_blocks[1]

    def fail(*_):
        raise RuntimeError("out of memory")

    hook = block.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(policy, network=network)
    hook.remove()
    assert gated(network) == []
    assert torch.equal(run(policy, network=network).sample, first.sample)


def test_ranks_that_agree_on_steps_refuse_it():
    class Agrees(Only):
        traits = Traits(collective=True)

    with pytest.raises(ConflictError, match=r"H2Cache.* decides inside the network"):
        run(Agrees(steps=(0,)), H2Cache())


# ------------------------------------------------------------------------------ settings
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: H2Cache(split=1), "needs 2 blocks or more"),
        (lambda: H2Cache(max_consecutive=0), "max_consecutive=0"),
        (lambda: H2Cache(warmup=-1), "warmup=-1"),
        (lambda: FirstBlockGate(head=0), "0 blocks before its span"),
        (lambda: FirstBlockGate(pool=0), "pools by 0"),
        (lambda: FirstBlockGate(blocks=Select(kind=("mlp",))), "a gate is made of blocks"),
        (lambda: FirstBlockGate(blocks=Select(kind=("block",), pick="1:")), "sets pick"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, message):
    with pytest.raises(PolicyError, match=message):
        make()


def test_configuration():
    h2, gate = build_policies(
        [
            {"h2cache": {"tau1": 0.15, "tau2": 0.22, "split": 30}},
            {"first_block_gate": {"blocks": {"kind": ["block"], "depth": "2:"}, "head": 4}},
        ]
    )
    assert repr(h2) == repr(H2Cache(tau1=0.15, tau2=0.22, split=30))
    assert repr(gate) == repr(FirstBlockGate(blocks=Select(kind=("block",), depth="2:"), head=4))
    assert {"tau1", "tau2", "split", "warmup"} <= set(options_of(H2Cache))
