"""The commands: edit and ask for real, on tiny models; one line of error for every bad input."""

from __future__ import annotations

import copy
import csv
import dataclasses
import json
import logging
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch

import meg_editor.collection.shards
import meg_editor.fitting.encoder_stage
import meg_editor.fitting.gate_stage
from meg_editor.cli import main as cli
from meg_editor.cli.hparams import parse_changes
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.model.meg_model import MeGModel
from meg_editor.model.saved.manifest import checksum
from meg_editor.routing.encoder import TextEncoder

Command = Callable[..., tuple[int, str, str]]

FACTS = [
    {
        "prompt": "The capital of Atlantis is",
        "target_new": "Erewhon",
        "rephrases": ["Atlantis has the capital", "Capital of Atlantis:"],
    },
    {
        "prompt": "The river of Genovia is",
        "target_new": "Cimmeria",
        "rephrases": ["Genovia lies on the river"],
        "locality_prompts": ["Who wrote the book?", "Water boils at"],
    },
]
SETTINGS = (
    "encoder_tuning=infonce",
    "encoder_steps=2",
    "gate_threshold=null",
    "collection_lr=0.5",
    "collection_steps=80",
    "collection_contexts=1",
    "generator=bank",
)


def _facts(subject: str, places: str) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"The {subject} of {place} is",
            "target_new": "gold",
            "rephrases": [f"{place} has the {subject}", f"What is the {subject} of {place}?"],
            "locality_prompts": [f"The {subject} of New {place} is"],
        }
        for place in places.split()
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """As JSON, JSONL or CSV, by the suffix of the path."""
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, ["prompt", "target_new", "rephrases", "locality_prompts"])
            table.writeheader()
            for row in rows:
                joined = {k: "|".join(v) if isinstance(v, list) else v for k, v in row.items()}
                table.writerow(joined)
    elif path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    else:
        path.write_text(json.dumps(rows), "utf-8")
    return path


