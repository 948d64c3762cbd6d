"""Edit thousands of facts in a language model with one generated neuron (MeG, arXiv 2512.14395)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meg_editor.config.hparams import MeGHyperParams
    from meg_editor.config.settings import HParamsError
    from meg_editor.fitting.apply import apply_meg_to_model
    from meg_editor.fitting.pipeline import fit
    from meg_editor.fitting.prepare import prepare
    from meg_editor.lm.loading import load_model
    from meg_editor.model.fit_report import FitReport
    from meg_editor.model.meg_model import MeGModel
    from meg_editor.requests.request import EditRequest, RequestError
    from meg_editor.routing.encoder import TextEncoder
    from meg_editor.routing.routing import Routing

__version__ = "0.1.0"

# Lazy imports: `meg-editor --help` needs none of them, and torch takes seconds.
_HOME = {
    "EditRequest": "requests.request",
    "FitReport": "model.fit_report",
    "HParamsError": "config.settings",
    "MeGHyperParams": "config.hparams",
    "MeGModel": "model.meg_model",
    "RequestError": "requests.request",
    "Routing": "routing.routing",
    "TextEncoder": "routing.encoder",
    "apply_meg_to_model": "fitting.apply",
    "fit": "fitting.pipeline",
    "load_model": "lm.loading",
    "prepare": "fitting.prepare",
}

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
    "prepare",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
