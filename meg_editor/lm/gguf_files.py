"""GGUF files: converted once to half precision, and kept in the cache by their content."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from meg_editor.runtime.cache import cache_folder, writable_cache_folder
from meg_editor.runtime.files import (
    check_regular,
    replacing,
    sync_tree,
    unfinished_folder,
    unfinished_name,
)

_LOG = logging.getLogger(__name__)

SUFFIX = ".gguf"
_MANIFEST = "files.json"  # of a converted model: the bytes of each file
_SPECIAL = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
}


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file, in one part or in some that follow each other.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "tiny.gguf"
        >>> _ = path.write_bytes(b"GGUF")
        >>> GgufFile.at(path).key
        'tiny-b83633aa78534479'
    """

    parts: tuple[Path, ...]

    @classmethod
    def at(cls, path: str | Path) -> GgufFile:
        """The file `path`.

        Raises:
            FileNotFoundError: there is none.
        """
        found = Path(path).expanduser()
        if not found.exists():
            raise FileNotFoundError(f"{path}: no such GGUF file")
        return cls((found,))

    @cached_property
    def key(self) -> str:
        """Its name and 16 hex digits of the sha256 of its content."""
        content = hashlib.sha256()
        for part in self.parts:
            check_regular(part)
            with part.open("rb") as file:
                while block := file.read(2**20):
                    content.update(block)
        name = self.parts[0].name
        return f"{name[: name.lower().index(SUFFIX)]}-{content.hexdigest()[:16]}"

    def converted(self) -> Path:
        """The folder of the converted file, as transformers reads it.

        Raises:
            OSError: it cannot be converted, or the cache folder cannot be written.
        """
        folder = cache_folder("models") / self.key
        if folder.is_dir():
            if is_whole(folder):
                return folder
            _LOG.warning("%s: files are missing or cut short; converting it again", folder)
        try:
            import gguf  # noqa: F401 - transformers reads GGUF files with it
        except ImportError as error:
            raise OSError(f"{self.parts[0]} is a GGUF file: pip install gguf to read it") from error
        from meg_editor.lm.one_load import one_load  # imports torch, which takes seconds

        writable_cache_folder("models")
        with unfinished_folder(folder) as new, one_load():
            with self._whole(new) as path:
                _convert(path, new)
            sizes = {file.name: file.stat().st_size for file in new.iterdir()}
            (new / _MANIFEST).write_text(json.dumps(sizes), "utf-8")
            sync_tree(new)
            _put(new, folder)
        return folder

    @contextmanager
    def _whole(self, folder: Path) -> Iterator[Path]:
        """The file in one part, for a while in `folder` if there are more."""
        if len(self.parts) == 1:
            yield self.parts[0]
            return
        path = folder / f"whole{SUFFIX}"
        with path.open("wb") as whole:
            for part in self.parts:
                with part.open("rb") as file:
                    shutil.copyfileobj(file, whole)
        yield path
        path.unlink()


def is_whole(folder: Path) -> bool:
    """Whether a converted model still has its files: what clears caches takes single ones.

    Example:
        >>> import tempfile
        >>> is_whole(Path(tempfile.mkdtemp()))
        False
    """
    manifest = folder / _MANIFEST
    if not manifest.exists():  # of an older version
        return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    try:
        sizes = json.loads(manifest.read_text("utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _put(new: Path, folder: Path) -> None:
    """Give a converted model its name, unless another process was faster."""
    if folder.is_dir() and not is_whole(folder):
        old = unfinished_name(folder)
        with suppress(FileNotFoundError):  # another process moved it away
            folder.rename(old)
        shutil.rmtree(old, ignore_errors=True)
    try:
        new.rename(folder)
    except OSError:
        if not is_whole(folder):
            raise


def _convert(path: Path, folder: Path) -> None:
    """Write the weights of a GGUF file as a transformers folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        tokens = special_tokens(path)
    except Exception as error:  # gguf has one for every byte that may be wrong
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise OSError(
            f"cannot read the GGUF file {path}: it is damaged or no GGUF file ({what}); download "
            "it again, or name another model with --model"
        ) from error
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=torch.float16,
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        # transformers 5.17 took the first token of a chat for the end of text of SmolLM2.
        for name, token in tokens.items():
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(token))
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


def special_tokens(path: str | Path) -> dict[str, int]:
    """Ids of the special tokens which a GGUF file names, as a tokenizer calls them.

    Raises:
        ValueError: of gguf, if it is no GGUF file.
    """
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    return {
        name: int(field.contents())
        for name, key in _SPECIAL.items()
        if (field := fields.get(key)) is not None
    }
