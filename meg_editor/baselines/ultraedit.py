"""UltraEdit: normalised keys and gradients as an update (Gu et al., arXiv 2505.14679).

No training, no subjects: one pass over the edits, and one system of equations per layer.
"""

from __future__ import annotations

import copy as copying
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from meg_editor.baselines.core.token_gradients import (
    NormalEquation,
    TokenGradientHyperParams,
    TokenGradients,
    TokenStatistics,
    shape_of,
    token_gradients,
    updates_of,
)
from meg_editor.baselines.core.weights import Requests, Updates, edit_weights
from meg_editor.config.settings import setting
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.requests.request import EditRequest
from meg_editor.runtime.torch_defaults import torch_defaults

Statistics = dict[tuple[int, int], TokenStatistics]


@dataclass
class UltraEditHyperParams(TokenGradientHyperParams):
    """Hyper-parameters of UltraEdit; the defaults are those of EasyEdit's files."""

    span: ClassVar[tuple[float, float]] = (18 / 32, 24 / 32)

    alg_name: str = setting("ULTRAEDIT", "Always ULTRAEDIT.")
    lr: float = setting(1e-6, "Scale η of the update.", ge=0)


@torch_defaults()
def apply_ultraedit_to_model(
    model: CausalLM,
    tok: Tokenizer,
    requests: Requests,
    hparams: UltraEditHyperParams,
    copy: bool = False,
    return_orig_weights: bool = False,
    keep_original_weight: bool = False,
    *,
    statistics: Statistics | None = None,
    **kwargs: Any,
) -> tuple[Any, dict[str, Tensor]]:
    """Edit `model` by UltraEdit, with the signature of EasyEdit's methods.

    Args:
        copy: edit a copy of the model.
        statistics: for lifelong editing, what earlier calls have seen; the same dictionary, empty
            at first, is given to each call and brought up to date. By default each call is
            normalised by its edits alone.
        keep_original_weight, kwargs: accepted for EasyEdit.

    Returns:
        The edited model, and with `return_orig_weights` {parameter: its old value}.

    Raises:
        RequestError: bad or contradictory requests.
        ValueError: settings which do not fit the model.
        FloatingPointError: an update is not finite.

    Where it raises, the model and `statistics` are as they were.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, tok = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> request = {"prompt": "The capital of France is", "target_new": "Lima",
        ...            "subject": "France"}
        >>> edited, old = apply_ultraedit_to_model(
        ...     model, tok, [request], UltraEditHyperParams(layers=[2]), return_orig_weights=True)
        >>> len(old)  # the three matrices of a gated FFN
        3
    """
    seen = copying.deepcopy(statistics) if statistics else {}

    def compute(target: CausalLM, edits: Sequence[EditRequest]) -> Updates:
        modules = hparams.linear_layers(target)
        examples = [hparams.example(tok, edit.prompt, edit.target_new) for edit in edits]
        at_tokens = token_gradients(
            target, examples, modules, hparams.token, hparams.batch_size_once
        )
        shapes = {name: shape_of(target, name) for name in modules}
        for name, shape in shapes.items():  # layers of one shape are normalised together
            parts = at_tokens[name]
            if shape not in seen:
                seen[shape] = TokenStatistics(sum(shape)).to(parts.keys.device)
            for keys, gradients in parts.chunks(hparams.editor_batch_size):
                seen[shape].update(torch.cat([keys, gradients], 1))
        shifts = {name: _shift(at_tokens[name], seen[shapes[name]], hparams) for name in modules}
        return updates_of(target, shifts)

    edited = edit_weights(model, requests, compute, copy, return_orig_weights)
    if statistics is not None:
        statistics.update(seen)
    return edited


def _shift(
    at_tokens: TokenGradients, statistics: TokenStatistics, hparams: UltraEditHyperParams
) -> Tensor:
    """(inputs, outputs) (KᵀK + I)⁻¹ KᵀV with v = -η·|k̂|²·ĝ for each token, ^ for normalised."""
    inputs = at_tokens.keys.shape[1]
    right = torch.zeros(
        inputs, at_tokens.gradients.shape[1], dtype=torch.float64, device=at_tokens.keys.device
    )
    for keys, gradients in at_tokens.chunks(hparams.editor_batch_size):
        features = statistics.normalised(torch.cat([keys, gradients], 1))
        strength = features[:, :inputs].square().sum(1, keepdim=True)
        right.addmm_(keys.double().T, -hparams.lr * strength * features[:, inputs:])
    return NormalEquation(at_tokens.keys, 1.0, hparams.editor_batch_size).solve(right)
