"""What can be compared: anything with the signature of EasyEdit's methods."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from meg_editor.baselines.registry import BASELINES
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.data.cases import EvaluationCase
from meg_editor.fitting.apply import apply_meg_to_model


@dataclass(frozen=True)
class Method:
    """A way to edit.

    Attributes:
        name: its row in the tables.
        apply: `apply(model, tok, requests, hparams, copy, return_orig_weights,
            keep_original_weight, **kwargs) -> (edited model, {parameter: its old value})`.
            `requests` are dicts with `prompt`, `target_new`, `subject` and `ground_truth`; by
            keyword come `pseudo` and `calibration`, facts which are not edited, and `seed`.
        hparams: whatever `apply` wants.
    """

    name: str
    apply: Callable[..., tuple[Any, dict[str, Any]]]
    hparams: Any = None


def resolve_method(name: str, hparams: MeGHyperParams, paper: MeGHyperParams) -> Method:
    """A built-in method by name, a baseline with its settings as `memit=file.yaml`, or one of your
    own as `name=file.py` or `name=package.module`.

    Your module has a function `apply_to_model` with the signature above, and if it wants any, its
    `hparams`.

    Args:
        hparams: of MeG's `default` preset, for the model in question.
        paper: of the `paper` preset.

    Raises:
        ValueError: there is no such method, or the module lacks `apply_to_model`.
    """
    label, own, place = name.partition("=")
    if own and label in BASELINES and place.endswith((".yaml", ".yml")):
        baseline = BASELINES[label]
        return Method(label, baseline.apply, baseline.settings.from_hparams(place))
    if own:
        module = _load(place)
        if not callable(getattr(module, "apply_to_model", None)):
            raise ValueError(
                f"method {label!r}: {place} has no function apply_to_model(model, tok, requests, "
                "hparams, **kwargs)"
            )
        return Method(label, module.apply_to_model, getattr(module, "hparams", None))
    built_in = {
        "unedited": Method("unedited", _leave_alone),
        "meg": Method("meg", apply_meg_to_model, hparams),
        "meg-paper": Method("meg-paper", apply_meg_to_model, paper),
        **{
            f"meg-{generator}": Method(
                f"meg-{generator}",
                apply_meg_to_model,
                dataclasses.replace(hparams, generator=generator),
            )
            for generator in ("dit", "mlp", "bank")
        },
    }
    if name not in built_in:
        raise ValueError(
            f"method: expected all, {', '.join([*built_in, *BASELINES])} or NAME=FILE.py (your "
            f"own), got {name!r}"
        )
    return built_in[name]


@contextmanager
def edited(
    method: Method, model: Any, tokenizer: Any, cases: Sequence[EvaluationCase], **options: Any
) -> Iterator[Any]:
    """Within the block, `model` edited by `method`; after it, `model` as it was, bit for bit.

    Args:
        options: keywords for `method.apply`.

    Raises:
        RuntimeError: the method changed weights which it did not hand back.
    """
    before = checksums(model)
    requests = [
        {
            "prompt": case.request.prompt,
            "target_new": case.request.target_new,
            "subject": case.request.subject,
            "ground_truth": case.truth,
        }
        for case in cases
    ]
    result, originals = method.apply(
        model,
        tokenizer,
        requests,
        method.hparams,
        copy=False,
        return_orig_weights=True,
        keep_original_weight=False,
        **options,
    )
    try:
        yield result
    finally:
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in (originals or {}).items():
                parameters[name].copy_(value)
        after = checksums(model)
        if changed := [name for name in before if after.get(name) != before[name]]:
            raise RuntimeError(
                f"{method.name} left {len(changed)} weights of the model changed, such as "
                f"{changed[0]}: apply must return their old values as its second result"
            )


@torch.no_grad()
def checksums(model: nn.Module) -> dict[str, int]:
    """Parameter name -> the sum of its bits, read as integers."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return {
        name: int(value.detach().contiguous().view(integers[value.element_size()]).sum())
        for name, value in model.named_parameters()
    }


def _leave_alone(model: Any, *_: Any, **__: Any) -> tuple[Any, dict[str, Any]]:
    return model, {}


def _load(place: str) -> Any:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    path = Path(place)
    if not path.exists():
        raise ValueError(f"method: there is no file {place}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"method: {place} cannot be read as a module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
