"""Weight updates: all of them, or the model bit for bit as it was."""

from __future__ import annotations

import copy as copying
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from meg_editor.lm.protocols import CausalLM
from meg_editor.requests.request import EditRequest, only_edits

Requests = Sequence[EditRequest | Mapping[str, Any]]
Updates = dict[str, Tensor]


def edit_weights(
    model: CausalLM,
    requests: Requests,
    compute: Callable[[Any, Sequence[EditRequest]], Updates],
    copy: bool = False,
    return_orig_weights: bool = True,
) -> tuple[Any, dict[str, Tensor]]:
    """Edit a model in EasyEdit's way: compute updates, then add them to its weights.

    Args:
        compute: (model, requests) -> {parameter: what is added to it}. The model must be the old
            one again when it returns.
        copy: edit a copy of the model.
        return_orig_weights: whether the old values are returned.

    Returns:
        The edited model, and {parameter: its old value}.

    Raises:
        RequestError: bad requests.
        FloatingPointError: an update, or a weight with it, is not finite. The model is as it was
            then, as after any other error.
    """
    edits = only_edits(requests)
    if copy:
        model = copying.deepcopy(model)
    updates = compute(model, edits)
    check_writable(model, updates)
    parameters = dict(model.named_parameters())
    originals = {name: parameters[name].detach().clone() for name in updates}
    try:
        for name, update in updates.items():
            add(parameters[name], update)
            if not bool(parameters[name].isfinite().all()):  # half precision has a narrow range
                raise FloatingPointError(
                    f"the update of {name} is not finite; lower the learning rate, or raise "
                    "mom2_update_weight or L2 where the method has one"
                )
    except BaseException:
        with torch.no_grad():
            for name, value in originals.items():
                parameters[name].copy_(value)
        raise
    return model, originals if return_orig_weights else {}


def check_writable(model: CausalLM, names: Iterable[str]) -> None:
    """Check that weights can be changed in place, and change nothing but their own module.

    Args:
        names: dotted names of parameters.

    Raises:
        ValueError: one is quantised, offloaded, or tied to another module; it is named.
    """
    # Input and output embeddings which are one matrix are tuned as one, as in training.
    both = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    ends = {f"{path}.weight" for path, module in model.named_modules() if id(module) in both}
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for part, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(f"{path}.{part}".lstrip("."))
    for name in names:
        parameter = model.get_parameter(name)
        others = [owner for owner in owners[id(parameter)] if owner != name and owner not in ends]
        if not parameter.is_floating_point() or type(parameter.data) is not Tensor:
            problem = f"is quantised ({type(parameter).__name__})"
        # A model on the meta device alone is a skeleton: accelerate's hook would bring the weights.
        elif parameter.is_meta and hasattr(
            model.get_submodule(name.rpartition(".")[0]), "_hf_hook"
        ):
            problem = "is offloaded"
        elif others:
            problem = f"is tied to {', '.join(others)}"
        else:
            continue
        raise ValueError(
            f"{name} {problem}: a method which writes weights cannot edit it; choose another "
            "module, load the model in float or without offload, or edit with neurons (MeG)"
        )


@torch.no_grad()
def add(parameter: Tensor, update: Tensor) -> None:
    """Add to a parameter in place, in the precision of the wider of the two."""
    wide = torch.promote_types(parameter.dtype, update.dtype)
    parameter.copy_(parameter.to(wide) + update.to(parameter.device, wide))


@contextmanager
def restored(model: CausalLM, names: Sequence[str]) -> Iterator[dict[str, torch.nn.Parameter]]:
    """Within the block the named parameters may change; after it they are as before, bit for bit.

    They require gradients within the block as they did before, and so again after it.
    """
    check_writable(model, names)
    parameters = dict(model.named_parameters())
    chosen = {name: parameters[name] for name in names}
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in chosen.items()}
    try:
        yield chosen
    finally:
        with torch.no_grad():
            for name, (value, needs_gradient) in before.items():
                chosen[name].copy_(value)
                chosen[name].requires_grad_(needs_gradient)
                chosen[name].grad = None


def oriented(model: CausalLM, name: str, matrix: Tensor) -> Tensor:
    """An (outputs, inputs) matrix as the linear layer `name` stores its weight.

    nn.Linear stores (outputs, inputs), the Conv1D of GPT-2 (inputs, outputs); a square
    shape does not show which.
    """
    module = model.get_submodule(name)
    return matrix.T if hasattr(module, "nf") else matrix
