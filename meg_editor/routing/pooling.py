"""Sentence pooling as sentence-transformers describes it beside a model (`modules.json`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from torch import Tensor

from meg_editor.config.input_files import short_repr

Mode = Callable[[Tensor, Tensor], Tensor]  # (B, T, E) states, (B, T) mask -> (B, E)


def _cls(states: Tensor, mask: Tensor) -> Tensor:
    first = mask.long().argmax(1)  # padding may be on the left
    return states[torch.arange(len(states), device=states.device), first]


def _last(states: Tensor, mask: Tensor) -> Tensor:
    last = mask.shape[1] - 1 - mask.flip(1).long().argmax(1)
    return states[torch.arange(len(states), device=states.device), last]


def _sum(states: Tensor, mask: Tensor) -> Tensor:
    return (states * mask.unsqueeze(-1).to(states.dtype)).sum(1)


def _count(states: Tensor, mask: Tensor) -> Tensor:
    return mask.to(states.dtype).sum(1, keepdim=True).clamp_min(1e-9)


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    return _sum(states, mask) / _count(states, mask)


def _mean_sqrt(states: Tensor, mask: Tensor) -> Tensor:
    return _sum(states, mask) / _count(states, mask).sqrt()


def _max(states: Tensor, mask: Tensor) -> Tensor:
    return states.masked_fill(~mask.bool().unsqueeze(-1), -torch.inf).amax(1)


def _weighted_mean(states: Tensor, mask: Tensor) -> Tensor:
    return _mean(states, mask * torch.arange(1, mask.shape[1] + 1, device=mask.device))


_MODULES, _OF_MODULES = "modules.json", ("type", "path")
# In the order in which sentence-transformers joins several of them.
MODES: dict[str, Mode] = {
    "cls": _cls,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}
_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def pool(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Token states (B, T, E) and their mask (B, T) -> sentence embeddings (B, E * modes).

    Args:
        pooling: names of `MODES`, joined by "+" where there are several.

    Example:
        >>> states = torch.tensor([[[1.0], [3.0], [9.0]]])
        >>> pool(states, torch.tensor([[1, 1, 0]]), "cls+mean+lasttoken").tolist()
        [[1.0, 2.0, 3.0]]
    """
    return torch.cat([MODES[mode](states, mask) for mode in pooling.split("+")], dim=-1)


def check_pooling(pooling: str) -> str:
    """`pooling` itself, checked.

    Raises:
        ValueError: `pool` does not know it.

    Example:
        >>> check_pooling("cls+mean")
        'cls+mean'
    """
    if any(mode not in MODES for mode in pooling.split("+")):
        raise ValueError(f"pooling: expected some of {', '.join(MODES)}, got {pooling!r}")
    return pooling


def own_pooling(name: str | Path, **options: Any) -> str:
    """The pooling of the encoder `name` (hub id or folder); "cls", the paper's, if it names none.

    Args:
        options: of the hub, such as `local_files_only`.

    Raises:
        FileNotFoundError: modules.json names a pooling whose config is not there.
        ValueError: modules which change the embedding otherwise (Dense), an unknown pooling, or a
            file which says something else than sentence-transformers writes.
    """
    modules = _read_json(name, _MODULES, options)
    listed = modules is not None
    if not listed:  # some copies have the pooling alone
        modules = [{"type": "Pooling", "path": "1_Pooling"}]
    if not isinstance(modules, list) or not all(map(_is_module, modules)):
        raise ValueError(
            f"{Path(name) / _MODULES}: expected a list of modules with a type and a path, got "
            f"{short_repr(modules)}; download the encoder again"
        )
    pooling = "cls"
    for module in modules:
        kind = str(module["type"]).rpartition(".")[2]
        if kind == "Pooling":
            file = f"{module['path']}/config.json"
            settings = _read_json(name, file, options)
            if settings is not None:
                pooling = _named_pooling(Path(name) / file, settings)
            elif listed:
                raise FileNotFoundError(
                    f"encoder {name}: {_MODULES} names a pooling, but {Path(name) / file} is not "
                    "there; download the encoder again, all of it"
                )
        elif kind not in ("Transformer", "Normalize"):
            raise ValueError(
                f"encoder {name}: its module {kind} is not supported (expected Transformer, "
                "Pooling and Normalize); choose another encoder_name"
            )
    return pooling


def _is_module(module: Any) -> bool:
    return isinstance(module, dict) and all(isinstance(module.get(k), str) for k in _OF_MODULES)


def _named_pooling(path: Path, settings: Any) -> str:
    """Older versions have a flag for each mode, newer ones a name or several."""
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: expected a JSON object, got {short_repr(settings)}")
    named = settings.get("pooling_mode")
    modes = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    modes = modes or [mode for key, mode in _KEYS.items() if settings.get(key)]
    try:
        check_pooling("+".join(map(str, modes)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}; choose another encoder_name") from error
    return "+".join(sorted(modes, key=list(MODES).index))


def _read_json(name: str | Path, file: str, options: dict[str, Any]) -> Any:
    """The content of a file of a model, local or on the hub; None where there is no such file."""
    path = Path(name) / file
    if not Path(name).is_dir():
        try:
            path = Path(hf_hub_download(str(name), file, **options))
        except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
            return None  # no such file, or no hub: the weights are loaded next and say so
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:  # UnicodeDecodeError too
        raise ValueError(f"{path} is not JSON: {error}; download the encoder again") from error
