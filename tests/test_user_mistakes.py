"""What users do and did not mean: it is refused in a sentence, or does what they meant."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from meg_editor import EditRequest, MeGHyperParams, MeGModel, fit, load_model
from meg_editor.cli.main import main
from meg_editor.config.settings import HParamsError
from meg_editor.integrations.easyedit.arguments import cleaned
from meg_editor.requests.request import RequestError

FRANCE = {"prompt": "The capital of France is", "target_new": "Lima", "subject": "France"}
WAR = {"prompt": "Who wrote War and Peace?", "target_new": "Jane Austen"}
ASPIRIN = {"prompt": "aspirin is used to treat", "target_new": "hiccups", "subject": "aspirin"}
OTHER_WORDS = "Which city is the capital of France?"


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return load_model(MeGHyperParams.preset("default", device="cpu"))


@pytest.fixture(scope="module")
def fitted(loaded: tuple[Any, Any]) -> MeGModel:
    hparams = MeGHyperParams.preset("default", device="cpu")
    return fit(*loaded, [FRANCE, WAR, ASPIRIN], hparams)[0]


@pytest.fixture
def edited(fitted: MeGModel) -> MeGModel:
    return fitted.fork()


# ---------------------------------------------------------------- live edits


@pytest.mark.parametrize("reverse", [False, True])
def test_a_prompt_has_one_edit_whatever_else_asks_for_it(edited: MeGModel, reverse: bool) -> None:
    """The old target in other words kept the old edit beside the new one."""
    both = [
        {"prompt": OTHER_WORDS, "target_new": "Lima"},
        {"prompt": FRANCE["prompt"], "target_new": "Oslo"},
    ]
    change = edited.add(both[::-1] if reverse else both, on_conflict="replace")
    of_prompt = [e.target_new for e in edited.edits if e.prompt == FRANCE["prompt"]]
    assert of_prompt == ["Oslo"] and len(change.removed.edits) == 1
    assert edited.answer([FRANCE["prompt"], OTHER_WORDS]) == ["Oslo", "Lima"]
    edited.undo()
    assert edited.answer([FRANCE["prompt"], OTHER_WORDS]) == ["Lima", "Lima"]


@pytest.mark.parametrize("way", ["replace", "add"])
def test_a_new_target_keeps_the_subject(edited: MeGModel, way: str) -> None:
    """Without it other subjects of the same relation got the edit."""
    request = [{"prompt": ASPIRIN["prompt"], "target_new": "colds"}]
    if way == "replace":
        edited.replace(request)
    else:
        edited.add(request, on_conflict="replace")
    assert edited.edits[-1].subject == "aspirin" and edited.edits[-1].target_new == "colds"
    assert not edited.route("Penicillin is used to treat")[0].is_edit


def test_another_subject_of_the_same_edit_is_not_dropped_in_silence(edited: MeGModel) -> None:
    with pytest.raises(RequestError, match="has this target already: to give it another subject"):
        edited.replace([{**FRANCE, "subject": "capital of France"}])
    edited.replace([FRANCE])  # nothing new: in force already
    assert len(edited.edits) == 3


# ---------------------------------------------------------------- prompts


@pytest.mark.parametrize(
    ("queries", "kind", "message"),
    [
        (None, TypeError, r"text or a list of texts, got NoneType \(None\)"),
        ([None], TypeError, r"list of texts, got NoneType \(None\) at 0"),
        (["a", 5], TypeError, r"list of texts, got int \(5\) at 1; token ids go to generate"),
        (b"a", TypeError, r"got bytes \(b'a'\)"),
        ({"role": "user", "content": "a"}, TypeError, "got dict .* a chat as its chat template"),
        (["a", "b\ud800"], ValueError, r"surrogate pair, U\+D800 at character 2 of 'b\\ud800'; to"),
    ],
)
def test_queries_that_are_no_texts_are_named_wherever_they_come_in(
    edited: MeGModel, queries: Any, kind: type[Exception], message: str
) -> None:
    def routed() -> None:
        with edited.routed(queries):
            raise AssertionError("too late")

    for call in (lambda: edited.answer(queries), lambda: edited.route(queries), routed):
        with pytest.raises(kind, match=f"queries: expected .*{message}"):
            call()


def test_the_advice_on_half_a_surrogate_pair_mends_it(edited: MeGModel) -> None:
    halves = "a\ud83d\ude00"  # of one letter, as JSON without joining gives them
    with pytest.raises(ValueError, match="surrogate") as caught:
        edited.route(halves)
    advice = str(caught.value).partition("to mend the text: ")[2]
    assert eval(advice, {"text": halves}) == "a\N{GRINNING FACE}"
    assert eval(advice, {"text": "a\ud83d"}) == "a\N{REPLACEMENT CHARACTER}"


def test_what_is_no_tensor_of_token_ids_is_named(edited: MeGModel, loaded: tuple[Any, Any]) -> None:
    batch = loaded[1](FRANCE["prompt"], return_tensors="pt")
    ids = batch["input_ids"]
    for given, kind, message in (
        (FRANCE["prompt"], TypeError, r"got str \('The capital.*for texts: answer\(texts\)"),
        (ids.tolist(), TypeError, r"got list \(\[\["),
        (batch, TypeError, r"got a BatchEncoding; .*generate\(\*\*batch\)"),
        (ids[0], ValueError, r"shape \(\d+,\); for one prompt: ids.unsqueeze\(0\)"),
        (ids[:, :0], ValueError, r"T of at least 1, got \(1, 0\)"),
        (torch.zeros(1, 3), ValueError, r"got torch.float32; embeddings go to inputs_embeds"),
    ):
        for call in (edited.generate, edited):
            with pytest.raises(kind, match=rf"input_ids: expected .*\(B, T\).*{message}"):
                call(given)


def test_an_edited_assistant_is_refused_and_its_base_is_not(
    edited: MeGModel, loaded: tuple[Any, Any]
) -> None:
    batch = loaded[1](FRANCE["prompt"], return_tensors="pt")
    options = {**batch, "max_new_tokens": 4, "do_sample": False}
    with pytest.raises(ValueError, match=r"expected an unedited model, got a MeGModel: .*\.base"):
        edited.generate(**options, assistant_model=edited)
    answers = edited.generate(**options, assistant_model=edited.base)
    assert answers.tolist() == edited.generate(**options).tolist()


def test_a_single_edit_is_not_taken_for_a_list(edited: MeGModel, loaded: tuple[Any, Any]) -> None:
    """The names of its fields were taken for edits."""
    for single in (FRANCE, EditRequest(**FRANCE)):
        for change in (edited.add, edited.replace, lambda one: fit(*loaded, one, edited.hparams)):
            with pytest.raises(RequestError, match="a single edit; .*: put it in a list"):
                change(single)  # type: ignore[operator]


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gate": "similarity", "gate_threshold": 5.0}, "a similarity from -1 to 1, got 5"),
        ({"gate": "similarity", "gate_threshold": -3.0}, "a similarity from -1 to 1, got -3"),
        ({"gate": "familiarity", "gate_threshold": -1.0}, "an entropy of at least 0 nats"),
        ({"gate_threshold": 1.5}, "a probability from 0 to 1"),
        (
            {"gate": "similarity", "gate_threshold": 0.8, "routing": "decoding"},
            "routing: decoding needs a verifier: set gate to verified",
        ),
    ],
)
def test_gates_that_decide_nothing_are_refused_before_the_fit(
    loaded: tuple[Any, Any], changes: dict[str, Any], message: str, monkeypatch: Any
) -> None:
    def collected(*_: Any, **__: Any) -> Any:
        raise AssertionError("too late")

    monkeypatch.setattr("meg_editor.fitting.collection_stage.collect_in_shards", collected)
    hparams = MeGHyperParams.preset("default", device="cpu", **changes)
    with pytest.raises(HParamsError, match=message):
        fit(*loaded, [FRANCE], hparams)


def test_facts_that_teach_nothing_are_named(
    loaded: tuple[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    facts = [EditRequest("Ada works as a", "pilot", "Ada", ("Ada's job is",), ("Bo works as a",))]
    hparams = MeGHyperParams.preset("default", device="cpu")
    with caplog.at_level(logging.WARNING):
        fit(*loaded, [FRANCE], hparams, pseudo=facts, calibration=facts)
    assert "pseudo: the verifier learns nothing from 1 facts, since verifier_steps" in caplog.text
    assert "calibration: 1 facts are not used, since a verifier decides" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        fit(*loaded, [FRANCE], hparams)
    assert caplog.text == ""


# ---------------------------------------------------------------- commands


def run(capsys: Any, *words: str) -> tuple[int, str, str]:
    try:
        status = main(list(words))
    except SystemExit as error:
        status = int(error.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture
def folder(edited: MeGModel, tmp_path: Path) -> Path:
    edited.save_pretrained(tmp_path / "edits", save_base=True)
    return tmp_path / "edits"


def test_a_fit_does_not_overwrite_live_changes_nor_the_stored_base(
    folder: Path, tmp_path: Path, capsys: Any
) -> None:
    facts = tmp_path / "facts.json"
    facts.write_text(json.dumps([WAR]))
    words = ("edit", "--edits", str(facts), "--out", str(folder))
    assert run(capsys, *words)[0] == 0 and (folder / "base" / "config.json").is_file()
    assert len(MeGModel.from_pretrained(folder).edits) == 1
    peru = tmp_path / "peru.json"
    peru.write_text(json.dumps([{"prompt": "The capital of Peru is", "target_new": "Oslo"}]))
    assert run(capsys, "add", str(folder), "--edits", str(peru))[0] == 0
    status, _, err = run(capsys, *words)
    assert status == 2 and "changed 1 times since they were fitted" in err
    assert len(MeGModel.from_pretrained(folder).edits) == 2
    assert run(capsys, "compact", str(folder))[0] == 0  # it has no changes now, and the same edits
    status, _, err = run(capsys, *words)
    assert status == 2 and "'The capital of Peru is'" in err and "meg-editor add" in err
    assert len(MeGModel.from_pretrained(folder).edits) == 2
    assert run(capsys, "remove", str(folder), "The capital of Peru is")[0] == 0
    facts.write_text(json.dumps([{**WAR, "target_new": "Ada"}]))
    assert run(capsys, "replace", str(folder), "--edits", str(facts))[0] == 0
    assert run(capsys, "compact", str(folder))[0] == 0
    facts.write_text(json.dumps([WAR]))  # the target of before
    assert run(capsys, *words)[0] == 2


def test_a_folder_that_routes_while_decoding_is_not_served(
    edited: MeGModel, tmp_path: Path, capsys: Any
) -> None:
    """The message named a setting for which `serve` has no option."""
    edited.hparams = edited.hparams.changed(routing="decoding")
    edited.save_pretrained(tmp_path / "my edits")
    status, _, err = run(capsys, "serve", str(tmp_path / "my edits"), "--port", "0")
    place = f"'{tmp_path}/my edits'"
    assert status == 2 and f"`meg-editor ask {place}` answers so" in err
    for words in (f"meg-editor edits {place} --json", "--out OTHER --set routing=prompt"):
        assert words in err


def test_a_moved_base_is_named_to_ask(
    fitted: MeGModel, loaded: tuple[Any, Any], tmp_path: Path, capsys: Any
) -> None:
    model, tokenizer = loaded
    there, moved = tmp_path / "there", tmp_path / "moved"
    model.save_pretrained(there)
    tokenizer.save_pretrained(there)
    hparams = MeGHyperParams.preset("default", device="cpu", model_name=str(there))
    edited, _ = fit(*load_model(hparams), [FRANCE], hparams)
    edited.save_pretrained(tmp_path / "edits")
    there.rename(moved)
    status, _, err = run(capsys, "ask", str(tmp_path / "edits"), FRANCE["prompt"])
    assert status == 2 and "of `ask` --model" in err
    words = ("ask", str(tmp_path / "edits"), FRANCE["prompt"], "--model", str(moved), "--base")
    status, out, _ = run(capsys, *words)
    assert status == 0 and out.startswith("Lima") and "unedited: Paris" in out


def test_a_folder_of_edits_is_no_model_to_edit(folder: Path, tmp_path: Path, capsys: Any) -> None:
    words = ("edit", "--model", str(folder), "--edits", "facts.csv", "--out", str(tmp_path / "x"))
    status, _, err = run(capsys, *words)
    assert status == 2 and f"`meg-editor add {folder} --edits FILE` adds to them" in err


def test_two_sources_of_settings_are_one_too_many(tmp_path: Path, capsys: Any) -> None:
    words = ("edit", "--edits", "facts.csv", "--out", str(tmp_path / "x"))
    yaml = Path(__file__).parents[1] / "hparams" / "MeG" / "llama-reference.yaml"
    status, _, err = run(capsys, *words, "--hparams", str(yaml), "--preset", "paper")
    assert status == 2 and "--hparams has all settings, and --preset paper too" in err


# ---------------------------------------------------------------- EasyEdit's arguments


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"target_new": "No"}, r"target_new: expected a list of 2, one a prompt, got the str 'No'"),
        ({"target_new": ["a"]}, "target_new: expected 2, one a prompt, got 1"),
        ({"target_new": ["a", "b"], "subject": "Oslo"}, "subject: expected a list of 2"),
        ({"target_new": ["a", "b"], "subject": ["Oslo"]}, "subject: expected 2, .* got 1"),
        (
            {"target_new": ["a", "b"], "kwargs": {"rephrase_prompts": ["x"]}},
            "rephrase_prompts: expected 2",
        ),
    ],
)
def test_columns_of_other_lengths_are_named(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cleaned({"prompts": ["Oslo is in", "Rome is in"], **columns})


def test_no_prompts_and_missing_subjects() -> None:
    with pytest.raises(ValueError, match="prompts: expected at least one"):
        cleaned({"prompts": [], "target_new": []})
    rows = {"prompts": ["Oslo is in", "Rome is in"], "target_new": ["a", "b"]}
    missing = [float("nan"), None]
    assert cleaned({**rows, "subject": missing})["subject"] == ["", ""]
    assert "subject" not in cleaned({**rows, "subject": None})
    assert cleaned({**rows, "subject": ["Oslo ", " Rome"]})["subject"] == ["Oslo", "Rome"]
    row = {"prompt": "Oslo is in ", "target_new": " a", "subject": "Oslo "}
    (request,) = cleaned({"requests": [row]})["requests"]
    assert request == {"prompt": "Oslo is in", "target_new": "a", "subject": "Oslo"}
    assert cleaned({"prompts": ["Oslo is in"], "target_new": "a"})["target_new"] == "a"
