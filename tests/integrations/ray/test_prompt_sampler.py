"""The class for `ray.data`, called as an actor would call it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from erta_framework import Sampler
from erta_framework.errors import InputError
from erta_framework.testing import AffineFlow
from erta_integrations.ray import PromptSampler
from erta_policies.ertacache import SkipPolicy
from tiny_pipelines import FAMILIES


def make():
    return Sampler(num_steps=4, accelerator="cpu"), AffineFlow()


def batch(**columns):
    return {
        "prompt": np.array(["a", "b", "c"]),
        "seed": np.array([3, 1, 2]),
        **{name: np.array(values) for name, values in columns.items()},
    }


def alone(prompt, seed, steps=4):
    found = Sampler(num_steps=steps, accelerator="cpu").sample(AffineFlow(), [prompt], seed=seed)
    return found.samples[0].numpy()


def test_a_row_is_what_the_sampler_gives_for_it():
    made = PromptSampler(make)(batch(name=["x", "y", "z"]))
    assert list(made) == ["prompt", "seed", "name", "sample", "network_calls", "branch_calls"]
    assert made["name"].tolist() == ["x", "y", "z"]
    assert made["sample"].dtype == np.float32
    for row, (prompt, seed) in enumerate([("a", 3), ("b", 1), ("c", 2)]):
        assert np.array_equal(made["sample"][row], alone(prompt, seed))
    assert made["network_calls"].tolist() == made["branch_calls"].tolist() == [8, 8, 8]


def test_columns_change_the_settings_of_their_row():
    made = PromptSampler(make, batch_size=3)(batch(steps=[2.0, np.nan, 2.0]))
    assert made["branch_calls"].tolist() == [4, 8, 4]
    for row, (prompt, seed, steps) in enumerate([("a", 3, 2), ("b", 1, 4), ("c", 2, 2)]):
        np.testing.assert_allclose(made["sample"][row], alone(prompt, seed, steps), atol=1e-6)


def test_the_model_is_made_once_and_rows_of_equal_settings_share_a_batch():
    made, sizes = [], []

    class Counted(Sampler):
        def sample(self, model, prompts, **settings):
            sizes.append(len(prompts))
            return super().sample(model, prompts, **settings)

    def counted():
        made.append(1)
        return Counted(num_steps=2, accelerator="cpu"), AffineFlow()

    held = PromptSampler(counted, batch_size=2)
    held(batch())
    held(batch(guidance=[1.0, 2.0, 1.0]))
    assert made == [1]
    assert sizes == [2, 1, 2, 1]


def pipeline():
    """A tiny FLUX with the condition of its family instead of a text encoder."""
    pipe = FAMILIES["flux"].build()

    def encode_prompt(**_):
        draw = torch.Generator().manual_seed(0)
        embeds, pooled = torch.randn(1, 6, 32, generator=draw), torch.zeros(1, 32)
        return embeds, pooled, torch.zeros(6, 3)

    pipe.encode_prompt = encode_prompt
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_policies_are_attached_to_a_pipeline_and_taken_off_again():
    pipe = pipeline()
    one = {name: values[:1] for name, values in batch().items()}
    options = {"steps": 6, "height": 16, "width": 16}
    cached = PromptSampler(lambda: pipe, [SkipPolicy(every=2)], options)(one)
    named = PromptSampler(lambda: pipe, [{"skip_policy": {"every": 2}}], options)(one)
    full = PromptSampler(lambda: pipe, options=options)(one)
    assert cached["branch_calls"].tolist() == full["network_calls"].tolist() == [6]
    assert cached["network_calls"].tolist() == [4]
    assert np.array_equal(cached["sample"], named["sample"])
    assert not np.array_equal(cached["sample"], full["sample"])


def test_rows_of_several_sizes_are_objects():
    pipe = pipeline()
    two = {name: values[:2] for name, values in batch(height=[32, 16, 16]).items()}
    made = PromptSampler(lambda: pipe, options={"steps": 1, "width": 16})(two)
    assert made["sample"].dtype == object
    assert [sample.shape[-2] for sample in made["sample"]] == [32, 16]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": np.array(["a"])}, "columns prompt, and no 'seed'; add it"),
        ({"text": np.array(["a"]), "seed": np.array([1])}, "columns text, seed, and no 'prompt'"),
        (batch(sample=[1, 2, 3]), "has a column 'sample' already; rename or drop it"),
        (batch(seed=[1.0, 1.5, 2.0]), r"row 1 of the batch \('b'\): seed is 1.5"),
        (batch(steps=[3, 2, 0]), r"row 2 of the batch \('c'\): .*0"),
    ],
)
def test_what_a_batch_lacks_is_named(columns, message):
    with pytest.raises(InputError, match=message):
        PromptSampler(make)(columns)


def test_settings_that_would_have_no_effect_are_refused():
    with pytest.raises(InputError, match="give those of a Sampler to the Sampler"):
        PromptSampler(make, [SkipPolicy(every=2)])
    with pytest.raises(InputError, match="batch_size is 0"):
        PromptSampler(make, batch_size=0)


def test_the_class_does_without_ray():
    code = (
        "import sys, erta_integrations.ray as here\n"
        "here.PromptSampler\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('ray', 'lightning')))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert said.stdout.strip() == "[]"
