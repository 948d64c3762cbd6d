"""`meg-editor settings`: every setting, its default and what it means, by stage."""

from __future__ import annotations

import argparse
import dataclasses
import json
import textwrap
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.config.runtime import RuntimeConfig

_WIDTH = 90
_RUNTIME = "Run-time choices (RuntimeConfig in Python; not part of a method)"
# Title -> beginnings of names; what fits none comes under the first.
_GROUPS: dict[str, tuple[str, ...]] = {
    "Model": (),
    "Text encoder (stage 1)": ("encoder_",),
    "Gate (stage 2)": ("gate", "familiarity_", "routing"),
    "Collection of neurons (stage 3)": ("collection_",),
    "Weight generator (stage 4)": ("generator", "diffusion_", "sampl"),
    "Read by EasyEdit alone": ("alg_name", "batch_size", "evaluation_type", "api_key", "use_chat"),
}


def run(options: argparse.Namespace) -> None:
    """Print the settings whose name or help has one of the words, or all."""
    values = MeGHyperParams.preset(options.preset).to_dict() if options.preset else None
    groups = {
        title: [entry for entry in entries if _has(entry, options.words)]
        for title, entries in grouped_settings().items()
    }
    if not any(groups.values()):
        words = " or ".join(map(repr, options.words))
        raise ValueError(f"no setting has {words} in its name or help")
    shown = {title: entries for title, entries in groups.items() if entries}
    print(settings_text(shown, values))


def grouped_settings() -> dict[str, list[dataclasses.Field[Any]]]:
    """Title -> fields of MeGHyperParams by stage, then those of RuntimeConfig."""
    groups: dict[str, list[dataclasses.Field[Any]]] = {title: [] for title in _GROUPS}
    for entry in dataclasses.fields(MeGHyperParams):
        fitting = (title for title, names in _GROUPS.items() if entry.name.startswith(names))
        groups[next(fitting, "Model")].append(entry)
    return groups | {_RUNTIME: list(dataclasses.fields(RuntimeConfig))}


def settings_text(
    groups: Mapping[str, list[dataclasses.Field[Any]]], values: Mapping[str, Any] | None = None
) -> str:
    """The listing: a line NAME = VALUE (choices) per setting, and its help below it."""
    hints = get_type_hints(MeGHyperParams) | get_type_hints(RuntimeConfig)
    lines: list[str] = []
    for title, entries in groups.items():
        lines += [f"{title}", ""]
        for entry in entries:
            value = (values or {}).get(entry.name, _default(entry))
            lines.append(f"  {entry.name} = {json.dumps(value)}{_choices(hints[entry.name])}")
            text = textwrap.fill(entry.metadata["help"], _WIDTH, break_on_hyphens=False)
            lines.append(textwrap.indent(text, " " * 6))
        lines.append("")
    lines.append(
        "Set them with --set NAME=VALUE; all but the run-time choices also in a YAML file for "
        "--hparams."
    )
    return "\n".join(lines)


def _default(entry: dataclasses.Field[Any]) -> Any:
    if entry.default is not dataclasses.MISSING:
        return entry.default
    return entry.default_factory() if callable(entry.default_factory) else None


def _choices(hint: Any) -> str:
    """The values of a Literal, optional or not, as "   (cls | mean)"; else empty."""
    options: list[str] = []
    for kind in (hint, *get_args(hint)):
        if get_origin(kind) is Literal:
            options += map(str, get_args(kind))
    return f"   ({' | '.join(options)})" if options else ""


def _has(entry: dataclasses.Field[Any], words: list[str]) -> bool:
    text = f"{entry.name} {entry.metadata['help']}".lower()
    return not words or any(word.lower() in text for word in words)
