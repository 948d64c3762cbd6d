"""A sample of a model's weights tells it from another one, however large they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from meg_editor.lm.fingerprint import fingerprint, same_model


@pytest.mark.parametrize("count", [1, 2, 5, 10, 3072])
def test_values_are_taken_from_first_to_last(count: int) -> None:
    model = nn.ParameterDict({"weight": torch.arange(float(count))})
    (sample,) = fingerprint(model).values()
    assert sample[:4] == [i * (count - 1) // 3 for i in range(4)]


@pytest.mark.parametrize(
    "shape",
    [(50257, 768), (51200, 2560), (128256, 4096)],
    ids=["gpt2", "phi-2", "llama-3-8b"],
)
def test_the_embeddings_of_real_models_are_within_reach(shape: tuple[int, int]) -> None:
    """As float32 the number of their last element is rounded up, out of reach."""
    weight = torch.ones(1).expand(shape[0] * shape[1])  # takes no memory
    model = nn.ParameterDict({"weight": weight})
    assert fingerprint(model)["weight"][:4] == [1.0] * 4


def test_fingerprints_differ_between_models_but_not_precisions() -> None:
    torch.manual_seed(0)
    model, other = nn.Linear(64, 64), nn.Linear(64, 64)
    ours = fingerprint(model)
    assert not same_model(ours, fingerprint(other))
    for dtype in (torch.bfloat16, torch.float16):
        assert same_model(ours, fingerprint(model.to(dtype)), exact=False)


def test_every_parameter_counts() -> None:
    """A merged LoRA, a MEMIT edit: a small change of any one matrix is another model."""
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(40)))
    ours = fingerprint(model)
    for layer in model:
        assert isinstance(layer, nn.Linear)
        before = layer.weight.detach().clone()
        with torch.no_grad():
            layer.weight += 1e-3 * torch.outer(torch.randn(16), torch.randn(16))
        assert not same_model(ours, fingerprint(model))
        with torch.no_grad():
            layer.weight.copy_(before)
    assert same_model(ours, fingerprint(model))


def test_every_value_counts() -> None:
    """A stride over the values would see the same few columns of every row."""
    model = nn.Linear(64, 48)
    ours = fingerprint(model)
    for row, column in ((0, 1), (17, 5), (31, 63), (47, 2)):
        with torch.no_grad():
            before = float(model.weight[row, column])
            model.weight[row, column] *= 1.0001
            assert not same_model(ours, fingerprint(model))
            model.weight[row, column] = before
    assert same_model(ours, fingerprint(model))