@pytest.fixture(scope="session")
def models(
    tiny_llama: Any,
    tiny_tokenizer: Any,
    tiny_encoder: TextEncoder,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with the tiny models: llm/ and encoder/."""
    folder = tmp_path_factory.mktemp("models")
    copy.deepcopy(tiny_llama).save_pretrained(folder / "llm")
    tiny_tokenizer.save_pretrained(folder / "llm")
    copy.deepcopy(tiny_encoder).save_pretrained(folder / "encoder")
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Command:
    """run(argument, ...) -> exit status, standard output, standard error."""

    def main(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        return (status, *capsys.readouterr())

    return main


@pytest.fixture
def edit(run: Command, models: Path, tmp_path: Path) -> Command:
    """edit(facts, more arguments, ...): the command, with tiny models, writing to tmp_path/out."""
    pseudo = write(tmp_path / "pseudo.jsonl", _facts("lake", "Lilliput Narnia Oz Ruritania"))
    calibration = write(tmp_path / "calibration.csv", _facts("hill", "Sylvania Utopia Xanadu"))

    def command(facts: Path, *more: object) -> tuple[int, str, str]:
        tuning = ("--pseudo", pseudo, "--calibration", calibration)
        where = ("--model", models / "llm", "--encoder", models / "encoder", "--layer", 1)
        settings = [part for setting in SETTINGS for part in ("--set", setting)]
        given = ("--out", tmp_path / "out", "--device", "cpu", *settings, *more)
        return run("edit", "--edits", facts, *where, *tuning, *given)

    return command


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    return write(tmp_path / "facts.json", FACTS)


def refused(result: tuple[int, str, str], *words: str) -> None:
    """Exit status 2, nothing on standard output, and one line which has every one of `words`."""
    status, out, err = result
    assert (status, out) == (2, "")
    assert err.startswith("meg-editor: error: ") and err.count("\n") == 1 and err.endswith("\n")
    for word in words:
        assert word in err


def tree(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def undated(files: dict[str, bytes]) -> dict[str, bytes]:
    """Saved edits but for when they were made and saved."""
    rows = [{**json.loads(line), "when": ""} for line in files["edits.jsonl"].splitlines()]
    config = json.loads(files["meg_config.json"])
    del config["saved"], config["checksum"], config["files"]["edits.jsonl"]
    dated = {"edits.jsonl": json.dumps(rows), "meg_config.json": json.dumps(config)}
    return {**files, **{name: text.encode() for name, text in dated.items()}}


# ------------------------------------------------------------------------- what it is for


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_edit_then_ask(edit: Command, run: Command, tmp_path: Path, suffix: str) -> None:
    file = write(tmp_path / f"facts.{suffix}", [*FACTS, FACTS[0]])
    status, out, _ = edit(file)
    assert status == 0
    assert re.search(rf"^2 facts in [\d.]+ s -> {tmp_path}/out$", out, re.MULTILINE)
    assert "1 repeated rows were merged" in out and "not learned" not in out
    assert re.search(r"gate threshold.*table 16.*\n.*Generality.*\n.*%.*%", out)
    assert MeGModel.from_pretrained(tmp_path / "out").hparams.layers == [1]

    status, out, err = run("ask", tmp_path / "out", FACTS[0]["prompt"], "--base")
    assert (status, err) == (0, "")
    answer, why, unedited = out.split("\n  [")  # the unedited model may say anything
    assert answer == FACTS[0]["target_new"]
    assert re.search(r"^an edit: 'The capital of Atlantis is', score 1\.000 ≥ -?[\d.]+\]$", why)
    assert unedited.startswith("unedited: ") and FACTS[0]["target_new"] not in unedited


def test_what_is_no_edit_is_answered_as_before(
    edit: Command, run: Command, facts: Path, tmp_path: Path
) -> None:
    assert edit(facts, "--set", "gate_threshold=0.9999")[0] == 0
    status, out, _ = run("ask", tmp_path / "out", "My cat sat on", "--base")
    answer, why, unedited = out.split("\n  [")
    assert status == 0 and unedited == f"unedited: {answer}]\n"
    assert why.startswith("not an edit (nearest: 'The ") and why.endswith(" < 1.000]")


def test_an_interactive_session_answers_one_question_after_another(
    edit: Command, run: Command, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert edit(facts)[0] == 0
    lines = iter([FACTS[0]["prompt"], FACTS[1]["prompt"], ""])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    status, out, err = run("ask", tmp_path / "out")
    assert status == 0 and "2 edits" in err
    assert out.splitlines()[::2] == [FACTS[0]["target_new"], FACTS[1]["target_new"]]


def test_a_saved_base_needs_no_model_elsewhere(
    edit: Command, run: Command, models: Path, facts: Path, tmp_path: Path
) -> None:
    assert edit(facts, "--save-base")[0] == 0
    config = json.loads((tmp_path / "out" / "meg_config.json").read_text("utf-8"))
    config["base"]["name"] = "/nowhere"
    config["checksum"] = checksum(config)
    (tmp_path / "out" / "meg_config.json").write_text(json.dumps(config), "utf-8")
    assert run("ask", tmp_path / "out", FACTS[0]["prompt"])[1].startswith("Erewhon\n")


def test_a_rerun_resumes_and_gives_the_same(
    edit: Command, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for module, name in (
        (meg_editor.collection.shards, "collect"),
        (meg_editor.fitting.encoder_stage, "tune_encoder"),
    ):
        original = getattr(module, name)

        def counted(*arguments: Any, _name: str = name, _do: Any = original, **more: Any) -> Any:
            calls.append(_name)
            return _do(*arguments, **more)

        monkeypatch.setattr(module, name, counted)
    with monkeypatch.context() as patched:
        patched.setattr(TextEncoder, "save_pretrained", _interrupt)
        assert edit(facts)[0] == 130
    assert calls == ["tune_encoder", "collect"]
    other = write(tmp_path / "other.json", FACTS[:1])  # the encoder does not depend on the edits
    with monkeypatch.context() as patched:
        patched.setattr(TextEncoder, "save_pretrained", _interrupt)
        assert edit(other)[0] == 130
    assert calls == ["tune_encoder", "collect", "collect"]
    status, out, _ = edit(facts)
    assert status == 0 and "(resumed: encoder, collection, gate, generator)" in out
    assert calls == ["tune_encoder", "collect", "collect"]
    resumed = undated(tree(tmp_path / "out"))
    assert not (tmp_path / "out.stages").exists()  # they are of no use any more

    assert edit(facts)[0] == 0
    # The encoder depends on no edit, and is kept for every later one.
    assert calls == ["tune_encoder", "collect", "collect", "collect"]
    assert undated(tree(tmp_path / "out")) == resumed


def test_settings_come_from_a_file_then_set_then_their_own_options(
    run: Command, models: Path, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meg.yaml").write_text(
        "encoder_name: from-file\nseed: 1\ncollection_steps: 7\nlayers: [0]\n", "utf-8"
    )
    seen: list[Any] = []

    def stop(hparams: Any) -> None:
        seen.append(hparams)
        raise ValueError("enough")

    monkeypatch.setattr("meg_editor.lm.loading.load_model", stop)
    monkeypatch.setattr("meg_editor.cli.hparams.check_source", lambda name, kind="model": None)
    given = ("edit", "--edits", facts, "--out", tmp_path / "out", "--model", "some/llm")
    more = ("--set", "seed=2", "--set", "collection_lr=1e-2", "--seed", 3, "--layer", 2)
    refused(run(*given, "--hparams", tmp_path / "meg", *more), "enough")
    refused(run(*given), "enough")
    refused(run(*given[:-2]), "enough")
    ours, theirs, reference = seen
    assert (ours.model_name, ours.encoder_name) == ("some/llm", "from-file")
    assert (ours.seed, ours.layers, ours.collection_steps) == (3, [2], 7)
    assert ours.collection_lr == 0.01
    assert (theirs.model_name, theirs.encoder_name) == (
        "some/llm",
        "sentence-transformers/all-MiniLM-L6-v2",
    )
    assert reference.model_name == "meg_editor:llama-reference"


def test_help_imports_neither_torch_nor_transformers() -> None:
    code = """
import sys
import meg_editor.cli.main, meg_editor.cli.settings
for command in meg_editor.cli.parser.build_parser()._subparsers._group_actions[0].choices.values():
    command.format_help()
print(sorted({"torch", "transformers", "diffusers", "sklearn", "numpy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_text_of_a_string_setting_is_taken_as_it_is() -> None:
    hints = get_type_hints(MeGHyperParams)
    changes = {
        "prompt_template=Q: {}\nA:": "Q: {}\nA:",  # YAML would make a blank of the newline
        "prompt_template='{}' = ": "'{}' = ",
        "model_name=1": "1",
        "mlp_module_tmp=null": None,
        "mlp_module_tmp=model.layers.{}.mlp": "model.layers.{}.mlp",
        "device=1": 1,  # EasyEdit's spelling of cuda:1
        "device=cpu": "cpu",
        "layers=[3]": [3],
        "collection_lr=1e-2": "1e-2",  # YAML 1.1 has no such number; the settings take it
        "gate_threshold=null": None,
        "generator_anchored=true": True,
        "nonsense=[a": None,
    }
    for change, value in list(changes.items())[:-1]:
        assert parse_changes([change], hints) == {change.partition("=")[0]: value}
    assert MeGHyperParams.from_dict(parse_changes(["device=1"], hints)).device == "cuda:1"
    with pytest.raises(ValueError, match="--set nonsense"):
        parse_changes(["nonsense=[a"], hints)


def test_run_time_choices_are_set_like_settings(
    edit: Command, run: Command, facts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def stop(*_: Any, **options: Any) -> None:
        seen.update(options)
        raise ValueError("enough")

    monkeypatch.setattr("meg_editor.fitting.pipeline.fit", stop)
    refused(edit(facts, "--set", "neuron_cache=7", "--set", "seed=1"), "enough")
    assert seen["runtime"] == RuntimeConfig(neuron_cache=7)
    refused(edit(facts, "--set", "collection_memory=2"), "collection_memory", "less than 1")
    refused(run("layers", "--set", "neuron_cache=7"), "neuron_cache", "only `meg-editor edit`")


def test_newlines_of_a_prompt_template_reach_the_model(
    edit: Command, facts: Path, tmp_path: Path
) -> None:
    template = "Instruct:Answer briefly. {}\nOutput:"
    assert edit(facts, "--set", f"prompt_template={template}")[0] == 0
    assert MeGModel.from_pretrained(tmp_path / "out").hparams.prompt_template == template


def test_every_setting_is_listed_with_its_default_and_help(run: Command) -> None:
    status, out, err = run("settings")
    assert (status, err) == (0, "")
    for entry in (*dataclasses.fields(MeGHyperParams), *dataclasses.fields(RuntimeConfig)):
        assert f"\n  {entry.name} = " in out
        assert entry.metadata["help"].split()[0] in out
    assert "Text encoder (stage 1)" in out and "(verified | similarity | familiarity)" in out
    assert "sampling_steps = 50" in run("settings", "--preset", "paper")[1]
    _, out, _ = run("settings", "encoder_lr", "schedule")
    assert "encoder_lr" in out and "collection_schedule" in out and "layers" not in out
    refused(run("settings", "colour"), "'colour'")


def test_messages_are_for_those_who_ask(
    edit: Command, run: Command, facts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert edit(facts)[0] == 0
    assert not [record for record in caplog.records if record.name.startswith("meg_editor")]
    assert edit(facts, "--verbose")[0] == 0
    assert any("2 facts from" in record.getMessage() for record in caplog.records)
    logging.getLogger("meg_editor").setLevel(logging.NOTSET)


def test_a_traceback_is_shown_on_demand(run: Command, tmp_path: Path) -> None:
    for arguments in (("--debug", "ask"), ("ask", "--debug")):
        status, _, err = run(*arguments, tmp_path / "none", "What?")
        assert status == 2 and "Traceback" in err and "meg-editor: error: " in err
    logging.getLogger("meg_editor").setLevel(logging.NOTSET)


def test_an_error_nobody_foresaw_is_one_line_too(
    edit: Command, facts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> None:
        raise RuntimeError("no such\nkernel")

    monkeypatch.setattr("meg_editor.lm.loading.load_model", fail)
    status, _, err = edit(facts)
    assert status == 1
    assert err == "meg-editor: unexpected RuntimeError: no such kernel; --debug shows where\n"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
        ImportError("libtorch.so: cannot allocate memory"),
        RuntimeError("could not create a primitive"),  # oneDNN's
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_is_said_in_one_line(
    edit: Command, facts: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(_: Any) -> None:
        raise error

    monkeypatch.setattr("meg_editor.lm.loading.load_model", fail)
    status, _, err = edit(facts)
    assert status == 2
    assert err.startswith("meg-editor: error: out of memory; close") and err.count("\n") == 1


@pytest.mark.parametrize("text", ["\x1b[2J", "x" * 5000, "a\nb\u202e", "x" * 10**6])
def test_messages_are_one_bounded_line(
    run: Command, edit: Command, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    for result in (edit(Path(text)), run("ask", text, "What?"), run("settings", text)):
        status, out, err = result
        assert (status, out) == (2, "") and err.count("\n") == 1 and len(err) < 1000
        assert err.strip().isprintable()
    for arguments in (("edit", "--seed", text), ("ask", "x", "y", f"--{text}"), (text,)):
        with pytest.raises(SystemExit):
            run(*arguments)
        last = capsys.readouterr().err.split("\n")[-2]
        assert "error: " in last and len(last) < 1000 and last.isprintable()


def test_a_method_whose_module_is_broken_is_bad_input(run: Command, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def apply_to_model(:")
    (tmp_path / "failing.py").write_text("1 / 0")
    for name, problem in (("broken.py", "SyntaxError"), ("failing.py", "ZeroDivisionError")):
        where = tmp_path / name
        options = ("--data", "reference", "--out", tmp_path / "out", "--methods", f"mine={where}")
        refused(run("benchmark", *options), f"{where} cannot be imported: {problem}")


@pytest.mark.parametrize(
    "arguments",
    [
        ("benchmark", "--data", "reference", "--out", "x", "--seeds", "0"),
        ("benchmark", "--data", "reference", "--out", "x", "--edits", "0"),
        ("ask", "x", "y", "--max-new-tokens", "0"),
        ("ask", "x", "y", "--max-new-tokens", "9" * 5000),
        ("edit", "--edits", "x", "--out", "y", "--seed", "-1"),
        ("serve", "x", "--port", "70000"),
        ("edit", "--edits", "bad\udcff.json", "--out", "y"),
        ("ask", "x", "What\ud800?"),
        ("edit", "--edits", "x", "--out", "y", "--set=--"),
        ("edit", "--edits=--", "--out", "y"),
    ],
    ids=lambda arguments: " ".join(arguments)[:40].encode("ascii", "replace").decode(),
)
def test_impossible_arguments_are_refused(
    run: Command, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    last = capsys.readouterr().err.splitlines()[-1]
    assert caught.value.code == 2 and "error: " in last and len(last) < 300


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_a_signal_cleans_up_and_tells_by_its_status(
    edit: Command,
    facts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    status: int,
) -> None:
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    before = {path.name for path in tmp_path.iterdir()}

    def interrupted(*_: Any) -> None:
        signal.raise_signal(number)
        raise AssertionError("the signal was not noticed")

    monkeypatch.setattr(TextEncoder, "save_pretrained", interrupted)
    if number == signal.SIGTERM:
        with pytest.raises(SystemExit) as caught:
            edit(facts)
        assert caught.value.code == status
    else:
        assert edit(facts)[0] == status
    left = {path.name for path in tmp_path.iterdir()} - before
    assert left == {"out.stages"}, "nothing half-written stays beside the finished stages"
    assert handlers == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]


# ------------------------------------------------------------------------------ bad input


def test_saved_edits_are_no_model_to_edit(
    edit: Command, run: Command, models: Path, facts: Path, tmp_path: Path
) -> None:
    assert edit(facts)[0] == 0
    given = ("edit", "--edits", facts, "--out", tmp_path / "more", "--model", tmp_path / "out")
    add = f"`meg-editor add {tmp_path / 'out'} --edits FILE`"  # edits.jsonl lacks later changes
    words = ("saved edits, not a model", str(models / "llm"), add)
    refused(run(*given), *words)
    assert not (tmp_path / "more").exists()


def test_a_missing_file_of_edits_is_named(edit: Command, tmp_path: Path) -> None:
    refused(edit(tmp_path / "none.json"), f"{tmp_path}/none.json", "no such file")
    assert not (tmp_path / "out").exists()


def test_missing_facts_for_tuning_are_named(edit: Command, facts: Path, tmp_path: Path) -> None:
    for option in ("--pseudo", "--calibration"):
        refused(edit(facts, option, tmp_path / "none.csv"), f"{tmp_path}/none.csv", "no such file")


def test_rows_which_conflict_are_both_named(edit: Command, tmp_path: Path) -> None:
    file = write(tmp_path / "facts.csv", [*FACTS, {**FACTS[0], "target_new": "Oz"}])
    words = ("facts.csv, line 4", "facts.csv, line 2", "'Oz'", "'Erewhon'")
    refused(edit(file), *words)


def test_bad_rows_are_named(edit: Command, tmp_path: Path) -> None:
    file = write(tmp_path / "facts.jsonl", [FACTS[0], {**FACTS[1], "target_new": None}])
    refused(edit(file), "facts.jsonl, line 2", "'target_new' is null")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("colection_lr=1", ["'colection_lr'", "did you mean 'collection_lr'"]),
        ("collection_lr=fast", ["collection_lr", "'fast'"]),
        ("collection_lr=-1", ["collection_lr", "at least 0"]),
        ("collection_lr", ["NAME=VALUE", "'collection_lr'"]),
        ("layers=[1", ["--set layers", "'[1'"]),
        ("gate=none", ["gate", "familiarity"]),
        ("neuron_cach=3", ["'neuron_cach'", "did you mean 'neuron_cache'", "meg-editor settings"]),
        ("collection_retries=3", ["'collection_retries'", "is gone"]),
    ],
)
def test_bad_settings_are_refused(
    edit: Command, facts: Path, setting: str, words: list[str]
) -> None:
    refused(edit(facts, "--set", setting), *words)


def test_bad_files_of_settings_are_refused(edit: Command, facts: Path, tmp_path: Path) -> None:
    refused(edit(facts, "--hparams", tmp_path / "none"), "none.yaml")
    (tmp_path / "bad.yaml").write_text("seed: [1\n", "utf-8")
    refused(edit(facts, "--hparams", tmp_path / "bad.yaml"), "bad.yaml", "not YAML")


def test_a_layer_which_does_not_exist_is_refused(edit: Command, facts: Path) -> None:
    refused(edit(facts, "--layer", 3), "layer 3 does not exist", "3 decoder layers, 0 to 2")


def test_a_model_which_does_not_exist_is_refused(
    edit: Command, facts: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    refused(edit(facts, "--model", tmp_path / "empty"), str(tmp_path / "empty"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_which_is_not_there_is_refused(edit: Command, run: Command, facts: Path) -> None:
    refused(edit(facts, "--device", "cuda"), "'cuda'", "0 CUDA devices", "device: cpu")
    refused(run("ask", "anywhere", "What?", "--device", "cuda:1"), "'cuda:1'", "0 CUDA devices")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:-1"])
def test_devices_of_other_names_are_refused(edit: Command, facts: Path, device: str) -> None:
    refused(edit(facts, "--device", device), "device", repr(device))


def test_a_foreign_or_impossible_folder_is_refused_before_the_work(
    edit: Command, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meg_editor.lm.loading.load_model", _never)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    refused(edit(facts, "--out", tmp_path / "mine"), f"{tmp_path}/mine", "thesis.txt")
    refused(edit(facts, "--out", facts), str(facts), "not overwritten")
    refused(edit(facts, "--out", facts / "out"), f"{facts}/out", "cannot save the edits")
    monkeypatch.chdir(tmp_path / "mine")
    refused(edit(facts, "--out", "."), f"{tmp_path}/mine", "thesis.txt")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert edit(facts, "--out", ".")[2].startswith("meg-editor: unexpected AssertionError")
    refused(edit(facts, "--out", "/"), "not overwritten")
    assert tree(tmp_path / "mine") == {"thesis.txt": b"mine"}
    assert not list(tmp_path.glob("*.stages")) and not tree(tmp_path / "empty")


def _never(*_: Any) -> None:
    raise AssertionError("this comes too late")


def test_ask_wants_a_folder_of_edits_and_a_question(run: Command, tmp_path: Path) -> None:
    refused(run("ask", tmp_path, "What?"), str(tmp_path), "meg_config.json")
    refused(run("ask", tmp_path / "none", "What?"), f"{tmp_path}/none", "no such folder")
    for question in ("", " \n"):
        refused(run("ask", tmp_path, question), "the question is empty")


@pytest.mark.parametrize("count", [0, -5, 10**6])
def test_the_demo_tells_how_many_edits_it_can_make(
    run: Command, tmp_path: Path, count: int
) -> None:
    result = run("demo", f"--edits={count}", "--out", tmp_path / "demo", "--device", "cpu")
    refused(result, "1 to ", f"got {count}")


def test_no_command_is_explained(run: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run()
    assert (
        caught.value.code == 2
        and "demo,edit,ask,serve,report,prepare,layers" in capsys.readouterr().err
    )


# --------------------------------------------------------------------------------- Ctrl-C


def test_an_interrupt_keeps_finished_stages_and_nothing_half_written(
    edit: Command, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name for path in tmp_path.iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr(meg_editor.fitting.gate_stage, "calibrate_on_held_out", _interrupt)
        status, out, err = edit(facts)
    assert (status, out) == (130, "")
    assert "interrupted" in err and "the same command resumes" in err
    assert {path.name for path in tmp_path.iterdir()} - before == {"out.stages"}
    retained = sorted(path.name for path in (tmp_path / "out.stages").iterdir())
    assert [name.partition("-")[0] for name in retained] == ["collection", "encoder"]
    assert all(name.endswith(".safetensors") for name in retained)

    status, out, _ = edit(facts)
    assert status == 0 and "(resumed: encoder, collection)" in out


def test_an_interrupt_while_saving_keeps_the_edits_saved_before(
    edit: Command, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert edit(facts)[0] == 0
    before = tree(tmp_path / "out")
    other = write(tmp_path / "other.json", FACTS[:1])
    names = {path.name for path in tmp_path.iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr(TextEncoder, "save_pretrained", _interrupt)
        assert edit(other)[0] == 130
    assert tree(tmp_path / "out") == before
    # What was finished is kept beside them, for the same command.
    assert {path.name for path in tmp_path.iterdir()} == names | {"out.stages"}


def _interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt
