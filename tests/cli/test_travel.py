"""`erta profile push`, `pull` and `gallery`, over a folder of repositories."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from erta_framework import Profile
from erta_framework.budgets import MeasuredFront

FRONT = MeasuredFront(
    steps=((0, 2), (0, 1, 3)),
    refined=((0, 2), (0, 1, 2)),
    predicted=(0.2, 0.1),
    psnr=(21.04, 30.0),
    psnr_std=(1.0, 2.0),
    refined_psnr=(21.04, 31.0),
    seconds=(1.0, 1.5, 2.0),
    batch=1,
    device="cpu",
    planner="toy_planner",
    policies="toy_planner",
    spent=9,
    unit="toy",
)


def make(**facts: str) -> Profile:
    fingerprint = {"num_steps": "4", "model.network": "Toy|<b>", "latent_shape": "2x2"}
    made = {"date": "2026-01-02", **facts}
    return FRONT.added_to(Profile("toy", fingerprint, {"sums": torch.ones(4)}, 2, made))


def test_a_profile_goes_to_a_folder_and_comes_back(erta, tmp_path: Path) -> None:
    path = make(prompts="`x`\n# forged").save("own.safetensors")
    done = erta("profile", "push", str(path), "lab/toy", "--to", "shared")
    assert done.exit_code == 0, done.output
    card = Path("shared/lab/toy/README.md").read_text(encoding="utf-8")
    assert "| model.network | Toy\\|&lt;b&gt; |" in card
    assert "| prompts | \\`x\\`\\\\n\\# forged |" in card
    assert "| 2 of 4 | 21.0 ± 1.0 | 21.0 | 1 |" in card
    assert "| 3 of 4 | 30.0 ± 2.0 | 31.0 | 1.5 |" in card
    assert "| 4 of 4 |  |  | 2 |" in card
    assert "hf:" not in card, "a folder is no hub"
    assert erta("profile", "pull", "lab/toy", "--from", "shared").exit_code == 0
    assert Path("toy.safetensors").read_bytes() == path.read_bytes()


def test_several_profiles_share_a_repository(erta) -> None:
    first, second = make(), replace(make(), samples=3)
    for name, profile in (("a", first), ("b", second)):
        file = profile.save(f"{name}.own")
        assert (
            erta("profile", "push", str(file), f"l/t/{name}.safetensors", "--to", "s").exit_code
            == 0
        )
    assert {each.name for each in Path("s/l/t").iterdir()} == {
        *("a.safetensors", "a.md", "b.safetensors", "b.md")
    }
    assert erta("profile", "pull", "l/t/b.safetensors", "--from", "s").exit_code == 0
    assert Profile.load("b.safetensors").digest == second.digest


def test_a_gallery_shows_every_profile_and_names_what_is_left_out(erta) -> None:
    make().save("shared/lab/toy/profile.safetensors")
    Profile("other", {"num_steps": "4"}, {"sums": torch.ones(4)}, 2).save("shared/x.safetensors")
    Path("shared/weights.safetensors").write_bytes(b"no profile")
    done = erta("profile", "gallery", "shared", "-o", "page.html")
    assert done.exit_code == 0, done.output
    assert "left out: weights.safetensors" in done.stderr
    page = Path("page.html").read_text(encoding="utf-8")
    assert "Toy|&lt;b&gt;" in page
    assert '<a href="shared/lab/toy/profile.safetensors">' in page
    assert erta("profile", "gallery", "shared", "-o", "page.md").exit_code == 0
    table = Path("page.md").read_text(encoding="utf-8")
    assert "2 calls 21.0 dB, 3 calls 30.0 dB" in table
    assert "| x.safetensors | other |" in table


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("push", "none.safetensors", "a/b", "--to", "s"), "no profile at none.safetensors"),
        (("push", "hf:a/b", "a/b", "--to", "s"), "fetch it first"),
        (("pull", "a", "--from", "s"), "is no reference to a profile"),
        (("gallery", "nowhere", "-o", "x.md"), "no folder"),
        (("gallery", ".", "-o", "x.md"), "no profile below"),
    ],
)
def test_what_cannot_be_done_is_refused(erta, arguments: tuple[str, ...], said: str) -> None:
    done = erta("profile", *arguments)
    assert done.exit_code != 0
    assert said in " ".join(done.output.split())


def test_other_endings_of_a_gallery_are_refused(erta) -> None:
    make().save("own.safetensors")
    done = erta("profile", "gallery", ".", "-o", "x.pdf")
    assert done.exit_code == 2
    assert "as .html or .md" in done.output


def test_a_calibration_is_not_written_to_a_reference(erta) -> None:
    done = erta("calibrate", "policies=[{skip_policy: {profile: 'hf:a/b', budget: {calls: 2}}}]")
    assert done.exit_code == 2
    assert "push that with `erta profile push`" in " ".join(done.output.split())
