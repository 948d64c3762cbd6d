"""EasyEdit's evaluation, routed on the true prompt.

EasyEdit scores an answer by feeding prompt and answer as one text. A model which routes on what it
is fed would see the answer there; its queries are the prompts alone.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.model.routed_model import RoutedModel

# Where these functions are called by name; not every version has every one.
MODULES = ("evaluate.evaluate", "evaluate.portability_evaluate", "editors.editor")
EVALUATORS = ("test_prediction_acc", "test_generation_quality", "PPL", "OOD_PPL", "F1")

_PROMPTS = ("prompts", "prompt", "prefixes")


def on_the_prompt(original: Callable[..., Any]) -> Callable[..., Any]:
    """`original`, an evaluator of EasyEdit, with a RoutedModel routed on the prompts it is given.

    The prompt template of MeG's hyper-parameters is put around the prompts, before the edit and
    after it, as EasyEdit itself does with chat templates.
    """
    signature = inspect.signature(original)

    @functools.wraps(original)
    def evaluate(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        given = call.arguments
        name = next(name for name in _PROMPTS if name in given)
        asked = given[name]
        queries = [asked] if isinstance(asked, str) else list(asked)
        hparams, model = given.get("hparams"), given["model"]
        if isinstance(hparams, MeGHyperParams):
            wrapped = [hparams.prompt_template.replace("{}", query) for query in queries]
            given[name] = wrapped[0] if isinstance(asked, str) else wrapped
        # Generation from the bare prompt needs no help: it is routed on what it is fed.
        if not isinstance(model, RoutedModel) or given.get("vanilla_generation"):
            return original(*call.args, **call.kwargs)
        with model.routed(queries):
            return original(*call.args, **call.kwargs)

    return evaluate
