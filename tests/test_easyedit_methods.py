"""EasyEdit's own methods in the benchmark: the same settings give the same answers as ours."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meg_editor import MeGHyperParams, load_model
from meg_editor.baselines.registry import BASELINES
from meg_editor.benchmark import Method, edited
from meg_editor.data.cases import EvaluationCase
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import edit_cases
from meg_editor.integrations.easyedit.methods import NAMES, easyedit_method
from meg_editor.lm.answers import greedy_answers
from meg_editor.lm.fingerprint import fingerprint
from meg_editor.runtime.artifacts import ArtifactStore

CHECKOUT = os.environ.get("MEG_EDITOR_EASYEDIT")
VALUES = {"layers": [0], "v_lr": 5.0, "v_num_grad_steps": 6, "context_prefixes": 1}
SETTINGS: dict[str, dict[str, Any]] = {
    "ft": {"layers": [2], "lr": 2e-3, "num_steps": 4, "train_batch_size": 2, "shuffle": False},
    "memit": {**VALUES, "mom2_update_weight": 20},
    "pmet": {**VALUES, "layers": [0, 1], "mom2_update_weight": 20},
    "alphaedit": {**VALUES, "nullspace_threshold": 2.0, "L2": 10},
    "ultraedit": {"layers": [1, 2], "lr": 1e-3, "batch_size_once": 4},
}

Loaded = tuple[Any, Any, list[EvaluationCase]]


@pytest.fixture(scope="module")
def loaded() -> Iterator[Loaded]:
    if not CHECKOUT:
        pytest.skip("MEG_EDITOR_EASYEDIT names no checkout of EasyEdit")
    if CHECKOUT not in sys.path:
        sys.path.insert(0, CHECKOUT)
    model, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
    before = fingerprint(model)
    yield model, tokenizer, edit_cases(load_world(), 4, seed=2)
    assert fingerprint(model) == before


@pytest.mark.parametrize("name", NAMES)
def test_its_edits_are_as_ours_and_are_undone(
    name: str, loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only FT and UltraEdit may differ: they count padding and beginnings of text as targets."""
    monkeypatch.chdir(tmp_path)
    model, tokenizer, cases = loaded
    hparams = BASELINES[name].settings(**SETTINGS[name])
    prompts = [text for case in cases for text in (case.request.prompt, *case.paraphrases)]
    answers = {}
    side, flags = tokenizer.padding_side, [p.requires_grad for p in model.parameters()]
    for whose, apply in (("ours", BASELINES[name].apply), ("theirs", easyedit_method(name))):
        method = Method(whose, apply, hparams)
        options = {"texts": prompts, "store": ArtifactStore(), "seed": 0}
        with edited(method, model, tokenizer, cases, **options) as result:
            answers[whose] = greedy_answers(result, tokenizer, prompts, 12)
    before = greedy_answers(model, tokenizer, prompts, 12)
    assert answers["theirs"] != before
    if name not in ("ft", "ultraedit"):
        assert answers["theirs"] == answers["ours"]
    assert tokenizer.padding_side == side
    assert [p.requires_grad for p in model.parameters()] == flags
    assert not any(tmp_path.iterdir())


def test_what_is_not_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="easyedit:rome: expected one of ft, memit"):
        easyedit_method("rome")
