"""Settings of a command: a file or preset, then --set, then options with a name of their own."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from meg_editor.config.flat_yaml import parse_yaml_value
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.config.input_files import short_repr
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.config.settings import HParamsError
from meg_editor.lm.sources import EDITS_CONFIG, check_source

_FITTING = ("edit", "prepare")


def read_hparams(options: argparse.Namespace) -> MeGHyperParams:
    """The hyper-parameters of a command.

    Raises:
        HParamsError: unknown names or bad values.
        ValueError: --model is a folder of saved edits; --set without a value.
        FileNotFoundError: no file at --hparams.
    """
    if options.hparams and options.preset != "default":
        raise HParamsError(
            f"--hparams has all settings, and --preset {options.preset} too: give one of them"
        )
    return _merged(options, options.hparams, options.preset, options.set)


def check_sources(hparams: MeGHyperParams, encoder: bool = True) -> None:
    """Check that the model, and the encoder if it is needed, are there: before seconds of imports.

    Raises:
        OSError: one is not, or is on a hub which cannot be reached.
    """
    check_source(hparams.model_name)
    if encoder:
        check_source(hparams.encoder_name, "encoder")


def read_runtime(options: argparse.Namespace) -> RuntimeConfig:
    """The run-time choices among --set.

    Raises:
        HParamsError: a bad value.
    """
    changes = [item for item in options.set if _is_runtime(item)]
    return RuntimeConfig.from_dict(parse_changes(changes, get_type_hints(RuntimeConfig)))


def read_paper_hparams(options: argparse.Namespace) -> MeGHyperParams:
    """Those of meg-paper: --paper-hparams or the paper preset, without --set."""
    return _merged(options, options.paper_hparams, "paper", ())


def _merged(
    options: argparse.Namespace, path: Path | None, preset: str, changes: Sequence[str]
) -> MeGHyperParams:
    check_not_saved_edits(options.model)
    if path:
        values = MeGHyperParams.from_hparams(path).to_dict()
    elif options.model and preset != "paper":
        values = MeGHyperParams().to_dict()  # the presets are those of the reference model
    else:
        values = MeGHyperParams.preset(preset).to_dict()
        if options.model:  # the reference encoder only knows the reference world
            values["encoder_name"] = "bert-base-uncased"
    own = [item for item in changes if not _is_runtime(item)]
    if options.command not in _FITTING and len(own) < len(changes):
        names = ", ".join(item.partition("=")[0] for item in changes if item not in own)
        raise HParamsError(
            f"--set {names}: a run-time choice, which only `meg-editor edit` and `prepare` take"
        )
    values |= parse_changes(own, get_type_hints(MeGHyperParams))
    named = {
        "model_name": options.model,
        "encoder_name": options.encoder,
        "device": options.device,
        "seed": options.seed,
        "layers": None if options.layer is None else [options.layer],
    }
    return MeGHyperParams.from_dict(values | {k: v for k, v in named.items() if v is not None})


def parse_changes(changes: Sequence[str], hints: dict[str, Any]) -> dict[str, Any]:
    """The values of NAME=VALUE texts, by the types of the settings.

    The value of a text setting is taken as it is, newlines and quotes included (`null` is None
    where the setting allows it). Any other value is read as YAML. Names are not checked.

    Example:
        >>> parse_changes(["prompt_template=Q: {}\\nA:", "seed=3"], {"prompt_template": str})
        {'prompt_template': 'Q: {}\\nA:', 'seed': 3}
    """
    values: dict[str, Any] = {}
    for item in changes:
        name, equals, text = item.partition("=")
        if not equals:
            raise ValueError(f"--set expects NAME=VALUE, got {item!r}")
        kinds = _kinds(hints.get(name))
        if str in kinds and not (text == "null" and NoneType in kinds):
            # EasyEdit's spelling of a CUDA device is its index.
            values[name] = int(text) if name == "device" and text.isdigit() else text
            continue
        try:
            values[name] = parse_yaml_value(text)
        except ValueError as error:
            shown = short_repr(text)
            raise ValueError(f"--set {name}: cannot read {shown}: {error}") from error
    return values


def _is_runtime(item: str) -> bool:
    """Whether NAME=VALUE is a run-time choice.

    Raises:
        HParamsError: no setting has that name, and none had.
    """
    name = item.partition("=")[0]
    runtime, own = ([f.name for f in fields(kind)] for kind in (RuntimeConfig, MeGHyperParams))
    if name not in (*runtime, *own) and MeGHyperParams.explain(name) is None:
        close = get_close_matches(name, [*own, *runtime], n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise HParamsError(
            f"--set: unknown setting {name!r}; {hint}`meg-editor settings` lists all"
        )
    return name in runtime


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def check_not_saved_edits(model: str | None) -> None:
    """Raises ValueError where a folder of saved edits is named as the model to edit."""
    config = Path(model) / EDITS_CONFIG if model else None
    if config is None or not config.is_file():
        return
    folder = config.parent
    try:
        base = json.loads(config.read_text("utf-8"))["base"]["name"] or "its base model"
    except (ValueError, KeyError, TypeError, OSError, RecursionError):
        base = "its base model"
    raise ValueError(
        f"--model {folder} is a folder of saved edits, not a model: "
        f"`meg-editor add {folder} --edits FILE` adds to them, `--model {base}` begins anew"
    )
