"""The shape rules and the forms of return values."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from diffusers.utils import BaseOutput

from erta_framework.errors import CapabilityError
from erta_integrations.diffusers.network import Relation, read_output
from erta_integrations.diffusers.network._output_spec import find_shape_rule
from tiny_pipelines import drawn


@pytest.mark.parametrize(
    ("before", "after", "relation", "dim", "size"),
    [
        ((2, 16, 3, 4, 4), (2, 16, 3, 4, 4), Relation.EQUAL, 0, 0),
        ((2, 36, 3, 4, 4), (2, 16, 3, 4, 4), Relation.NARROWED, 1, 16),
        ((2, 3, 8, 4, 4), (2, 3, 4, 4, 4), Relation.NARROWED, 2, 4),
        ((2, 24, 8), (2, 16, 8), Relation.NARROWED, 1, 16),
        ((2, 4, 8, 8), (2, 8, 8, 8), Relation.DOUBLED, 1, 4),
        ((2, 4, 8, 8), (2, 12, 8, 8), Relation.OUTPUT, 0, 0),
        ((2, 4, 8, 8), (1, 4, 8, 8), Relation.OUTPUT, 0, 0),
        ((2, 4, 8, 8), (2, 64, 4), Relation.OUTPUT, 0, 0),
        ((2, 8, 8, 8), (2, 4, 4, 8), Relation.OUTPUT, 0, 0),
    ],
)
def test_the_rule_of_two_shapes(
    before: tuple[int, ...], after: tuple[int, ...], relation: Relation, dim: int, size: int
) -> None:
    rule = find_shape_rule(torch.empty(before), torch.empty(after))
    assert (rule.relation, rule.dim, rule.size) == (relation, dim, size)


@pytest.mark.parametrize("after", [(2, 8, 4), (2, 4, 4), (2, 16, 4), (2, 24, 4), (2, 32)])
def test_reference_plus_residual_rebuilds_the_output(after: tuple[int, ...]) -> None:
    latents, output = drawn(2, 8, 4), drawn(*after, seed=1)
    main, form = read_output((output,), latents, "transformer")
    reference = form.reference(latents)
    assert reference.shape == main.shape
    (rebuilt,) = form.rebuild(reference + (main - reference))
    torch.testing.assert_close(rebuilt, output)
    assert (rebuilt[:, 8:] == output[:, 8:]).all() or form.rest is None


def test_the_second_half_is_a_copy() -> None:
    latents, output = drawn(1, 4, 2), drawn(1, 8, 2, seed=1)
    main, form = read_output(output, latents, "transformer")
    expected = output.clone()
    output[:, 4:] = 0
    assert torch.equal(form.rebuild(main), expected)


def test_the_reference_has_the_type_of_the_output() -> None:
    latents = drawn(1, 4)
    _, form = read_output(latents.half(), latents, "transformer")
    assert form.reference(latents).dtype == torch.float16


@dataclass
class Two(BaseOutput):
    sample: torch.Tensor
    audio: torch.Tensor


def test_each_form_is_returned_alike() -> None:
    latents, new = drawn(2, 4), drawn(2, 4, seed=3)
    audio = drawn(2, 3)

    def again(raw: object) -> object:
        main, form = read_output(raw, latents, "transformer")
        assert torch.equal(main, latents)
        return form.rebuild(new)

    assert again(latents) is new
    assert again((latents,)) == (new,)
    first, second = again((latents, audio))  # type: ignore[misc]
    assert first is new
    assert second is not audio
    assert torch.equal(second, audio)
    output = again(Two(sample=latents, audio=audio))
    assert isinstance(output, Two)
    assert output.sample is new
    assert torch.equal(output.audio, audio)
    (listed,) = again(([latents[0], latents[1]],))  # type: ignore[misc]
    assert isinstance(listed, list)
    assert torch.equal(torch.stack(listed), new)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ((None,), "the output of unet is NoneType"),
        (([],), "the output of unet is list"),
        (([drawn(2), drawn(3)],), r"unequal shapes \(\(2,\), \(3,\)\); sample prompts of one size"),
    ],
)
def test_what_is_no_prediction_is_refused(raw: object, message: str) -> None:
    with pytest.raises(CapabilityError, match=message):
        read_output(raw, drawn(2, 4), "unet")
