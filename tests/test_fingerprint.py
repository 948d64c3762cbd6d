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


def test_a_single_bit_counts(tiny_llama: nn.Module) -> None:
    weight = next(tiny_llama.parameters())
    before = fingerprint(tiny_llama)
    with torch.no_grad():
        old = weight[0, 0].clone()
        weight[0, 0] = torch.nextafter(old, old + 1)
        changed = fingerprint(tiny_llama)
        weight[0, 0] = old
    assert before != changed and fingerprint(tiny_llama) == before


def test_an_order_counts() -> None:
    """Two rows of the embeddings that changed places were the same model to every cache."""
    model = nn.Linear(6, 5)
    ours = fingerprint(model)
    for dim, places in ((0, [0, 2, 1, 3, 4]), (1, [0, 1, 2, 4, 3, 5]), (0, [4, 3, 2, 1, 0])):
        other = nn.Linear(6, 5)
        with torch.no_grad():
            other.weight.copy_(model.weight.index_select(dim, torch.tensor(places)))
            other.bias.copy_(model.bias)
        theirs = fingerprint(other)
        assert theirs["weight"][4] == ours["weight"][4] and not same_model(ours, theirs)
    with torch.no_grad():
        model.bias[[1, 2]] = model.bias[[2, 1]].clone()
    assert not same_model(ours, fingerprint(model))


def test_sums_are_those_of_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randint(-100, 100, (7, 3), dtype=torch.int8)
    expected = [
        sum(int(v) for v in weight.flatten()),
        sum((r + 1) * int(weight[r, c]) for r in range(7) for c in range(3)),
        sum((c + 1) * int(weight[r, c]) for r in range(7) for c in range(3)),
    ]
    model = nn.ParameterDict({"w": nn.Parameter(weight, requires_grad=False)})
    for at_once in (2**24, 7, 2):  # parts of whole rows
        monkeypatch.setattr("meg_editor.lm.fingerprint._AT_ONCE", at_once)
        assert fingerprint(model)["w"][4:] == expected


def test_fingerprints_of_older_folders_are_known() -> None:
    model = nn.Linear(6, 5)
    now = fingerprint(model)
    older = {name: values[:5] for name, values in now.items()}
    assert same_model(older, now) and same_model(older, now, exact=False)
    older["weight"][4] += 1
    assert not same_model(older, now)
    assert not same_model({name: [] for name in now}, now)


def test_stored_buffers_count() -> None:
    """GPTQ and AWQ keep packed weights in buffers; those which no state dict holds are computed."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Module())
    model[1].register_buffer("qweight", torch.arange(6, dtype=torch.int32).view(2, 3))
    model[1].register_buffer("scales", torch.ones(3, dtype=torch.float16))
    model[1].register_buffer("empty", torch.ones(0))
    model[1].register_buffer("computed", torch.ones(3), persistent=False)
    ours = fingerprint(model)
    assert set(ours) == {"0.weight", "0.bias", "buffer:1.qweight", "buffer:1.scales"}
    model[1].computed += 1
    assert same_model(ours, fingerprint(model))
    model[1].qweight[1, 2] += 1
    theirs = fingerprint(model)
    assert not same_model(ours, theirs) and not same_model(theirs, ours)
    older = {name: values for name, values in ours.items() if not name.startswith("buffer:")}
    assert same_model(older, theirs) and same_model(theirs, older, exact=False)


def test_a_parameter_without_elements_is_no_error() -> None:
    model = torch.nn.ParameterDict({"w": torch.nn.Parameter(torch.zeros(0, 3))})
    other = torch.nn.ParameterDict({"w": torch.nn.Parameter(torch.ones(0, 3))})
    assert fingerprint(model) == fingerprint(other)
