"""The parts of saved edits fit each other and the base model; checked before they are built."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.lm.protocols import CausalLM
from meg_editor.lm.reference import WrongModelError
from meg_editor.runtime.files import check_regular

_USUAL = 2**20  # sizes up to this one need no weights to prove them
_BLOCKS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth")


def check_neuron(spec: NeuronSpec, hparams: MeGHyperParams, base: CausalLM) -> None:
    """Check that the neuron is where the settings put it in this model.

    Raises:
        WrongModelError: it is not.

    Example:
        >>> from meg_editor import load_model
        >>> hparams = MeGHyperParams.preset("default", device="cpu")
        >>> model, _ = load_model(hparams)
        >>> check_neuron(NeuronSpec.from_hparams(model, hparams), hparams, model)
    """
    try:
        expected = NeuronSpec.from_model(
            base,
            spec.layer if hparams.layer is None else hparams.layer,
            module_template=hparams.mlp_module_tmp,
            activation=spec.activation,
            bias=spec.bias,
        )
    except ValueError as error:
        raise WrongModelError(f"the edits have their neuron in another model: {error}") from error
    if spec != expected:
        raise WrongModelError(f"expected the neuron of the base model, {expected}, got {spec}")


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Check that no tensor holds NaN or infinity.

    Raises:
        ValueError: one does.

    Example:
        >>> import torch
        >>> check_finite({"v": torch.tensor([0.0, float("nan")])})
        Traceback (most recent call last):
        ...
        ValueError: v holds NaN or infinity
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} holds NaN or infinity")


def check_sizes(folder: Path) -> None:
    """Check the sizes in a network's config.json against its tensors, before memory is taken.

    Raises:
        ValueError: more blocks than there are tensors, or a size far above any of theirs.
        OSError: there is no config, or no weights in safetensors.
    """
    shapes = [shape for path in _weights(folder) for shape in _shapes(path)]
    largest = max((size for shape in shapes for size in shape), default=0)
    check_regular(folder / "config.json")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    for name, number in _integers(config):
        most = len(shapes) if name in _BLOCKS else max(largest, _USUAL)
        if number > most:
            raise ValueError(
                f"config.json: {name} {number}: expected at most {most}, by the tensors' sizes"
            )


def _weights(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise FileNotFoundError(f"{folder}: expected weights in safetensors")
    return found


def _shapes(path: Path) -> Iterator[list[int]]:
    check_regular(path)
    with safe_open(path, "pt") as file:
        for name in file.keys():
            yield file.get_slice(name).get_shape()


def _integers(config: Any) -> Iterator[tuple[str, int]]:
    """The integers of a config by name, at any depth."""
    for name, value in config.items() if isinstance(config, dict) else ():
        if isinstance(value, dict):
            yield from _integers(value)
        elif isinstance(value, int):
            yield str(name), value
