"""The tasks, the network and the demo of the small masked models."""

from __future__ import annotations

import io
import math

import pytest
import torch
from rich.console import Console

from erta_framework.masked import select_rows
from erta_integrations.words import (
    Permutations,
    Size,
    WordsModel,
    WordsNetwork,
    find_weights,
    load,
    load_network,
    load_words,
    save_network,
)


def test_words_are_256_different_ones_of_eight_letters():
    words = load_words().words
    assert len(words) == len(set(words)) == 256
    assert all(len(word) == 8 and word.isalpha() and word.islower() for word in words)
    assert load_words().optimum == pytest.approx(math.log(256) / 8)


def test_what_is_drawn_is_valid_and_spelled():
    for task in (load_words(), Permutations()):
        ids = task.draw(200, torch.Generator().manual_seed(0))
        assert ids.shape == (200, task.length)
        assert ids.max() < task.mask_id
        valid, distinct = task.judge(ids)
        assert valid == 1.0
        assert distinct > 100
    text = load_words().spell(load_words().draw(1, torch.Generator().manual_seed(0))[0].tolist())
    assert all(load_words().is_word(word) for word in text.split())


def test_what_is_wrong_is_not_valid():
    words = load_words()
    ids = words.draw(4, torch.Generator().manual_seed(0))
    ids[:2, 0] = (ids[:2, 0] + 1) % 26
    valid, _ = words.judge(ids)
    assert valid <= 0.9
    again = Permutations(count=3)
    ids = torch.tensor([[3, 0, 1, 2], [3, 0, 1, 1]])
    assert again.judge(ids) == (0.5, 1)


def test_a_trained_network_is_written_and_read_in_half_precision(tmp_path):
    torch.manual_seed(0)
    network = WordsNetwork(Size(symbols=5, width=16, heads=2, layers=1))
    save_network(network, tmp_path / "net.safetensors", {"training": "{}"})
    read, hashed = load_network(tmp_path / "net.safetensors")
    assert len(hashed) == 16
    ids = torch.tensor([[0, 1, 4]])
    with torch.no_grad():
        assert torch.allclose(read(ids), network(ids), atol=1e-2)
    with pytest.raises(FileNotFoundError, match="train them with"):
        load_network(tmp_path / "absent.safetensors")


def test_the_weights_are_small():
    for name in ("words", "permutations"):
        assert find_weights(name).stat().st_size < 500_000


@pytest.mark.parametrize("first_layer", [0, 1, 2])
def test_the_first_layers_may_run_on_every_position(first_layer):
    torch.manual_seed(0)
    network = WordsNetwork(Size(symbols=14, width=32, heads=2, layers=3)).eval()
    model = WordsModel(network, Permutations())
    old, new = (torch.randint(13, (2, 13)) for _ in range(2))
    with torch.no_grad():
        full, store = model.run(new), model.open()
        model.run(new, store=store)
        rows = select_rows(torch.rand(2, 13) < 0.5)
        fresh = model.run(new, store=store, rows=rows, first_layer=first_layer)
        assert (fresh - rows.gather(full)).abs().max() < 1e-5
        # the more layers see every new symbol, the nearer to the full pass
        model.run(old, store=store)
        stale = model.run(new, store=store, rows=rows, first_layer=first_layer)
        assert (stale - rows.gather(full)).abs().max() > 1e-3


def test_the_demo_shows_every_step_and_which_words_are_real(tmp_path):
    text = io.StringIO()
    load().run_demo(tmp_path, Console(file=text, width=120))
    written = (tmp_path / "words.txt").read_text()
    for part in ("no cache", "cached at once", "tokens computed", "........ ........"):
        assert part in written
        assert part in text.getvalue()
