"""The shipped models and the main job, end to end on a few dozen edits."""

from __future__ import annotations

import json
import random
import runpy
from pathlib import Path
from typing import Any

import pytest

from meg_editor import MeGHyperParams, load_model
from meg_editor.cli.demo import Demo, run_demo
from meg_editor.cli.main import main
from meg_editor.data.world.facts import GROUPS, load_world
from meg_editor.data.world.requests import edit_cases
from meg_editor.evaluation import evaluate
from meg_editor.lm.answers import greedy_answers
from meg_editor.lm.reference import ASSETS


@pytest.fixture(scope="module")
def reference() -> Any:
    return load_model(MeGHyperParams.preset("default"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    out = tmp_path_factory.mktemp("demo")
    said: list[str] = []
    demo = run_demo(64, 3, out, ("default",), say=said.append)
    assert "about 2 minutes" in said[0]  # before anything is done
    assert {"report.json", "scores.png", "model"} <= {path.name for path in out.iterdir()}
    return demo


def test_weights_are_small_and_safetensors() -> None:
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jinja", ".md"}
    assert (ASSETS / "MODEL_CARD.md").is_file()


@pytest.mark.parametrize("group", GROUPS)
def test_the_model_knows_its_world(reference: Any, group: Any) -> None:
    """By real generation, on a random sample of all facts but the implied birth countries."""
    world = load_world()
    facts = [fact for fact in world.facts if fact.relation != "birth_country"]
    sample = random.Random(11).sample(facts, 250)
    prompts = [random.Random(i).choice(world.prompts(f, group)) for i, f in enumerate(sample)]
    answers = greedy_answers(*reference, prompts, 16)
    right = sum(a == fact.answer for a, fact in zip(answers, sample, strict=True))
    assert right >= 0.97 * len(sample)


def test_unedited_scores_are_what_they_must_be(reference: Any) -> None:
    scores = evaluate(*reference, edit_cases(load_world(), 40, 5)).scores
    assert scores.reliability.ag == scores.generality.ag == 0
    assert scores.locality.ag == 100 and scores.locality.tf > 99


def test_the_default_preset_edits_and_keeps_the_rest(demo: Demo) -> None:
    result = demo.report.methods["meg-default"].evaluation
    assert result.scores.reliability.ag >= 99
    assert result.scores.generality.ag >= 85
    assert result.scores.locality.ag >= 97
    assert result.oracle_generality is not None and result.oracle_generality >= 95


def test_the_report_and_the_saved_model_agree_with_the_run(demo: Demo, capsys: Any) -> None:
    folder = demo.models["default"].config.name_or_path  # the base model stays where it is
    assert "llama-reference" in folder
    entry = demo.report.to_dict()["methods"]["meg-default"]
    metrics = {"reliability", "generality", "locality", "score", "oracle_generality", "gate"}
    assert metrics | {"seconds", "seconds_per_edit"} <= set(entry)
    assert json.loads(json.dumps(demo.report.to_dict())) == demo.report.to_dict()
    assert "meg-default" in demo.report.table()


def test_ask_answers_from_the_folder_of_the_demo(
    demo: Demo, tmp_path_factory: pytest.TempPathFactory, capsys: Any
) -> None:
    folder = tmp_path_factory.mktemp("saved") / "model"
    demo.models["default"].save_pretrained(folder)
    case = demo.cases[0]
    assert main(["ask", str(folder), case.request.prompt, "--base"]) == 0
    output = capsys.readouterr().out
    assert output.splitlines()[0] == case.request.target_new
    assert "an edit" in output and f"unedited: {case.truth}" in output


def test_the_last_turn_of_a_chat_and_a_long_context_are_routed(demo: Demo) -> None:
    model = demo.models["default"]
    case = demo.cases[1]
    chat = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": case.request.prompt}], tokenize=False,
        add_generation_prompt=True,
    )  # fmt: skip
    others = [p.prompt for c in demo.cases[2:8] for p in c.locality.get("unrelated", ())]
    few_shot = "\n".join([*others, case.request.prompt])
    for prompt in (chat, few_shot):
        routing = model.route(prompt)
        assert routing.is_edit.tolist() == [True] and int(routing.nearest[0]) == 1


def test_the_quickstart_runs(capsys: Any) -> None:
    runpy.run_path(str(Path(__file__).parents[1] / "examples" / "quickstart.py"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[:3]] == ["Lima", "Austen", "Xx"]
    assert lines[3].split()[-1] == "Lima" and lines[4].split()[-1] == "euro"
