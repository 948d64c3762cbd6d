"""prepare: what depends on no edit is made ahead, and the next fits take it up."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import OTHERS, PROMPTS

from meg_editor import MeGHyperParams, apply_meg_to_model, fit, prepare
from meg_editor.cli import main as cli
from meg_editor.fitting import encoder_stage, gate_stage
from meg_editor.fitting.prepare import Prepared
from meg_editor.fitting.tuning_facts import TuningFacts
from meg_editor.lm import gguf_files
from meg_editor.requests.request import EditRequest
from meg_editor.routing.encoder import TextEncoder
from meg_editor.runtime.artifacts import Artifact, ArtifactStore, CacheStore
from meg_editor.runtime.cache import cache_entries, cache_folder

SETTINGS = MeGHyperParams(
    layers=[1],
    device="cpu",
    encoder_tuning="infonce",
    encoder_steps=2,
    gate_threshold=None,
    collection_steps=5,
    generator="bank",
)
EDITS = [EditRequest(prompt, "Paris", subject=prompt.split()[-2]) for prompt in PROMPTS[:2]]
TUNING = [
    EditRequest(
        prompt,
        "x",
        subject=prompt.split()[-2],
        rephrases=(f"Say: {prompt}", f"{prompt}, please"),
        locality_prompts=(other,),
    )
    for prompt, other in zip(PROMPTS[8:13], OTHERS, strict=True)
]

Call = Callable[..., Any]


@pytest.fixture
def call(tiny_llama: Any, tiny_tokenizer: Any, tiny_encoder: TextEncoder) -> Call:
    """call(function, *positional, **options) with the tiny models and the facts of this file."""

    def call(function: Any, *given: Any, **options: Any) -> Any:
        defaults = {"pseudo": TUNING, "calibration": TUNING, "encoder": tiny_encoder}
        model = options.pop("model", tiny_llama)
        hparams = options.pop("hparams", SETTINGS)
        options = {**defaults, **options}
        return function(model, tiny_tokenizer, *given, hparams, **options)

    return call


def nothing_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (encoder_stage, "tune_encoder"),
        (gate_stage, "calibrate_on_held_out"),
    ):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("computed again"))


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("way", ["fit", "apply"])
def test_a_later_edit_takes_up_what_was_prepared(
    call: Call, monkeypatch: pytest.MonkeyPatch, way: str, named: bool
) -> None:
    edits = EDITS if named else [dataclasses.replace(edit, subject=None) for edit in EDITS]
    plain, _ = call(fit, edits)
    for entry in cache_entries():
        entry.path.unlink()
    lines = call(prepare)
    assert [line.name for line in lines] == ["encoder", "gate", "gate"]
    assert {line.path for line in lines} == {entry.path for entry in cache_entries()}
    assert not any(line.resumed for line in lines)

    nothing_computed(monkeypatch)
    edited, _ = call(fit if way == "fit" else apply_meg_to_model, edits)
    assert all(line.resumed for line in call(prepare))
    for name, value in plain.state_dict().items():
        assert torch.equal(edited.state_dict()[name], value), name


def test_a_report_has_the_time_of_preparing_and_not_of_loading(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(prepare)
    find = CacheStore.find

    def found(store: CacheStore, name: str, inputs: Any) -> Artifact | None:
        artifact = find(store, name, inputs)
        return artifact and dataclasses.replace(artifact, seconds=100.0)

    monkeypatch.setattr(CacheStore, "find", found)
    store = ArtifactStore()
    _, report = call(fit, EDITS, store=store)
    assert store.seconds_saved == pytest.approx(200.0, abs=20.0)
    assert report.resumed == ["encoder", "gate"]
    assert all(100.0 <= report.seconds[stage] < 110.0 for stage in report.resumed)


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({}, []),
        ({"model": "one weight"}, ["gate", "gate"]),
        ({"encoder": "one weight"}, ["encoder", "gate", "gate"]),
        ({"pseudo": TUNING[1:]}, ["encoder", "gate", "gate"]),
        ({"calibration": TUNING[1:]}, ["gate", "gate"]),
        ({"layers": [2]}, ["gate", "gate"]),
        ({"encoder_steps": 3}, ["encoder", "gate", "gate"]),
        ({"gate_name_weight": 0.3}, ["gate", "gate"]),
        ({"gate_calibration": "thorough"}, ["gate", "gate"]),
        ({"gate_calibration": "quick"}, []),
        ({"collection_lr": 0.5, "generator": "mlp", "batch_size": 7}, []),
    ],
    ids=str,
)
def test_a_change_of_what_goes_in_prepares_anew(
    call: Call,
    tiny_llama: Any,
    tiny_encoder: TextEncoder,
    change: dict[str, Any],
    again: list[str],
) -> None:
    call(prepare)
    options = dict[str, Any]()
    for name, value in change.items():
        if name in ("model", "encoder"):
            options[name] = copy.deepcopy({"model": tiny_llama, "encoder": tiny_encoder}[name])
            next(iter(options[name].parameters())).data[3] += 0.5
        elif name in ("pseudo", "calibration"):
            options[name] = value
        else:
            options["hparams"] = options.get("hparams", SETTINGS).changed(**{name: value})
    assert [line.name for line in call(prepare, **options) if not line.resumed] == again


def test_a_fact_that_tunes_is_not_edited_with_what_it_tuned(call: Call) -> None:
    call(prepare)
    before = len(list(cache_entries()))
    call(fit, [TUNING[0]])
    assert len(list(cache_entries())) == before + 2  # an encoder and a gate without that fact


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gate_threshold": 0.8}, ["it is not tuned", "the threshold is given"]),
        ({"gate": "familiarity"}, ["it is not tuned", "this gate learns the edits themselves"]),
    ],
)
def test_what_needs_no_preparation_is_said(
    call: Call, changes: dict[str, Any], words: list[str]
) -> None:
    hparams = SETTINGS.changed(encoder_tuning="frozen", **changes)
    lines = call(prepare, hparams=hparams)
    assert [str(line).partition("nothing to prepare: ")[2] for line in lines] == words
    assert not list(cache_entries())


def test_hidden_states_of_other_queries_are_read_once(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    hparams = SETTINGS.changed(gate_threshold=0.8, gate_state_weight=0.5)
    _, gate = call(prepare, hparams=hparams)
    assert "hidden states of other queries" in str(gate) and gate.path.exists()
    monkeypatch.setattr(gate_stage.HiddenStateReader, "usual", lambda *_: pytest.fail("read again"))
    edited, _ = call(fit, EDITS, hparams=hparams)
    assert edited.index.usual.shape == (2, 32)


def test_a_line_says_what_is_kept_and_where() -> None:
    line = Prepared("gate", "calibrated", Path("gate-1.safetensors"), 3.04)
    assert str(line) == "gate     calibrated in 3.0 s -> gate-1.safetensors"
    assert "in 3.0 s (earlier) ->" in str(dataclasses.replace(line, resumed=True))


def test_a_damaged_entry_of_the_cache_is_made_again(
    call: Call, caplog: pytest.LogCaptureFixture
) -> None:
    plain, _ = call(fit, EDITS)
    entries = [entry.path for entry in cache_entries()]
    whole = {path: path.read_bytes() for path in entries}
    for path, content in whole.items():
        for damaged in (b"", content[: len(content) // 2], content[:-1] + bytes([content[-1] ^ 1])):
            path.write_bytes(damaged)
            caplog.clear()
            edited, _ = call(fit, EDITS)
            assert f"{path} is damaged" in caplog.text and "MEG_EDITOR_CACHE" in caplog.text
            assert torch.equal(edited.gate.threshold, plain.gate.threshold)
            assert len(path.read_bytes()) >= len(content) - 64  # with other seconds
    caplog.clear()
    call(fit, EDITS)
    assert not caplog.records
    entries[0].write_bytes(b"")
    assert not call(prepare)[0].resumed


@pytest.mark.parametrize("place", ["file", "file/inside", "folder"])
def test_a_cache_folder_which_cannot_be_written_stops_no_fit(
    call: Call,
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain, _ = call(fit, EDITS)
    (tmp_path / "file").touch()
    if place == "folder":  # an entry which is one
        for entry in cache_entries():
            entry.path.unlink()
            entry.path.mkdir()
    else:
        monkeypatch.setenv("MEG_EDITOR_CACHE", str(tmp_path / place))
    edited, _ = call(fit, EDITS)
    assert torch.equal(edited.gate.threshold, plain.gate.threshold)
    warnings = [record.message for record in caplog.records if "cannot write" in record.message]
    assert len(warnings) == 2 and all("set MEG_EDITOR_CACHE to" in line for line in warnings)
    # To keep it is what `prepare` is for.
    with pytest.raises(OSError, match="cannot write to the cache folder.*set MEG_EDITOR_CACHE to"):
        call(prepare)


def test_nothing_is_computed_which_the_cache_folder_cannot_keep(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MEG_EDITOR_CACHE", str(tmp_path / "file"))
    nothing_computed(monkeypatch)
    with pytest.raises(OSError, match="MEG_EDITOR_CACHE"):
        call(prepare)


def test_a_cache_folder_in_an_unknown_home_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEG_EDITOR_CACHE", "~no-such-user/cache")
    with pytest.raises(ValueError, match="MEG_EDITOR_CACHE: expected a folder, got '~no-such-user"):
        cache_folder()
    assert cli.main(["cache"]) == 2
    assert "MEG_EDITOR_CACHE: expected a folder" in capsys.readouterr().err


# --------------------------------------------------------------------------- the command


@pytest.fixture
def run(
    tiny_llama: Any,
    tiny_tokenizer: Any,
    tiny_encoder: TextEncoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    """run(command, ...) -> its output; the model is a "GGUF file", whose conversion is replaced."""

    def convert(_: Path, folder: Path) -> None:
        tiny_llama.save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)

    monkeypatch.setattr(gguf_files, "_convert", convert)
    pytest.importorskip("gguf")
    (tmp_path / "tiny.gguf").write_bytes(b"some weights")
    copy.deepcopy(tiny_encoder).save_pretrained(tmp_path / "encoder")
    for name, facts in (("tuning", TUNING), ("facts", EDITS)):
        rows = "".join(f"{json.dumps(dataclasses.asdict(fact))}\n" for fact in facts)
        (tmp_path / f"{name}.jsonl").write_text(rows)
    monkeypatch.chdir(tmp_path)
    settings = [
        f"{name}={'null' if value is None else value}"
        for name, value in dataclasses.asdict(SETTINGS).items()
        if value != getattr(MeGHyperParams(), name) and name not in ("layers", "device")
    ]

    def run(command: str, *more: str) -> str:
        given: list[str] = []
        if command != "cache":
            given = ["--model", "tiny.gguf", "--encoder", "encoder", "--device", "cpu"]
            given += ["--pseudo", "tuning.jsonl", "--calibration", "tuning.jsonl", "--layer", "1"]
            given += [part for setting in settings for part in ("--set", setting)]
        capsys.readouterr()
        assert cli.main([command, *given, *more]) == 0
        return capsys.readouterr().out

    return run


def test_the_command_prepares_an_edit_takes_it_up_and_the_cache_lists_it(
    run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = run("prepare").splitlines()
    assert [line.split()[0] for line in lines] == ["model", "encoder", "gate", "gate"]
    assert "converted in" in lines[0] and "tuned on 5 facts in" in lines[1]
    assert "for at most 2 facts with a subject calibrated quickly in" in lines[2]
    paths = [Path(line.partition(" -> ")[2]) for line in lines]
    assert all(path.exists() for path in paths)
    assert run("prepare").count("(earlier) ->") == 4
    listed = run("cache")
    assert all(f"{path.parent.name}/{path.name}" in listed for path in paths)

    nothing_computed(monkeypatch)
    monkeypatch.setattr(gguf_files, "_convert", lambda *_: pytest.fail("converted again"))
    assert "2 facts in" in run("edit", "--edits", "facts.jsonl", "--out", "out")
    assert {entry.path for entry in cache_entries()} == set(paths)  # and nothing more
    run("cache", "--clear")
    assert not any(path.exists() for path in paths)


def test_a_model_that_needs_nothing_says_so(run: Callable[..., str], tiny_llama: Any) -> None:
    plain = ["--set", "encoder_tuning=frozen", "--set", "gate_threshold=0.8"]
    run("prepare", *plain)
    (folder,) = (entry.path for entry in cache_entries())
    own = folder.rename("model")
    lines = run("prepare", "--model", str(own), *plain).splitlines()
    assert [line.split()[0] for line in lines] == ["model", "encoder", "gate"]
    assert all("nothing to prepare" in line for line in lines)


# ----------------------------------------------------------------------------- the facts


def test_tuning_facts_are_looked_at_once_and_anew_by_a_changed_tokenizer(
    tiny_tokenizer: Any,
) -> None:
    tokenizer, calls = copy.deepcopy(tiny_tokenizer), []

    class Counted:
        def __call__(self, texts: list[str]) -> Any:
            calls.append(len(texts))
            return tokenizer(texts)

        def __len__(self) -> int:
            return len(tokenizer)

    facts, counted = TuningFacts(TUNING), Counted()
    first = facts.tokens_digest(counted)
    assert facts.tokens_digest(counted) == first == TuningFacts(TUNING).tokens_digest(tokenizer)
    assert sorted(calls) == [5, 5, 25]  # one fact, to see whether it is the same, and all
    tokenizer.add_tokens(["Borduria"])
    assert facts.tokens_digest(counted) == TuningFacts(TUNING).tokens_digest(tokenizer)
