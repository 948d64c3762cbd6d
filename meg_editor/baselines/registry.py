"""The baselines by name, each with the settings among which a search chooses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from meg_editor.baselines.alphaedit import AlphaEditHyperParams, apply_alphaedit_to_model
from meg_editor.baselines.core.settings import BaselineHyperParams, LayerHyperParams
from meg_editor.baselines.ft import FTHyperParams, apply_ft_to_model
from meg_editor.baselines.horen import HoReNHyperParams, apply_horen_to_model
from meg_editor.baselines.malmen import MALMENHyperParams, apply_malmen_to_model
from meg_editor.baselines.memit import MEMITHyperParams, apply_memit_to_model
from meg_editor.baselines.neuraldb import NeuralDBHyperParams, apply_neuraldb_to_model
from meg_editor.baselines.pmet import PMETHyperParams, apply_pmet_to_model
from meg_editor.baselines.retrieval import (
    CONTEXT,
    RetrievalHyperParams,
    apply_retrieval_to_model,
)
from meg_editor.baselines.rledit import RLEditHyperParams, apply_rledit_to_model
from meg_editor.baselines.scen import SCENHyperParams, apply_scen_to_model
from meg_editor.baselines.ultraedit import UltraEditHyperParams, apply_ultraedit_to_model
from meg_editor.lm.neuron import count_layers
from meg_editor.lm.protocols import CausalLM

Space = dict[str, Sequence[Any]]


@dataclass(frozen=True)
class Baseline:
    """A method and what is tried for it.

    Attributes:
        apply: with the signature of EasyEdit's methods.
        settings: the class of its hyper-parameters.
        space: number of decoder layers -> the values to try of each setting.
        fixed: settings which make the method what it is, and are not searched.
        published: the authors' values of settings in `space`, as they edit Llama-3-8B, where the
            defaults are others; layers are those at the same share of the depth.
    """

    apply: Callable[..., tuple[Any, dict[str, Any]]]
    settings: type[BaselineHyperParams]
    space: Callable[[int], Space]
    fixed: Mapping[str, Any]
    published: Mapping[str, Any] = field(default_factory=dict)

    def tried(self, model: CausalLM) -> tuple[dict[str, Any], Space]:
        """The authors' settings for `model`, and the space with them in it."""
        space = self.space(count_layers(model))
        settings = self.hparams(self.published)
        first = {name: getattr(settings, name) for name in space}
        if isinstance(settings, LayerHyperParams):
            first["layers"] = settings.layers_of(model)
        return first, {
            name: values if first[name] in values else [first[name], *values]
            for name, values in space.items()
        }

    def hparams(self, values: Mapping[str, Any]) -> BaselineHyperParams:
        """From the fixed settings and those of `values` which the method has."""
        renamed = self.settings.renamed  # reports written before have the old names
        chosen = {renamed.get(name, name): value for name, value in values.items()}
        chosen = {**self.fixed, **chosen}
        known = [entry.name for entry in dataclasses.fields(self.settings)]
        return self.settings(**{name: chosen[name] for name in known if name in chosen})


