"""The upper blocks alone give what the whole model gives, in every family."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_neuron import LAYER, LAYERS, all_families, random_neurons, random_tokens, spec_of, tiny

from meg_editor.lm.ffn import decoder_blocks
from meg_editor.lm.layers_from import LayersFrom
from meg_editor.lm.neuron_hook import NeuronHook


def run(model: Any, neurons: torch.Tensor, hook: NeuronHook, ids: torch.Tensor) -> Any:
    """Last hidden states, and the gradient of their sum of squares to the neurons."""
    own = neurons.clone().requires_grad_(True)
    with hook.attached(own):
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    (gradient,) = torch.autograd.grad(hidden.square().sum(), own)
    return hidden.detach(), gradient


@all_families
@pytest.mark.parametrize("layer", range(LAYER + 1))
def test_outputs_and_gradients_are_those_of_the_whole_model(family: str, layer: int) -> None:
    model, ids = tiny(family), random_tokens(3, 9)
    spec = spec_of(family)
    neurons = random_neurons(spec, 3)
    upper = LayersFrom(model, layer)
    stream = upper.residual_stream(ids)
    ran: list[int] = []
    blocks = decoder_blocks(model)[1]
    handles = [
        part.register_forward_hook(lambda *_, n=number: ran.append(n))
        for number, block in enumerate(blocks)
        for part in block.children()
    ]
    with NeuronHook(model, spec) as hook:
        expected = run(model, neurons, hook, ids)
        assert set(ran) == set(range(LAYERS))
        ran.clear()
        with upper.injected(stream):
            result = run(model, neurons, hook, ids)
    for handle in handles:
        handle.remove()
    assert set(ran) == set(range(layer, LAYERS))
    for ours, theirs in zip(result, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_rows_of_a_stream_may_be_left_out_and_cut() -> None:
    model, ids = tiny("llama"), random_tokens(4, 9)
    upper = LayersFrom(model, LAYER)
    retained = torch.tensor([0, 3])
    stream = upper.residual_stream(ids)[retained, :6]
    with torch.no_grad(), upper.injected(stream):
        result = model(input_ids=ids[retained, :6]).logits
    with torch.no_grad():
        torch.testing.assert_close(result, model(input_ids=ids[retained, :6]).logits)


def test_the_model_is_as_before_whatever_happens() -> None:
    model, ids = copy.deepcopy(tiny("llama")), random_tokens(2, 5)
    blocks = decoder_blocks(model)[1]
    real = blocks[0].forward
    calls = []

    def hooked(*args: Any, **kwargs: Any) -> Any:  # as accelerate does for device_map
        calls.append(1)
        return real(*args, **kwargs)

    blocks[0].forward = hooked
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    upper = LayersFrom(model, LAYERS - 1)
    stream = upper.residual_stream(ids)
    with pytest.raises(ZeroDivisionError), upper.injected(stream):
        1 / 0  # noqa: B018
    assert blocks[0].forward is hooked and "forward" not in vars(blocks[1])
    assert not any(block._forward_pre_hooks or block._forward_hooks for block in blocks)
    calls.clear()
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, expected) and calls == [1]
