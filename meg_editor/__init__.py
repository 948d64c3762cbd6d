"""meg_editor: edit thousands of facts in a language model with one generated neuron."""

from meg_editor.apply import apply_meg_to_model
from meg_editor.encoder import TextEncoder
from meg_editor.fit_report import FitReport
from meg_editor.flat_hparams import HParamsError
from meg_editor.hparams import MeGHyperParams
from meg_editor.loading import load_model
from meg_editor.model import MeGModel
from meg_editor.requests import EditRequest, RequestError
from meg_editor.routing import Routing
from meg_editor.training import fit

__version__ = "0.1.0"

__all__ = [
    "EditRequest",
    "FitReport",
    "HParamsError",
    "MeGHyperParams",
    "MeGModel",
    "RequestError",
    "Routing",
    "TextEncoder",
    "apply_meg_to_model",
    "fit",
    "load_model",
]
