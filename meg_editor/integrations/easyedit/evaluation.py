"""EasyEdit's evaluation, with the prompt as the query.

EasyEdit scores an answer by teacher forcing on prompt + answer. Routing must not see the answer, so
the prompts are named as the queries.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.model.routed_model import RoutedModel
from meg_editor.requests.prompts import in_template

# Modules which call these functions by name; not every version has all of them.
MODULES = ("evaluate.evaluate", "evaluate.portability_evaluate", "editors.editor")
EVALUATORS = ("test_prediction_acc", "test_generation_quality", "PPL", "OOD_PPL", "F1")

_PROMPTS = ("prompts", "prompt", "prefixes")


def on_the_prompt(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrapper of an evaluator of EasyEdit: a RoutedModel is routed on its prompts.

    The prompt template of MeG's hyper-parameters is applied before and after the edit, as EasyEdit
    does with chat templates.
    """
    signature = inspect.signature(original)

    @functools.wraps(original)
    def evaluate(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        given = call.arguments
        name = next(name for name in _PROMPTS if name in given)
        prompts = given[name]
        queries = [prompts] if isinstance(prompts, str) else list(prompts)
        hparams, model = given.get("hparams"), given["model"]
        if isinstance(hparams, MeGHyperParams):
            wrapped = [in_template(hparams.prompt_template, query) for query in queries]
            given[name] = wrapped[0] if isinstance(prompts, str) else wrapped
        # Generation from the bare prompt is routed on its input.
        if not isinstance(model, RoutedModel) or given.get("vanilla_generation"):
            return original(*call.args, **call.kwargs)
        with model.routed(queries):
            return original(*call.args, **call.kwargs)

    return evaluate
