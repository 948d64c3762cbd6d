"""Saved edits: the same answers in another process, whole folders only, damage found and named."""

from __future__ import annotations

import copy
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from meg_editor.edits.edit import edits_of
from meg_editor.edits.edition import Edition
from meg_editor.lm import model_files, reference
from meg_editor.lm.reference import (
    WrongModelError,
    portable_model_name,
    reference_encoder_path,
    reference_model_path,
    resolve_model_name,
)
from meg_editor.model.meg_model import MeGModel
from meg_editor.model.saved.loading import from_pretrained
from meg_editor.model.saved.manifest import SavedModelError, checksum
from meg_editor.model.saved.saving import check_destination, save_pretrained
from meg_editor.requests.request import EditRequest
from meg_editor.routing.encoder import TextEncoder

ROOT = Path(__file__).parent.parent
resource = pytest.importorskip("resource", reason="POSIX only")
QUESTIONS = [
    "The capital of Atlantis is",
    "The capital of Cimmeria is",
    "The capital of  Cimmeria is now",
    "Who wrote the book?",
    "2 + 2 =",
    "My cat sat on",
]
KINDS = [(gen, gate) for gen in ("dit", "mlp", "bank") for gate in ("similarity", "familiarity")]

_PROGRAM = """
import json, sys
import torch
from meg_editor.model.meg_model import MeGModel
torch.set_num_threads(1)  # as conftest.py: sums in another order differ in the last bits
torch.manual_seed(int(sys.argv[1]))  # another one than where the models were made
questions, folders = json.load(sys.stdin)
results = {}
for folder in folders:
    model = MeGModel.from_pretrained(folder, device="cpu")
    batch = model.tokenizer(questions, return_tensors="pt", padding=True, padding_side="left")
    routing = model.route(questions)
    results[folder] = {
        "answers": model.generate(**batch, max_new_tokens=8, do_sample=False).tolist(),
        "is_edit": routing.is_edit.tolist(),
        "scores": routing.score.tolist(),
    }
print(json.dumps(results))
"""


def answers(model: MeGModel, edited: bool = True) -> list[list[int]]:
    batch = model.tokenizer(QUESTIONS, return_tensors="pt", padding=True, padding_side="left")
    answering = model if edited else model.base
    return answering.generate(**batch, max_new_tokens=8, do_sample=False).tolist()


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any], stamp: bool = True) -> None:
    """Change meg_config.json; with `stamp` its checksum agrees: only its content is wrong."""
    path = folder / "meg_config.json"
    config = json.loads(path.read_text("utf-8"))
    config = change(config) or config
    if stamp and isinstance(config, dict):
        config["checksum"] = checksum(config)
    path.write_text(json.dumps(config), "utf-8")


def stamp_of(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def retell(folder: Path, name: str) -> None:
    """Make the manifest agree with a changed file, so that only its content is wrong."""
    stamp = stamp_of((folder / name).read_bytes())
    rewrite(folder, lambda config: config["files"].update({name: stamp}))


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes: a full disk, for this process only."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def model(make_meg_model: Callable[..., MeGModel]) -> MeGModel:
    return make_meg_model("bank")


@pytest.fixture(scope="module")
def saved(model: MeGModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "edits"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of a saved folder, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "edits"))


# ------------------------------------------------------------------- the same answers


