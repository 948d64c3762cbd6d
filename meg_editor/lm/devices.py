"""Devices of models which accelerate keeps elsewhere: on the CPU, on disk, over several GPUs."""

from __future__ import annotations

import torch

from meg_editor.lm.protocols import CausalLM


def input_device(model: CausalLM) -> torch.device:
    """The device on which a model takes its inputs.

    It is `model.device`, but for an offloaded model whose embeddings are on "meta" between two
    passes: there it is the device which accelerate brings them to.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, _ = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> input_device(model)
        device(type='cpu')
    """
    device = torch.device(model.device)
    if device.type != "meta":
        return device
    modules = model.modules()  # the embeddings come before the blocks
    hooks = (module._hf_hook for module in modules if hasattr(module, "_hf_hook"))
    parts = (part for hook in hooks for part in getattr(hook, "hooks", [hook]))  # joined ones
    places = (getattr(part, "execution_device", None) for part in parts)
    place = next((place for place in places if place is not None), None)
    if place is not None:
        return torch.device(place)  # a number is a GPU's
    # A model without any weights stays on "meta".
    return next((p.device for p in model.parameters() if not p.is_meta), device)
