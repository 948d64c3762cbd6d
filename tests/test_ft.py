"""Fine-tuning is plain gradient descent on the whole model, though only a part of it is run."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from parity import tiny
from torch import Tensor

from meg_editor import MeGHyperParams, load_model
from meg_editor.baselines import ft
from meg_editor.baselines.ft import FTHyperParams, apply_ft_to_model
from meg_editor.lm.answers import greedy_answers
from meg_editor.lm.ffn import decoder_blocks
from meg_editor.lm.layers_from import LayersFrom
from meg_editor.lm.tokens import encode_example

RATE, STEPS = 0.05, 4


def descended(kind: str, part: str) -> dict[str, Tensor]:
    """Parameters with `part` in their names after steps of SGD on all facts, one row at a time."""
    model, tokenizer = tiny.model(kind), tiny.tokenizer(kind)
    tuned = {n: p.requires_grad_(True) for n, p in model.named_parameters() if part in n}
    for _ in range(STEPS):
        losses = []
        for prompt, _, target in tiny.FACTS:
            example = encode_example(tokenizer, prompt, target)
            ids = torch.tensor([example.prompt + example.target])
            logits = model(input_ids=ids).logits[0, len(example.prompt) - 1 : -1]
            chosen = logits.log_softmax(-1)[torch.arange(len(example.target)), example.target]
            losses.append(-chosen.mean())
        gradients = torch.autograd.grad(torch.stack(losses).mean(), list(tuned.values()))
        with torch.no_grad():
            for parameter, gradient in zip(tuned.values(), gradients, strict=True):
                parameter -= RATE * gradient
    return {name: parameter.detach() for name, parameter in tuned.items()}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("place", ["layer 3", "head", "embeddings"])
def test_a_step_is_that_of_the_whole_model(kind: str, place: str) -> None:
    names = {
        "layer 3": {"gpt2": "h.3.mlp.", "llama": "layers.3.mlp."},
        "head": {"gpt2": "ln_f", "llama": "lm_head"},
        "embeddings": {"gpt2": "wte", "llama": "embed_tokens"},
    }
    part = names[place][kind]
    model, tokenizer = tiny.model(kind), tiny.tokenizer(kind)
    ran: list[int] = []
    assert LayersFrom(model, 3).injectable  # tried once per model
    for number, block in enumerate(decoder_blocks(model)[1]):
        next(block.children()).register_forward_hook(lambda *_, n=number: ran.append(n))
    hparams = FTHyperParams(
        layers=[3],
        rewrite_module_tmp=part,
        optimizer="sgd",
        lr=RATE,
        num_steps=STEPS,
        early_stop_loss=0.0,
    )
    before = copy.deepcopy(model.state_dict())
    edited, originals = apply_ft_to_model(
        model, tokenizer, tiny.rows(tiny.FACTS), hparams, return_orig_weights=True
    )
    expected = descended(kind, part)
    assert set(originals) == set(expected)
    for name, value in expected.items():
        step = value - before[name]
        result = edited.get_parameter(name) - before[name]
        assert step.norm() > 0 and (result - step).norm() < 1e-4 * step.norm()
    # What is below the tuned layer is run once, at the beginning.
    assert ran.count(0) == (1 if place == "layer 3" else STEPS) and ran.count(3) == STEPS


def test_the_default_tunes_the_ffn_of_the_layers(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    model = copy.deepcopy(tiny_llama)
    hparams = FTHyperParams(layers=[1, 2], num_steps=2)
    facts = [{"prompt": "The river is", "target_new": "long"}]
    _, originals = apply_ft_to_model(
        model, tiny_tokenizer, facts, hparams, return_orig_weights=True
    )
    assert set(originals) == {
        f"model.layers.{layer}.mlp.{part}_proj.weight"
        for layer in (1, 2)
        for part in ("gate", "up", "down")
    }


def test_a_loss_that_is_no_number_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN is below no limit: the exploded weights were taken for learned ones."""
    model, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weight = model.get_parameter("model.layers.1.mlp.down_proj.weight")
    losses = iter([1.0, float("nan")])
    monkeypatch.setattr(ft._Facts, "loss", lambda *_: weight.square().sum() * next(losses))
    request = {"prompt": "The capital of France is", "target_new": "Lima"}
    with pytest.raises(FloatingPointError, match="the loss is nan.*lower lr"):
        apply_ft_to_model(model, tokenizer, [request], FTHyperParams(layers=[1]))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_in_half_precision_is_tuned_too() -> None:
    """Adam's constants and small steps are lost in float16: copies in float32 are tuned."""
    model, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
    before = {name: value.clone() for name, value in model.half().state_dict().items()}
    request = {"prompt": "The capital of France is", "target_new": "Lima", "subject": "France"}
    edited, old = apply_ft_to_model(model, tokenizer, [request], FTHyperParams(layers=[1]))
    assert greedy_answers(edited, tokenizer, [request["prompt"]], 6) == ["Lima"]
    assert edited.dtype == torch.half
    assert all(torch.equal(value, before[name]) for name, value in old.items())