@pytest.fixture(scope="module")
def elsewhere(
    make_meg_model: Callable[..., MeGModel], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], tuple[MeGModel, dict[str, Any]]]:
    """Models of all kinds, and what another process says with them after loading them."""
    root = tmp_path_factory.mktemp("kinds")
    models = {kind: make_meg_model(*kind) for kind in KINDS}
    folders = {kind: str(root / "-".join(kind)) for kind in KINDS}
    for kind, model in models.items():
        model.save_pretrained(folders[kind], save_base=True)
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, "1234"],
        input=json.dumps([QUESTIONS, list(folders.values())]),
        capture_output=True,
        text=True,
        cwd=root,  # not where relative paths would lead
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    return {kind: (models[kind], results[folders[kind]]) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_another_process_answers_token_for_token_the_same(
    elsewhere: dict[tuple[str, str], tuple[MeGModel, dict[str, Any]]], kind: tuple[str, str]
) -> None:
    model, result = elsewhere[kind]
    routing = model.route(QUESTIONS)
    ours, before = answers(model), answers(model, edited=False)
    edited = [row for row in range(len(QUESTIONS)) if ours[row] != before[row]]
    # The test can fail only if there is something to lose.
    assert edited and edited == routing.is_edit.nonzero().flatten().tolist()
    assert len(edited) < len(QUESTIONS)
    assert result["answers"] == ours
    assert result["is_edit"] == routing.is_edit.tolist()
    assert result["scores"] == routing.score.tolist()


def test_everything_is_restored(model: MeGModel, saved: Path) -> None:
    base = copy.deepcopy(model.base)
    loaded = from_pretrained(saved, base=base)
    assert loaded.base is base and loaded.tokenizer.get_vocab() == model.tokenizer.get_vocab()
    assert loaded.edits == model.edits
    assert loaded.hparams == model.hparams and loaded.spec == model.spec
    assert torch.equal(loaded.anchors, model.anchors) and loaded.anchors.dtype == torch.float32
    assert loaded.encoder.pooling == "cls"
    for ours, theirs in ((loaded.gate, model.gate), (loaded.generator, model.generator)):
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        for name, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], value), name
    assert not loaded.training and answers(loaded) == answers(model)


def test_the_starting_noise_of_the_sampler_is_kept_though_the_seed_says_another(
    make_meg_model: Callable[..., MeGModel], tmp_path: Path
) -> None:
    model = make_meg_model("dit")
    model.generator.start.normal_(generator=torch.Generator().manual_seed(99))
    model.save_pretrained(tmp_path / "a")
    loaded = from_pretrained(tmp_path / "a", base=copy.deepcopy(model.base))
    assert torch.equal(loaded.generator.start, model.generator.start)
    assert torch.equal(
        loaded.neurons(loaded.route(QUESTIONS)), model.neurons(model.route(QUESTIONS))
    )


def test_settings_of_the_tokenizers_and_odd_requests_survive(
    model: MeGModel, tiny_encoder: TextEncoder, tmp_path: Path
) -> None:
    tokenizer, encoder = copy.deepcopy(model.tokenizer), copy.deepcopy(tiny_encoder)
    tokenizer.padding_side, tokenizer.chat_template = "left", "{{ messages[0]['content'] }}!"
    encoder.tokenizer.truncation_side, encoder.pooling = "right", "mean"
    edits = [  # stripping, filling in the subject or splitting lines would change these
        EditRequest("  Who is {}? \u2028 \r\n", "“Ål” 你好", "Ål", ("a",), ("b", "c\u0085d")),
        *model.edits[1:],
    ]
    edition = Edition(edits_of(edits), model.gate, model.index, model.generator)
    other = MeGModel(model.base, tokenizer, model.hparams, model.spec, encoder, edition)
    save_pretrained(other, tmp_path / "a")
    loaded = from_pretrained(tmp_path / "a", base=model.base)
    assert loaded.edits == tuple(edits)
    assert loaded.tokenizer.padding_side == "left"
    assert loaded.tokenizer.chat_template == tokenizer.chat_template
    assert loaded.encoder.tokenizer.truncation_side == "right"
    texts = ["The capital of Atlantis is"]
    assert torch.equal(loaded.encoder.encode(texts), encoder.encode(texts))
    assert not torch.equal(encoder.encode(texts), tiny_encoder.encode(texts))  # "mean" matters
    given = from_pretrained(tmp_path / "a", base=model.base, tokenizer=model.tokenizer)
    assert given.tokenizer is model.tokenizer