def _each(depth: int) -> list[list[int]]:
    """Single layers: all of a shallow model, every few of a deep one."""
    return [[layer] for layer in range(0, depth, max(1, depth // 8))]


def _spans(depth: int, share: float = 0.2) -> list[list[int]]:
    """Runs of neighbouring layers in the lower two thirds, and single ones."""
    length = max(2, round(share * depth))
    starts = range(0, max(1, 2 * depth // 3 - length + 1), max(1, depth // 8))
    return [*[list(range(s, s + length)) for s in starts], *_each(depth)[: len(_each(depth)) // 2]]


def _upper(depth: int, share: float = 0.2) -> list[list[int]]:
    """Runs of neighbouring layers."""
    length = max(1, round(share * depth))
    starts = range(0, depth - length + 1, max(1, depth // 6))
    return [list(range(s, s + length)) for s in starts]


def _values(depth: int) -> Space:
    return {
        "layers": _spans(depth),
        "v_lr": [0.1, 0.5, 2.0, 5.0],
        "clamp_norm_factor": [0.75, 4, 12],
        "fact_token": ["subject_last", "last"],  # the last token suits LMs of single sentences
    }


BASELINES: dict[str, Baseline] = {
    "ft": Baseline(
        apply_ft_to_model,
        FTHyperParams,
        lambda depth: {
            "layers": _each(depth),
            "lr": [0.03, 0.1, 0.3, 1.0],
            "num_steps": [30, 50, 80],
            "train_batch_size": [32, 128],
        },
        {"optimizer": "sgd", "tuned": "ffn", "early_stop_loss": 0.0},  # A.12
        {"lr": 0.3, "num_steps": 50, "train_batch_size": 32},
    ),
    "locft": Baseline(
        apply_ft_to_model,
        FTHyperParams,
        lambda depth: {
            "layers": _each(depth),
            "lr": [2e-4, 5e-4, 1e-3, 2e-3, 5e-3],
            "train_batch_size": [32, 100],
        },
        {"optimizer": "adam", "tuned": "down"},
    ),
    "memit": Baseline(
        apply_memit_to_model,
        MEMITHyperParams,
        lambda depth: {**_values(depth), "mom2_update_weight": [20, 200, 2000, 15000]},
        {"v_weight_decay": 0.5},
        {"v_lr": 0.5, "clamp_norm_factor": 0.75, "mom2_update_weight": 15000},
    ),
    "pmet": Baseline(
        apply_pmet_to_model,
        PMETHyperParams,
        lambda depth: {
            **_values(depth),
            "mom2_update_weight": [20, 200, 2000, 13000],
            "kl_factor": [0.0625, 1.0],
        },
        {"v_weight_decay": 0.5, "v_num_grad_steps": 30},
        {"v_lr": 0.2, "clamp_norm_factor": 0.75, "mom2_update_weight": 13000, "kl_factor": 1.0},
    ),
    "alphaedit": Baseline(
        apply_alphaedit_to_model,
        AlphaEditHyperParams,
        lambda depth: {
            **_values(depth),
            "nullspace_threshold": [2e-2, 0.2, 2.0],
            "L2": [1, 10, 100],
        },
        {"v_weight_decay": 0.5},
        {"v_lr": 0.1, "clamp_norm_factor": 0.75, "nullspace_threshold": 2e-2, "L2": 1},
    ),
    "ultraedit": Baseline(
        apply_ultraedit_to_model,
        UltraEditHyperParams,
        lambda depth: {"layers": _upper(depth, 0.3), "lr": [1e-6, 1e-5, 1e-4, 1e-3, 1e-2]},
        {},
    ),
    "malmen": Baseline(
        apply_malmen_to_model,
        MALMENHyperParams,
        lambda depth: {
            "layers": _upper(depth),
            "lr": [1e-6, 1e-5, 1e-4, 1e-3],
            "meta_lr": [1e-6, 1e-5, 1e-4],
        },
        {"n_edits": 64, "max_iters": 60, "rank": 192},  # longer training wants a file of its own
    ),
    "rledit": Baseline(
        apply_rledit_to_model,
        RLEditHyperParams,
        lambda depth: {
            "layers": _upper(depth),
            "lr": [1e-6, 1e-5, 1e-4, 1e-3],
            "meta_lr": [1e-5, 1e-4, 1e-3],
        },
        {"num_seq": 8, "n_epochs": 8, "back_depth": 4, "rank": 192, "n_blocks": 2},
    ),
    "scen": Baseline(
        apply_scen_to_model,
        SCENHyperParams,
        lambda depth: {
            "layers": _each(depth),
            "theta": [0.5, 0.65, 0.7, 0.75, 0.85, 0.95],
            "expert_lr": [1.0, 3.0],
            "index_lr": [5e-3, 5e-2],
        },
        {},
    ),
    "retrieval": Baseline(
        apply_retrieval_to_model,
        RetrievalHyperParams,
        lambda depth: {
            "threshold": [0.5, 0.6, 0.7, 0.8, 0.9],
            "context_template": [
                CONTEXT,
                3 * "{prompt} {target}{eos}",
                "{prompt} {target}. ",
                "New fact: {prompt} {target}.\nPrompt: ",
            ],
        },
        {},
    ),
    "neuraldb": Baseline(
        apply_neuraldb_to_model,
        NeuralDBHyperParams,
        lambda depth: {
            **_values(depth),
            "layers": _each(depth),
            "gate_threshold": [0.5, 0.65, 0.8],
        },
        {"v_weight_decay": 0.5},
        {"v_lr": 0.1, "clamp_norm_factor": 0.75},
    ),
    "horen": Baseline(
        apply_horen_to_model,
        HoReNHyperParams,
        lambda depth: {
            "layers": _each(depth),
            "edit_lr": [0.1, 0.3, 1.0],
            "hopfield_key_match_threshold": [0.6, 0.7, 0.8, 0.85, 0.9, 0.95],
            "hopfield_retrieval_alpha": [0.1, 0.3],
        },
        {},
    ),
}
