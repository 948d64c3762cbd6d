"""How a base model is referred to, so that it is found and recognised again elsewhere.

The reference models shipped in meg_editor/lm/assets have names of their own,
"meg_editor:llama-reference" and "meg_editor:bert-reference", because their path is another one in
every installation.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from meg_editor.lm.fingerprint import fingerprint, same_model
from meg_editor.lm.protocols import CausalLM

ASSETS = Path(__file__).parent / "assets"
_PREFIX, _LLAMA, _BERT = "meg_editor:", "llama-reference", "bert-reference"


class WrongModelError(ValueError):
    """The base model is not the one which the edits were made for."""


def reference_model_path() -> Path:
    """The folder of the reference causal LM. Raises FileNotFoundError if it is not installed."""
    return _installed(_LLAMA)


def reference_encoder_path() -> Path:
    """The folder of the reference text encoder. Raises FileNotFoundError if not installed."""
    return _installed(_BERT)


def resolve_model_name(name: str) -> str:
    """What transformers can load: a path for "meg_editor:…" names, any other name itself.

    Raises:
        ValueError: a "meg_editor:…" name that is not one of the two.
        FileNotFoundError: the reference model is not installed.
    """
    if not name.startswith(_PREFIX):
        return name
    found = name[len(_PREFIX) :]
    if found not in (_LLAMA, _BERT):
        raise ValueError(
            f"unknown reference model {name!r}; there are {_PREFIX}{_LLAMA} and {_PREFIX}{_BERT}"
        )
    return str(_installed(found))


def portable_model_name(name: str) -> str:
    """The inverse of `resolve_model_name`; other local folders get their absolute path."""
    if not name or not Path(name).is_dir():
        return name
    path = Path(name).resolve()
    if path.parent == ASSETS.resolve() and path.name in (_LLAMA, _BERT):
        return _PREFIX + path.name
    return str(path)


@dataclass(frozen=True)
class ModelReference:
    """Which causal LM it was.

    Attributes:
        name: hub id, absolute path or "meg_editor:…" name; empty if the model came from nowhere.
        revision: the commit on the hub, if any.
        dtype: of its weights, such as "float32".
        fingerprint: see `meg_editor.lm.fingerprint`.
    """

    name: str
    revision: str | None
    dtype: str
    fingerprint: dict[str, list[float]]

    @classmethod
    def of(cls, model: Any, default_name: str = "") -> ModelReference:
        """The reference to a transformers model."""
        name = portable_model_name(model.config.name_or_path or default_name)
        revision = getattr(model.config, "_commit_hash", None)
        return cls(name, revision, _dtype_name(model), fingerprint(model))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: the arguments of the constructor."""
        return asdict(self)

    def load(self, place: str | Path | None = None, copied: bool = False) -> Any:
        """Load the model, by default from where it came from, in the precision it had.

        Args:
            place: where it is now, a hub id or a folder.
            copied: `place` holds a mere copy in safetensors: its name stays the one it had.

        Raises:
            OSError: there is no such model, or it cannot be loaded.
        """
        source = str(place or self.name)
        options: dict[str, Any] = {"dtype": getattr(torch, self.dtype), "trust_remote_code": False}
        if place is None and self.revision:
            options["revision"] = self.revision
        if copied:
            options |= {"use_safetensors": True, "local_files_only": True}
        try:
            if not source:
                raise ValueError("it had no name when the edits were saved")
            model: Any = AutoModelForCausalLM.from_pretrained(resolve_model_name(source), **options)
        except Exception as error:  # transformers, safetensors and tokenizers have many kinds
            raise OSError(
                f"cannot load the base model {source!r} (revision "
                f"{options.get('revision', 'not given')}): {error}. Pass the model itself, or "
                "where it is now: from_pretrained(folder, base=...)"
            ) from error
        if copied:  # where it came from is where it is sought if it is saved without a copy
            model.name_or_path = model.config.name_or_path = self.name
            model.config._commit_hash = self.revision
        return model.eval().requires_grad_(False)

    def check(self, model: Any) -> None:
        """Raises WrongModelError if `model` has other weights than those of this reference."""
        expected, found = self.fingerprint, fingerprint(model)
        exact = self.dtype == _dtype_name(model)
        for name in sorted({*expected, *found}):
            ours, theirs = expected.get(name, []), found.get(name, [])
            if not same_model({name: ours}, {name: theirs}, exact=exact):
                given = getattr(model, "name_or_path", "") or f"a {type(model).__name__}"
                raise WrongModelError(
                    f"expected the base model {self.name or '(without a name)'} which the edits "
                    f"were made for, got {given}: values of {name} are {theirs or 'absent'}, "
                    f"expected {ours or 'absent'}; pass the right model as base="
                )


def _dtype_name(model: CausalLM) -> str:
    return str(getattr(model, "dtype", None)).removeprefix("torch.")


def _installed(name: str) -> Path:
    path = ASSETS / name
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"the reference model {name} is not at {path}: install meg_editor again with its data "
            "files (pip install --force-reinstall), make it with examples/build_reference, or "
            "name another model"
        )
    return path