# ----------------------------------------------------------------------- the base model


def test_the_base_is_found_by_name_in_its_precision(
    make_meg_model: Callable[..., MeGModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_meg_model()
    model.base.to(torch.bfloat16).save_pretrained(tmp_path / "llm")
    model.base.config.name_or_path = "llm"
    monkeypatch.chdir(tmp_path)
    save_pretrained(model, "edits")
    assert not (tmp_path / "edits" / "base").exists()
    monkeypatch.chdir("/")  # the name was relative
    loaded = from_pretrained(tmp_path / "edits", device="cpu")
    assert loaded.base.dtype == torch.bfloat16 and loaded.base.device.type == "cpu"
    assert answers(loaded) == answers(model)

    (tmp_path / "llm").rename(tmp_path / "moved")
    with pytest.raises(OSError, match=rf"{tmp_path}/llm.*base=\.\.\."):
        from_pretrained(tmp_path / "edits")
    assert answers(from_pretrained(tmp_path / "edits", base=tmp_path / "moved", device="cpu"))
    save_pretrained(loaded, tmp_path / "again", save_base=True)
    # What is loaded from base/ still knows where it came from.
    again = from_pretrained(tmp_path / "again", device="cpu")
    assert again.base.config.name_or_path == again.base.name_or_path == str(tmp_path / "llm")


def test_a_revision_is_requested_and_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(folder, lambda config: config["base"].update(name="org/llm", revision="abc123"))
    loaded: dict[str, Any] = {}

    def refuse(name: str, **options: Any) -> None:
        loaded.update(options, name=name)
        raise OSError("not on the hub")

    monkeypatch.setattr(model_files.AutoModelForCausalLM, "from_pretrained", refuse)
    monkeypatch.setattr(reference, "load_options", lambda name, revision: {})  # the hub is there
    with pytest.raises(OSError, match=r"'org/llm' \(revision abc123\).*not on the hub.*base="):
        from_pretrained(folder)
    assert loaded["name"] == "org/llm" and loaded["revision"] == "abc123"
    assert loaded["dtype"] == torch.float32 and loaded["trust_remote_code"] is False
    with pytest.raises(OSError, match="'other/llm'"):  # its commits are others
        from_pretrained(folder, base="other/llm")
    assert loaded["name"] == "other/llm"


def test_a_base_without_a_name_must_be_given(folder: Path) -> None:
    with pytest.raises(OSError, match="no name when the edits were saved.*base="):
        from_pretrained(folder)


def test_a_wrong_base_is_refused(model: MeGModel, saved: Path) -> None:
    other = copy.deepcopy(model.base)
    other.config.name_or_path = other.name_or_path = "some/other"
    with torch.no_grad():
        other.model.layers[2].mlp.down_proj.weight.add_(0.5)
        other.model.embed_tokens.weight.add_(0.5)
    with pytest.raises(WrongModelError, match="expected .*without a name.*got some/other.*base="):
        from_pretrained(saved, base=other)
    with pytest.raises(WrongModelError, match=r"got a Linear: .* absent"):
        from_pretrained(saved, base=torch.nn.Linear(2, 2))
    with pytest.raises(WrongModelError, match=r"\.base"):
        from_pretrained(saved, base=model)
    assert from_pretrained(saved, base=copy.deepcopy(model.base).half())  # rounding is no other


def test_the_device_is_obeyed(model: MeGModel, saved: Path) -> None:
    loaded = from_pretrained(saved, base=copy.deepcopy(model.base), device="meta")
    assert loaded.base.device.type == loaded.anchors.device.type == "meta"
    with pytest.raises(ValueError, match="cuda:99"):
        from_pretrained(saved, base=copy.deepcopy(model.base), device="cuda:99")


def test_reference_models_are_found_in_another_installation(
    make_meg_model: Callable[..., MeGModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, here, there = make_meg_model(), tmp_path / "here", tmp_path / "there"
    monkeypatch.setattr(reference, "ASSETS", here)
    with pytest.raises(FileNotFoundError, match="llama-reference is not at .*install meg_editor"):
        resolve_model_name("meg_editor:llama-reference")
    with pytest.raises(FileNotFoundError, match="bert-reference"):
        reference_encoder_path()
    with pytest.raises(ValueError, match="unknown reference model.*meg_editor:bert-reference"):
        resolve_model_name("meg_editor:lama-reference")
    model.base.save_pretrained(here / "llama-reference")
    assert reference_model_path() == here / "llama-reference"
    assert resolve_model_name("gpt2") == portable_model_name("gpt2") == "gpt2"
    assert portable_model_name("") == ""
    assert portable_model_name(str(here)) == str(here)

    model.base.config.name_or_path = resolve_model_name("meg_editor:llama-reference")
    save_pretrained(model, tmp_path / "edits")
    here.rename(there)
    monkeypatch.setattr(reference, "ASSETS", there)
    assert answers(from_pretrained(tmp_path / "edits", device="cpu")) == answers(model)


# ---------------------------------------------------------------------- whole or not at all


@pytest.mark.parametrize("older", [False, True], ids=["new", "older"])
@pytest.mark.parametrize(
    "size, save_base, cause",
    [(100, True, "OSError"), (9000, True, "SafetensorError"), (2000, False, "Exception")],
    ids=["Python", "safetensors", "tokenizers"],
)
def test_a_full_disk_leaves_what_was_there(
    model: MeGModel, folder: Path, older: bool, size: int, save_base: bool, cause: str
) -> None:
    if not older:
        shutil.rmtree(folder)
    before = contents(folder.parent)
    with file_size_limit(size), pytest.raises(OSError, match=f"{folder}.*File too large") as caught:
        save_pretrained(model, folder, save_base=save_base)
    assert caught.value.errno == errno.EFBIG
    assert type(caught.value.__cause__).__name__ == cause  # each library has its own
    assert contents(folder.parent) == before and folder.exists() == older
    assert len(list(folder.parent.iterdir())) == older  # nothing is left beside it either


def test_a_save_which_cannot_come_into_force_leaves_the_older_folder(
    model: MeGModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rename = contents(folder.parent), Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.suffix == ".part":
            raise PermissionError(13, "no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(PermissionError, match=str(folder)):
        save_pretrained(model, folder)
    assert contents(folder.parent) == before and len(list(folder.parent.iterdir())) == 1


def test_an_interrupt_leaves_no_half_written_folder(
    model: MeGModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(folder.parent)
    monkeypatch.setattr(TextEncoder, "save_pretrained", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(model, folder)
    assert contents(folder.parent) == before and len(list(folder.parent.iterdir())) == 1


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_an_impossible_place_is_named(model: MeGModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=f"cannot save the edits to {tmp_path}/file/edits"):
        save_pretrained(model, tmp_path / "file" / "edits")
    with pytest.raises(FileExistsError, match=str(tmp_path / "file")):
        save_pretrained(model, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_saving_again_replaces_the_older_edits_and_only_those(
    make_meg_model: Callable[..., MeGModel], folder: Path
) -> None:
    fewer = make_meg_model("mlp", n=3)
    save_pretrained(fewer, folder, save_base=True)
    save_pretrained(fewer.fork(), folder)  # base/ of the older one is gone with it
    assert not (folder / "base").exists() and len(list(folder.parent.iterdir())) == 1
    assert from_pretrained(folder, base=fewer.base).edits == fewer.edits

    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="thesis.txt"):
        save_pretrained(fewer.fork(), folder)
    assert (folder / "thesis.txt").read_text() == "mine"


def test_a_foreign_folder_is_not_overwritten(model: MeGModel, tmp_path: Path) -> None:
    (tmp_path / "encoder").mkdir()  # looks like ours, but there is no meg_config.json
    (tmp_path / "encoder" / "mine").write_text("mine")
    with pytest.raises(FileExistsError, match=f"{tmp_path} .*empty"):
        save_pretrained(model, tmp_path)
    assert contents(tmp_path) == {"encoder/mine": b"mine"}
    (tmp_path / "empty").mkdir()
    mask = os.umask(0o022)
    try:
        save_pretrained(model, tmp_path / "empty")
    finally:
        os.umask(mask)
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o755  # for others to read
    assert (tmp_path / "empty" / "meg_config.json").is_file()


def test_a_destination_can_be_checked_before_there_is_anything_to_save(
    model: MeGModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_destination("deep/down/edits") == tmp_path / "deep" / "down" / "edits"
    assert check_destination(folder) == folder  # saved edits may be replaced
    assert not any((tmp_path / "deep" / "down").iterdir())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match=f"{tmp_path} holds something other.*deep"):
        check_destination(".")
    with pytest.raises(FileExistsError, match="file"):
        check_destination("file")
    with pytest.raises(OSError, match=f"cannot save the edits to {tmp_path}/file/edits"):
        check_destination("file/edits")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("place", [".", "../edits"])
def test_the_working_directory_can_be_saved_to(
    model: MeGModel, folder: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    identity = folder.stat().st_ino
    monkeypatch.chdir(folder)
    model.save_pretrained(place)
    assert Path.cwd() == folder and folder.stat().st_ino == identity
    assert from_pretrained(".", base=model.base).edits == model.edits
    with pytest.raises(FileExistsError, match="something other"):
        check_destination("..")


def test_a_parent_which_cannot_be_written_is_found_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:  # the superuser may write anywhere: pretend
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(PermissionError, match=f"cannot save the edits to {tmp_path}/edits.*no"):
        check_destination(tmp_path / "edits")


def test_what_could_not_be_loaded_is_not_saved(
    make_meg_model: Callable[..., MeGModel], tmp_path: Path
) -> None:
    model = make_meg_model("mlp", gate="familiarity")
    model.hparams.generator_depth = 1
    with pytest.raises(ValueError, match=r"unexpected tensors blocks\.1.* and .*model\.hparams"):
        save_pretrained(model, tmp_path / "a")
    model.hparams.generator_depth, model.hparams.gate = 2, "similarity"
    with pytest.raises(ValueError, match="expected the SimilarityGate .* got a FamiliarityGate"):
        save_pretrained(model, tmp_path / "a")
    assert not any(tmp_path.iterdir())


# ------------------------------------------------------------------------------- damage


def test_what_is_no_saved_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/none: there is no such folder"):
        from_pretrained(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}: it holds no meg_config.json"):
        from_pretrained(tmp_path)


FILES = ["edits.jsonl", "index.safetensors", "gate.safetensors", "generator.safetensors"]
FILES += ["encoder/model.safetensors", "encoder/config.json", "tokenizer/tokenizer.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(model: MeGModel, folder: Path, name: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    sizes = f"expected {len(whole)} bytes, found {len(whole) - 1}"
    with pytest.raises(SavedModelError, match=f"{path}: cut short or changed: {sizes}"):
        from_pretrained(folder, base=model.base)
    changed = whole[:-1] + bytes([whole[-1] ^ 1])
    path.write_bytes(changed)  # one bit, the same size
    stamp, found = (stamp_of(data)["sha256"][:12] for data in (whole, changed))
    with pytest.raises(SavedModelError, match=f"{path}: .*sha256 {stamp}…, found .*{found}…; copy"):
        from_pretrained(folder, base=model.base)
    path.unlink()
    with pytest.raises(SavedModelError, match=f"{path}.*No such file"):
        from_pretrained(folder, base=model.base)


def test_a_damaged_base_matters_only_if_it_is_used(model: MeGModel, tmp_path: Path) -> None:
    save_pretrained(model, tmp_path / "a", save_base=True)
    weights = tmp_path / "a" / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(SavedModelError, match=f"{weights}: cut short"):
        from_pretrained(tmp_path / "a")
    assert from_pretrained(tmp_path / "a", base=model.base).edits == model.edits


@pytest.mark.parametrize("name", ["encoder/pytorch_model.bin", "tokenizer/added_tokens.json"])
def test_files_put_beside_those_of_transformers_are_refused(
    model: MeGModel, folder: Path, name: str
) -> None:
    (folder / name).write_bytes(b"evil")
    with pytest.raises(SavedModelError, match=name):
        from_pretrained(folder, base=model.base)
    (folder / name).unlink()
    (folder / "README.md").write_text("a top-level file which nothing reads")
    assert from_pretrained(folder, base=model.base)


@pytest.mark.parametrize("name", ["../secret", "encoder/../../secret", "/etc/hostname", "..\\x"])
def test_a_manifest_cannot_lead_out_of_the_folder(model: MeGModel, folder: Path, name: str) -> None:
    (folder.parent / "secret").write_text("x")
    stamp = stamp_of(b"x")
    rewrite(folder, lambda config: config["files"].update({name: stamp}))
    with pytest.raises(SavedModelError, match="is not in the folder"):
        from_pretrained(folder, base=model.base)


def test_every_file_must_be_listed(model: MeGModel, folder: Path) -> None:
    rewrite(folder, lambda config: config["files"].pop("gate.safetensors") and None)
    with pytest.raises(SavedModelError, match="must list the files gate.safetensors"):
        from_pretrained(folder, base=model.base)


@pytest.mark.parametrize(
    "file, name",
    [("gate", "threshold"), ("generator", "neurons"), ("index", "anchors"), ("index", "states")],
)
def test_tensors_which_do_not_fit_are_named(
    model: MeGModel, folder: Path, file: str, name: str
) -> None:
    path = folder / f"{file}.safetensors"
    whole = load_file(path)

    def refused(tensors: dict[str, torch.Tensor], problem: str) -> None:
        save_file(tensors, path)
        retell(folder, path.name)
        with pytest.raises(SavedModelError, match=f"{path}.*{problem}"):
            from_pretrained(folder, base=model.base)

    refused({k: v for k, v in whole.items() if k != name}, f"missing tensors {name}")
    refused({**whole, "stray": torch.ones(1)}, "unexpected tensors stray")
    refused({**whole, name: torch.ones(2, 2, 2)}, rf"{name} \(2, 2, 2\).*expected")
    refused({**whole, name: whole[name].double()}, f"{name} .*torch.float64 .expected")
    path.write_bytes(b"\x80\x04K\x01.")  # a pickle
    retell(folder, path.name)
    with pytest.raises(SavedModelError, match=str(path)):
        from_pretrained(folder, base=model.base)


def test_an_encoder_with_other_tensors_is_refused(model: MeGModel, folder: Path) -> None:
    path = folder / "encoder" / "model.safetensors"
    tensors = load_file(path)
    lost = next(name for name in tensors if "layer.1" in name and "pooler" not in name)
    save_file({k: v for k, v in tensors.items() if k != lost}, path, {"format": "pt"})
    retell(folder, "encoder/model.safetensors")
    with pytest.raises(SavedModelError, match=f"{folder}/encoder: missing.*{lost}"):
        from_pretrained(folder, base=model.base)


def put(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        for key in keys[:-1]:
            config = config[key]
        config[keys[-1]] = value

    return change


CHANGES = {
    "a list": (lambda config: [config], "expected an object, got list"),
    "no version": (lambda config: config.pop("format_version") * 0, "'format_version' is missing"),
    "a true version": (put("format_version", value=True), "expected int, got bool"),
    "a newer format": (
        put("format_version", value=6),
        "expected format_version 3 or 4 or 5, got 6.*0.1",
    ),
    "no base": (lambda config: config.pop("base") and None, "'base' is missing"),
    "a base name": (put("base", value="gpt2"), "base: expected dict, got str 'gpt2'"),
    "no fingerprint": (put("base", "fingerprint", value=None), "fingerprint: expected dict"),
    "text in it": (put("base", "fingerprint", value={"w": ["x"]}), "w, item 0: expected float or"),
    "a type": (put("base", "dtype", value="nn"), "dtype: expected bfloat16 or .*, got str 'nn'"),
    "hparams": (put("hparams", value=[]), "hparams: expected dict"),
    "a setting": (put("hparams", "layerz", value=1), "unknown hyper-parameter 'layerz'.*'layers'"),
    "its value": (put("hparams", "seed", value="x"), "seed: expected int, got 'x'"),
    "a neuron": (put("neuron", "layer", value="1"), "neuron: layer: expected int, got str '1'"),
    "its bias": (put("neuron", "bias", value=0), "bias: expected bool, got int"),
    "its key": (put("neuron", "extra", value=0), "extra"),
    "pooling": (put("encoder_pooling", value="median"), "pooling: expected some of cls, max, mean"),
    "edits": (put("edits", value="6"), "edits: expected int"),
    "files": (put("files", value=[]), "files: expected dict"),
    "a file": (put("files", "edits.jsonl", value=5), "edits.jsonl: expected dict, got int 5"),
    "a size": (put("files", "edits.jsonl", "size", value=None), "size: expected int"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_config_of_the_wrong_type_is_explained(model: MeGModel, folder: Path, what: str) -> None:
    change, problem = CHANGES[what]
    rewrite(folder, change)
    with pytest.raises(SavedModelError, match=rf"meg_config\.json: .*{problem}"):
        from_pretrained(folder, base=model.base)


def test_a_config_which_is_no_json_is_named(model: MeGModel, folder: Path) -> None:
    path = folder / "meg_config.json"
    for bad in (path.read_bytes()[:-9], b"\xff\xfe", b""):
        path.write_bytes(bad)
        with pytest.raises(SavedModelError, match=str(path)):
            from_pretrained(folder, base=model.base)


@pytest.mark.parametrize(
    "line, problem",
    [
        ("{", "Expecting"),
        ("[]", "item 0: expected dict, got list"),
        ('{"prompt": "p"}', "item 0: 'target_new' is missing"),
        ('{"prompt": 5}', "item 0: prompt: expected str, got int 5"),
    ],
)
def test_bad_edits_are_named(model: MeGModel, folder: Path, line: str, problem: str) -> None:
    path = folder / "edits.jsonl"
    rows = path.read_text("utf-8").splitlines()
    path.write_text("\n".join([line, *rows[1:]]), "utf-8")
    retell(folder, "edits.jsonl")
    with pytest.raises(SavedModelError, match=f"{path}: .*{problem}"):
        from_pretrained(folder, base=model.base)
    path.write_text("\n".join(rows[1:]), "utf-8")
    retell(folder, "edits.jsonl")
    with pytest.raises(SavedModelError, match=f"{path}: expected 6 edits, got 5"):
        from_pretrained(folder, base=model.base)


def test_a_key_for_some_service_is_not_written(model: MeGModel, tmp_path: Path) -> None:
    hparams = dataclasses.replace(model.hparams, api_key="sesame-42")
    parts = (model.spec, model.encoder, model.edition)
    other = MeGModel(model.base, model.tokenizer, hparams, *parts)
    save_pretrained(other, tmp_path / "a")
    assert other.hparams.api_key == "sesame-42"
    assert all(
        b"sesame-42" not in p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file()
    )
    assert from_pretrained(tmp_path / "a", base=model.base).hparams.api_key is None
