"""bfloat16 where the hardware knows it, and nowhere else."""

from __future__ import annotations

import io

import pytest
import torch

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.generators import GENERATORS
from meg_editor.routing.gates import FamiliarityGate
from meg_editor.runtime import precision
from meg_editor.runtime.precision import bfloat16
from meg_editor.runtime.randomness import seeded


@pytest.mark.parametrize(
    ("flags", "enabled", "used"),
    [
        ("fpu avx512f avx512_bf16", True, True),
        ("fpu avx512f amx_bf16 amx_tile", True, True),
        ("fpu avx512f avx512_bf16", False, False),
        ("fpu avx2 avx512f", True, False),
        ("fpu avx2", True, False),
        (None, True, False),
    ],
)
def test_a_cpu_which_imitates_it_stays_in_float32(
    flags: str | None, enabled: bool, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cpuinfo(path: str, encoding: str) -> io.StringIO:
        if flags is None:  # not Linux
            raise FileNotFoundError(path)
        return io.StringIO(f"model name\t: a processor\nflags\t\t: {flags}\n")

    monkeypatch.setattr(precision, "open", cpuinfo, raising=False)
    matrix = torch.ones(2, 2)
    with bfloat16("cpu", enabled):
        assert (matrix @ matrix).dtype == (torch.bfloat16 if used else torch.float32)


def test_a_seeded_block_leaves_every_random_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.manual_seed` would reseed the GPUs too, for good."""
    monkeypatch.setattr(torch, "manual_seed", lambda *_: pytest.fail("reseeds every device"))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda *_: pytest.fail("reseeds CUDA"))
    before = torch.get_rng_state()
    with seeded(3):
        first = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(3):
        assert torch.equal(torch.rand(4), first)
    for kind in ("mlp", "dit"):
        hparams = MeGHyperParams(generator_width=16, generator_depth=1, generator_steps=2)
        generator = GENERATORS[kind].build(hparams, 8, 20, 3)
        generator.fit(torch.randn(3, 8), torch.randn(3, 20))
    FamiliarityGate.build(MeGHyperParams(familiarity_epochs=1), 8).fit(torch.randn(3, 8))
