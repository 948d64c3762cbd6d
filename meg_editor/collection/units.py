"""Natural units of a neuron's weights: one learning rate serves every model and layer.

The key is measured in the reciprocal of the RMS of the FFN's input, the value in what moves the
residual stream by its own RMS. Between them a factor of √D is shared evenly: without it a step
would change the key almost alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from meg_editor.lm.devices import input_device
from meg_editor.lm.ffn import decoder_blocks
from meg_editor.lm.neuron import NeuronSpec, usable_layers
from meg_editor.lm.neuron_hook import NeuronHook
from meg_editor.lm.partial_forward import capture_input
from meg_editor.lm.protocols import CausalLM
from meg_editor.lm.tokens import Batch, Example

_PROMPTS = 32  # enough for an average


@torch.no_grad()
def natural_units(model: CausalLM, spec: NeuronSpec, examples: Sequence[Example]) -> Tensor:
    """Size of one unit of each weight of a neuron, (P,) float32 on the CPU, all above 0.

    First tokens do not count: in many models they hold a hundred times as much as all others.

    Args:
        examples: prompts such as the neuron will read, of at least two tokens.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> from meg_editor.lm.tokens import encode_example
        >>> hparams = MeGHyperParams.preset("default", device="cpu")
        >>> model, tokenizer = load_model(hparams)
        >>> spec = NeuronSpec.from_hparams(model, hparams)
        >>> example = encode_example(tokenizer, "The capital of France is", "Paris")
        >>> units = natural_units(model, spec, [example])
        >>> units.shape == (spec.size,), bool((units > 0).all())
        (True, True)
    """
    examples = examples[:_PROMPTS]
    batch = Batch.of(examples, input_device(model))
    lengths = torch.tensor([len(example) for example in examples])
    places = torch.arange(batch.ids.shape[1])
    counted = (places[None] < lengths[:, None]) & (places[None] > 0)

    def rms(values: Tensor) -> float:
        # OPT flattens to (B*T, D) before its FFN.
        values = values.float().cpu().reshape(*counted.shape, -1)
        return max(float(values[counted].square().mean().sqrt()), 1e-12)

    def input_of(module: nn.Module) -> Tensor:
        return capture_input(
            module, lambda: model.get_decoder()(input_ids=batch.ids, use_cache=False)
        )

    read = input_of(model.get_submodule(spec.read))
    blocks = decoder_blocks(model)[1]
    # The output of the last block is nobody's input.
    below = max(
        (n for n in usable_layers(model) if n <= min(spec.layer, len(blocks) - 2)), default=-1
    )
    if below < 0:
        stream, gain = rms(input_of(blocks[spec.layer])), 1.0
    else:
        # How much of it reaches the stream: norms and factors may follow the FFN.
        near = NeuronSpec.from_model(model, below, activation="linear", bias=False)
        inputs = input_of(model.get_submodule(near.read)).float().cpu()
        neuron = torch.randn(near.size, generator=torch.Generator().manual_seed(0))
        k, _, v = near.split(neuron)
        plain = input_of(blocks[below + 1])
        size = rms(plain) / rms((inputs @ k).unsqueeze(-1) * v)
        with NeuronHook(model, near) as hook:
            neurons = torch.cat([k * size, v]).to(batch.ids.device).repeat(len(examples), 1)
            with hook.attached(neurons):
                moved = input_of(blocks[below + 1])
        stream, gain = rms(plain), rms(moved.float() - plain.float()) / rms(plain)
    balance = spec.hidden_size**0.25
    units = torch.full((spec.size,), 1 / (balance * rms(read)))
    if spec.bias:
        units[spec.hidden_size] = 1.0  # added to an activation of about that size
    units[-spec.hidden_size :] = balance * stream / gain
    return units
