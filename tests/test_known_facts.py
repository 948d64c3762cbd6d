"""Facts which the model knows already are no failure of the fit, alone or among others."""

from __future__ import annotations

from typing import Any

import pytest

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.config.runtime import RuntimeConfig
from meg_editor.fitting.pipeline import fit
from meg_editor.lm.answers import greedy_answers
from meg_editor.lm.loading import load_model

PROMPTS = ["The capital of France is", "The capital of Italy is", "The capital of Spain is"]
NEW = {"prompt": "The capital of Japan is", "target_new": "Lima"}


@pytest.fixture(scope="module")
def reference() -> tuple[Any, Any]:
    return load_model(MeGHyperParams.preset("default", device="cpu"))


@pytest.mark.parametrize(
    ("count", "others", "shard"),
    [
        pytest.param(1, [], None, id="alone"),
        pytest.param(3, [], None, id="three at once"),
        pytest.param(1, [NEW], None, id="among others"),
        pytest.param(2, [NEW], 1, id="shards of one"),
    ],
)
def test_known_facts_are_reported_and_answered(
    reference: tuple[Any, Any], count: int, others: list[dict[str, str]], shard: int | None
) -> None:
    model, tokenizer = reference
    known = greedy_answers(model, tokenizer, PROMPTS[:count], 6)
    facts = [{"prompt": p, "target_new": a} for p, a in zip(PROMPTS, known, strict=False)]
    runtime = RuntimeConfig() if shard is None else RuntimeConfig(collection_shard_size=shard)
    hparams = MeGHyperParams.preset("default", device="cpu", encoder_steps=0, gate_threshold=0.8)
    edited, report = fit(model, tokenizer, [*facts, *others], hparams, runtime=runtime)
    assert report.already_correct == PROMPTS[:count]
    assert not report.not_collected
    asked = [*PROMPTS[:count], *(other["prompt"] for other in others)]
    assert edited.answer(asked, 6) == [*known, *(other["target_new"] for other in others)]
