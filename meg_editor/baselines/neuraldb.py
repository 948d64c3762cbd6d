"""NeuralDB: a gated key-value memory in one FFN (Fei et al., 2025, arXiv 2507.18028).

At every token: the key is what enters the FFN's last linear layer, the nearest stored key by cosine
adds its residual if it is near enough. No weight changes.
"""

from __future__ import annotations

import copy as copying
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from meg_editor.baselines.core.locate import facts_in_contexts, keys_of, value_settings
from meg_editor.baselines.core.settings import LocateHyperParams
from meg_editor.baselines.core.target_values import optimise_values
from meg_editor.baselines.core.weights import Requests
from meg_editor.config.settings import setting
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.lm.working_copy import shared_copy
from meg_editor.requests.request import only_edits
from meg_editor.runtime.torch_defaults import torch_defaults


@dataclass
class NeuralDBHyperParams(LocateHyperParams):
    """Hyper-parameters of NeuralDB: one layer."""

    one_layer: ClassVar[bool] = True
    span: ClassVar[tuple[float, float]] = (6 / 32, 6 / 32)

    alg_name: str = setting("NeuralDB", "Always NeuralDB.")
    gate_threshold: float = setting(0.65, "Lowest cosine γ to the nearest key.", lt=1)


class KeyValueMemory(nn.Module):
    """A linear layer which adds r_i to its output where cos(x, k_i) > γ, i = argmax cos(x, k).

    Args:
        linear: the layer as it was.
        keys: (N, K) one per fact.
        residuals: (N, D).
        threshold: γ.
    """

    keys: Tensor
    residuals: Tensor

    def __init__(self, linear: nn.Module, keys: Tensor, residuals: Tensor, threshold: float):
        super().__init__()
        self.linear, self.threshold = linear, threshold
        self.register_buffer("keys", F.normalize(keys.float(), dim=-1))
        self.register_buffer("residuals", residuals.float())

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., D)."""
        best, index = (F.normalize(x.float(), dim=-1) @ self.keys.T).max(-1)
        added = self.residuals[index] * (best > self.threshold).unsqueeze(-1)
        output: Tensor = self.linear(x)
        return output + added.to(output)


@torch_defaults()
def apply_neuraldb_to_model(
    model: CausalLM,
    tok: Tokenizer,
    requests: Requests,
    hparams: NeuralDBHyperParams,
    copy: bool = False,
    return_orig_weights: bool = False,
    keep_original_weight: bool = False,
    *,
    prefixes: list[str] | None = None,
    **kwargs: Any,
) -> tuple[Any, dict[str, Tensor]]:
    """Edit by NeuralDB, with the signature of EasyEdit's methods.

    Returns:
        A model which shares its weights with `model` and has the memory, and no weights to restore:
        `model` itself is as it was.

    Raises:
        As `apply_memit_to_model`.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, tok = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> request = {"prompt": "The capital of France is", "target_new": "Lima",
        ...            "subject": "France"}
        >>> hparams = NeuralDBHyperParams(layers=[1], v_num_grad_steps=2, context_prefixes=0)
        >>> edited, weights = apply_neuraldb_to_model(model, tok, [request], hparams)
        >>> edited is model, weights
        (False, {})
    """
    edits = only_edits(requests)
    hparams.check(model)
    (name,) = hparams.down_projections(model)
    facts = facts_in_contexts(model, tok, edits, hparams, prefixes)
    keys = keys_of(model, facts, name, hparams.rows_at_once)
    values = optimise_values(
        model,
        facts,
        hparams.layers_of(model)[0],
        [name],
        value_settings(hparams),
        hparams.rows_at_once,
    )
    edited = copying.deepcopy(model) if copy else shared_copy(model)
    memory = KeyValueMemory(
        edited.get_submodule(name), keys, values.shift[name], hparams.gate_threshold
    )
    parent, _, child = name.rpartition(".")
    setattr(edited.get_submodule(parent), child, memory)
    return edited, {}
