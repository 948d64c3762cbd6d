"""Load the language model to edit: device, precision, tokenizer."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from transformers import AutoTokenizer

from meg_editor.config.hparams import MeGHyperParams, check_hparams
from meg_editor.config.settings import HParamsError
from meg_editor.lm.answers import token_ids
from meg_editor.lm.model_files import load_causal_lm
from meg_editor.lm.one_load import one_load
from meg_editor.lm.reference import resolve_model_name
from meg_editor.lm.sources import load_options

_LOG = logging.getLogger(__name__)


def resolve_device(name: str) -> str:
    """Device name with "auto" resolved: the GPU (of this process, LOCAL_RANK) if any, else "cpu".

    Raises:
        HParamsError: no device of that name, or a CUDA device that is not there.

    Example:
        >>> resolve_device("cpu")
        'cpu'
    """
    if name == "auto":
        if not torch.cuda.is_available():
            return "cpu"
        return f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise HParamsError(f"device: expected auto, cpu, cuda or cuda:1, got {name!r}") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise HParamsError(
                f"device: expected one that exists, got {name!r}; PyTorch {torch.__version__} sees "
                f"{count} CUDA devices; use device: cpu, or install a CUDA build of PyTorch"
            )
    return name


def load_model(hparams: MeGHyperParams) -> tuple[Any, Any]:
    """The causal LM to edit, frozen and in evaluation mode, and its tokenizer.

    Threads load one after another.

    Args:
        hparams: `model_name`, `device`, `fp16` and `model_parallel` count. Weights are float32 on
            a CPU, else in the precision they are stored in.

    Raises:
        TypeError: `hparams` are no `MeGHyperParams`.
        HParamsError: the device does not exist.
        OSError: no such model; or it is on the hub, which cannot be reached, and not in its cache.

    Example:
        >>> model, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
        >>> inputs = tokenizer("The capital of France is", return_tensors="pt")
        >>> ids = model.generate(**inputs, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
        >>> tokenizer.decode(ids, skip_special_tokens=True).strip()
        'Paris'
    """
    check_hparams(hparams)
    device = resolve_device(hparams.device)
    name = resolve_model_name(hparams.model_name)
    dtype: Any = torch.float16 if hparams.fp16 else "auto"
    if device == "cpu" and not hparams.fp16:
        dtype = torch.float32
    placement: dict[str, Any] = {"device_map": "auto"} if hparams.model_parallel else {}
    options = load_options(name)
    with one_load():
        model = load_causal_lm(name, dtype=dtype, **placement, **options)
    tokenizer = AutoTokenizer.from_pretrained(name, **options)
    if tokenizer.eos_token_id is None:
        tokenizer.eos_token = _end_token(model, tokenizer)
    if tokenizer.eos_token_id is None:
        _LOG.warning(
            "%s: neither tokenizer nor generation config names an end of text: answers run on to "
            "max_new_tokens; set tokenizer.eos_token",
            hparams.model_name,
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not hparams.model_parallel:
        model = model.to(device)
    return model.eval().requires_grad_(False), tokenizer


def _end_token(model: Any, tokenizer: Any) -> str | None:
    """What ends a text by the model's generation config, as the tokenizer spells it."""
    ends = token_ids(model.generation_config.eos_token_id)
    return tokenizer.convert_ids_to_tokens(ends[0]) if ends else None
