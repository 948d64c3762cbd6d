"""Causal LMs from and to folders of transformers, those inside multimodal models too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)

from meg_editor.lm.fingerprint import BUFFER, stored_tensors
from meg_editor.lm.protocols import CausalLM

_OF_CONFIG = ("revision", "local_files_only", "trust_remote_code")


def load_causal_lm(name: str, *, copied: bool = False, **options: Any) -> Any:
    """The model at `name`: a multimodal one, if transformers has no text model of its config.

    Args:
        name: hub id or folder.
        copied: it was written by `save_copy`, and is of the class that its config names.
        options: of `from_pretrained`.

    Example:
        >>> from meg_editor.lm.reference import reference_model_path
        >>> type(load_causal_lm(str(reference_model_path()))).__name__
        'LlamaForCausalLM'
    """
    config = {key: value for key, value in options.items() if key in _OF_CONFIG}
    if copied and (own := _own_class(AutoConfig.from_pretrained(name, **config))):
        return own.from_pretrained(name, **options)
    try:
        return AutoModelForCausalLM.from_pretrained(name, **options)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        own = _own_class(AutoConfig.from_pretrained(name, **config))
    return (own or AutoModelForImageTextToText).from_pretrained(name, **options)


def _own_class(config: Any) -> Any:
    """transformers' class of the model which a config names; None if it is not transformers'."""
    named = next(iter(config.architectures or ()), "")
    found = getattr(transformers, named, None)
    return found if isinstance(found, type) and issubclass(found, PreTrainedModel) else None


def check_copyable(model: CausalLM) -> None:
    """Check that a copy of a model could be loaded again.

    Raises:
        ValueError: transformers has no class for it.
    """
    kind, config = type(model), type(model.config)
    if getattr(transformers, kind.__name__, None) is kind:
        return
    if config in MODEL_FOR_CAUSAL_LM_MAPPING or config in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return
    raise ValueError(
        f"save_base: expected a model which transformers can load, got a {kind.__name__} with a "
        f"{config.__name__}, for which it has no class: save without save_base, and load with "
        "from_pretrained(folder, base=...)"
    )


def save_copy(model: Any, folder: Path) -> None:
    """Write a model to `folder`; an offloaded one is brought into memory."""
    options = {}
    # transformers brings back what a device_map offloaded, and only that.
    if not hasattr(model, "hf_device_map") and any(p.is_meta for p in model.parameters()):
        tensors = stored_tensors(model)
        options["state_dict"] = {name.removeprefix(BUFFER): t.detach().cpu() for name, t in tensors}
    model.save_pretrained(folder, **options)
