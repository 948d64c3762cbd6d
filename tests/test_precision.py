"""bfloat16 where the hardware knows it, and nowhere else."""

from __future__ import annotations

import pytest
import torch

from meg_editor.runtime.precision import bfloat16


@pytest.mark.parametrize(
    ("capability", "wanted", "used"),
    [
        ("AVX512", True, True),
        ("AVX512", False, False),
        ("AVX2", True, False),
        ("DEFAULT", True, False),
    ],
)
def test_a_cpu_which_imitates_it_stays_in_float32(
    capability: str, wanted: bool, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    matrix = torch.ones(2, 2)
    with bfloat16("cpu", wanted):
        assert (matrix @ matrix).dtype == (torch.bfloat16 if used else torch.float32)
