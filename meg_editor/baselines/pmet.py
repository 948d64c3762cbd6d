"""PMET: optimise what leaves attention and FFN together, write the FFN's (Li et al., AAAI 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from meg_editor.baselines.core.locate import Locate, preserving, value_settings
from meg_editor.baselines.core.settings import CovarianceHyperParams
from meg_editor.baselines.core.weights import Requests, Updates, edit_weights
from meg_editor.config.settings import HParamsError, setting
from meg_editor.lm.ffn import attention_name
from meg_editor.lm.protocols import CausalLM, Tokenizer
from meg_editor.requests.request import EditRequest
from meg_editor.runtime.artifacts import ArtifactStore
from meg_editor.runtime.torch_defaults import torch_defaults


@dataclass
class PMETHyperParams(CovarianceHyperParams):
    """Hyper-parameters of PMET."""

    alg_name: str = setting("PMET", "Always PMET.")
    nll_loss_factor: float = setting(1.0, "Weight of the target's likelihood.", ge=0)
    mom2_update_weight: float = setting(
        15000, "Weight λ of the covariance: higher preserves more and edits less.", ge=0
    )

    def _check_layer(self, model: CausalLM, layer: int) -> None:
        super()._check_layer(model, layer)
        attention_name(model, layer)

    @classmethod
    def translated(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """`values` with the one entry of EasyEdit's `rewrite_module_tmps` as `rewrite_module_tmp`.

        Raises:
            HParamsError: several entries.
        """
        templates = values.get("rewrite_module_tmps") or []
        if len(templates) > 1:
            raise HParamsError(
                "rewrite_module_tmps: expected the FFN's last linear layer alone (PMET writes the "
                f"FFN), got {templates}"
            )
        rest = {name: value for name, value in values.items() if name != "rewrite_module_tmps"}
        return {**rest, "rewrite_module_tmp": templates[0]} if templates else rest


@torch_defaults()
def apply_pmet_to_model(
    model: CausalLM,
    tok: Tokenizer,
    requests: Requests,
    hparams: PMETHyperParams,
    copy: bool = False,
    return_orig_weights: bool = False,
    keep_original_weight: bool = False,
    *,
    texts: Sequence[str] | None = None,
    prefixes: Sequence[str] | None = None,
    store: ArtifactStore | None = None,
    **kwargs: Any,
) -> tuple[Any, dict[str, Tensor]]:
    """Edit `model` by PMET, with the signature of EasyEdit's methods.

    Arguments, results and what is raised: as in `apply_memit_to_model`.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, tok = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> request = {"prompt": "The capital of France is", "target_new": "Lima",
        ...            "subject": "France"}
        >>> hparams = PMETHyperParams(layers=[1], v_num_grad_steps=2, context_prefixes=0)
        >>> edited, old = apply_pmet_to_model(
        ...     model, tok, [request], hparams, return_orig_weights=True, texts=["Lima is in Peru"])
        >>> list(old)
        ['model.layers.1.mlp.down_proj.weight']
    """
    locate = Locate(tok, hparams, texts, prefixes, store)

    def compute(target: CausalLM, edits: Sequence[EditRequest]) -> Updates:
        ffn = hparams.down_projections(target)[-1]
        return locate.updates(
            target,
            edits,
            preserving(hparams.mom2_update_weight),
            [ffn, attention_name(target, hparams.layers_of(target)[-1])],
            value_settings(hparams, nll=hparams.nll_loss_factor, relax=True),
            math.sqrt,  # spreads the residual unevenly: more of it in the upper layers (eq. 12)
        )

    return edit_weights(model, requests, compute, copy, return_orig_weights)
