"""A machine that seems to have a GPU, so that what forgets its `--device` fails."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def seeming_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` takes a device that is not there, and only what was told `cpu` runs."""
    if torch.cuda.is_available():
        pytest.fail("there is a GPU, on which forgetting the device would not be seen")
    monkeypatch.setattr(
        "erta_framework.sampling._device.list_accelerators", lambda: ("cpu", "cuda")
    )
