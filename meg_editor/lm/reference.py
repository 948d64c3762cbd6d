"""References to base models: name, revision, dtype and fingerprint, valid on other machines.

The models shipped in meg_editor/lm/assets are named "meg_editor:llama-reference" and
"meg_editor:bert-reference", because their path differs between installations.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from meg_editor.lm.fingerprint import fingerprint, in_common, same_model, sample, stored_tensors
from meg_editor.lm.model_files import load_causal_lm
from meg_editor.lm.one_load import one_load
from meg_editor.lm.protocols import CausalLM
from meg_editor.lm.sources import OURS, load_options, local_source, portable_source

ASSETS = Path(__file__).parent / "assets"
_LLAMA, _BERT = "llama-reference", "bert-reference"


class WrongModelError(ValueError):
    """The base model has other weights than the one the edits were fitted on."""


def reference_model_path() -> Path:
    """Folder of the reference causal LM.

    Raises:
        FileNotFoundError: it is not installed.
    """
    return _installed(_LLAMA)


def reference_encoder_path() -> Path:
    """Folder of the reference text encoder.

    Raises:
        FileNotFoundError: it is not installed.
    """
    return _installed(_BERT)


def resolve_model_name(name: str) -> str:
    """Name or path for transformers' `from_pretrained`; "meg_editor:…" names become paths.

    Raises:
        ValueError: a "meg_editor:…" name that is not one of the two.
        FileNotFoundError: the reference model is not installed.

    Example:
        >>> resolve_model_name("gpt2"), Path(resolve_model_name("meg_editor:bert-reference")).name
        ('gpt2', 'bert-reference')
    """
    if not name.startswith(OURS):
        return local_source(name)
    asset = name[len(OURS) :]
    if asset not in (_LLAMA, _BERT):
        raise ValueError(
            f"unknown reference model {name!r}; there are {OURS}{_LLAMA} and {OURS}{_BERT}"
        )
    return str(_installed(asset))


def portable_model_name(name: str) -> str:
    """The inverse of `resolve_model_name`; other local folders become absolute paths.

    Example:
        >>> portable_model_name(resolve_model_name("meg_editor:llama-reference"))
        'meg_editor:llama-reference'
    """
    if not name or not Path(name).is_dir():
        return name
    path = Path(name).resolve()
    if converted := portable_source(path):
        return converted
    if path.parent == ASSETS.resolve() and path.name in (_LLAMA, _BERT):
        return OURS + path.name
    return str(path)


@dataclass(frozen=True)
class ModelReference:
    """A causal LM, identified by name and weights.

    Attributes:
        name: hub id, absolute path or "meg_editor:…" name; empty if the model was built in memory.
        revision: the commit on the hub, if any.
        dtype: of its weights, such as "float32".
        fingerprint: see `meg_editor.lm.fingerprint`.

    Example:
        >>> from meg_editor import MeGHyperParams, load_model
        >>> model, _ = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> reference = ModelReference.of(model)
        >>> reference.name, reference.dtype
        ('meg_editor:llama-reference', 'float32')
        >>> reference.check(model)
    """

    name: str
    revision: str | None
    dtype: str
    fingerprint: dict[str, list[float]]

    @classmethod
    def of(cls, model: CausalLM, default_name: str = "") -> ModelReference:
        """Reference to a transformers model.

        Args:
            default_name: for a model whose config has no name.
        """
        name = portable_model_name(model.config.name_or_path or default_name)
        revision = getattr(model.config, "_commit_hash", None)
        return cls(name, revision, _dtype_name(model), fingerprint(model))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: the arguments of the constructor."""
        return asdict(self)

    def load(self, place: str | Path | None = None, copied: bool = False) -> Any:
        """The model, loaded in the dtype of this reference.

        Args:
            place: hub id or folder to load it from; default: its name and revision.
            copied: `place` holds a copy in safetensors; the model keeps its original name.

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
            name = resolve_model_name(source)
            options |= load_options(name, revision=options.get("revision"))
            with one_load():
                model = load_causal_lm(name, copied=copied, **options)
            self._undo_upcast(model)
        except Exception as error:  # transformers, safetensors and tokenizers have many kinds
            raise OSError(
                f"cannot load the base model {source!r} (revision "
                f"{options.get('revision', 'not given')}): {error}. Say where it is now, "
                "or pass the model itself: from_pretrained(folder, base=...); in the shell --base, "
                "of `ask` --model"
            ) from error
        if copied:  # saved again without a copy, it is loaded by its original name
            model.name_or_path = model.config.name_or_path = self.name
            model.config._commit_hash = self.revision
        return model.eval().requires_grad_(False)

    def _undo_upcast(self, model: Any) -> None:
        """Cast what transformers keeps in float32, such as routers of experts, if it was not saved
        so: a model which was made half precision as a whole has no such exceptions."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        upcast = {
            name: tensor
            for name, tensor in stored_tensors(model)
            if tensor.dtype == torch.float32 != dtype and type(tensor.data) is torch.Tensor
        }
        saved = {name: self.fingerprint.get(name) for name in upcast}
        if saved == {name: sample(tensor.detach().to(dtype)) for name, tensor in upcast.items()}:
            for tensor in upcast.values():
                tensor.data = tensor.data.to(dtype)

    def check(self, model: CausalLM) -> None:
        """Check that `model` has the weights of this reference.

        Raises:
            WrongModelError: it has others; the message names the first parameter that differs.
        """
        expected, actual = in_common(self.fingerprint, fingerprint(model))
        exact = self.dtype == _dtype_name(model)
        for name in sorted({*expected, *actual}):
            ours, theirs = expected.get(name, []), actual.get(name, [])
            if not same_model({name: ours}, {name: theirs}, exact=exact):
                given = getattr(model, "name_or_path", "") or f"a {type(model).__name__}"
                raise WrongModelError(
                    f"expected the base model {self.name or '(without a name)'} which the edits "
                    f"were made for, got {given}: values of {name} are {theirs or 'absent'}, "
                    f"expected {ours or 'absent'}; pass the right model (base=; in the shell "
                    "--base, of `ask` --model)"
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
