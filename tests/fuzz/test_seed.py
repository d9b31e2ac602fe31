"""The seed reproduces: the same test draws the same numbers, another test draws others."""

import random


def test_a_test_draws_its_own_numbers(rng, fuzz_seed, request):
    again = random.Random(f"{fuzz_seed}:{request.node.name}")
    other = random.Random(f"{fuzz_seed}:another")
    drawn = [rng.random() for _ in range(3)]
    assert drawn == [again.random() for _ in range(3)]
    assert drawn != [other.random() for _ in range(3)]


def test_the_environment_says_how_many_examples(examples, monkeypatch):
    monkeypatch.delenv("ERTA_FUZZ_EXAMPLES", raising=False)
    assert examples(300) == 300
    monkeypatch.setenv("ERTA_FUZZ_EXAMPLES", "7")
    assert examples(300) == 7
