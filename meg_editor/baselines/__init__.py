"""Other editors, each after its own paper, with the signature of EasyEdit's methods.

    model, old = apply_memit_to_model(model, tok, requests, hparams, return_orig_weights=True)

The core, from the bottom: settings -> fact_tokens -> activations, covariance, target_values
-> locate (MEMIT, PMET, AlphaEdit), token_gradients (UltraEdit) -> hypernetwork, meta_batches
-> hypernetwork_training (MALMEN, RLEdit); weights adds and restores.
"""

from meg_editor.baselines.alphaedit import AlphaEditHyperParams, apply_alphaedit_to_model
from meg_editor.baselines.ft import FTHyperParams, apply_ft_to_model
from meg_editor.baselines.horen import HoReNHyperParams, apply_horen_to_model
from meg_editor.baselines.malmen import MALMENHyperParams, apply_malmen_to_model
from meg_editor.baselines.memit import MEMITHyperParams, apply_memit_to_model
from meg_editor.baselines.neuraldb import NeuralDBHyperParams, apply_neuraldb_to_model
from meg_editor.baselines.pmet import PMETHyperParams, apply_pmet_to_model
from meg_editor.baselines.registry import BASELINES, Baseline
from meg_editor.baselines.retrieval import RetrievalHyperParams, apply_retrieval_to_model
from meg_editor.baselines.rledit import RLEditHyperParams, apply_rledit_to_model
from meg_editor.baselines.scen import SCENHyperParams, apply_scen_to_model
from meg_editor.baselines.ultraedit import UltraEditHyperParams, apply_ultraedit_to_model

__all__ = [
    "BASELINES",
    "AlphaEditHyperParams",
    "Baseline",
    "FTHyperParams",
    "HoReNHyperParams",
    "MALMENHyperParams",
    "MEMITHyperParams",
    "NeuralDBHyperParams",
    "PMETHyperParams",
    "RLEditHyperParams",
    "RetrievalHyperParams",
    "SCENHyperParams",
    "UltraEditHyperParams",
    "apply_alphaedit_to_model",
    "apply_ft_to_model",
    "apply_horen_to_model",
    "apply_malmen_to_model",
    "apply_memit_to_model",
    "apply_neuraldb_to_model",
    "apply_pmet_to_model",
    "apply_retrieval_to_model",
    "apply_rledit_to_model",
    "apply_scen_to_model",
    "apply_ultraedit_to_model",
]
