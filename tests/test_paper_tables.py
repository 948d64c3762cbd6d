"""The paper's tables: variants are what they say, verdicts follow the numbers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from meg_editor import MeGHyperParams, load_model
from meg_editor.benchmark import Benchmark
from meg_editor.benchmark.ablations import Ablation, Entry, Finding, ablations, variant
from meg_editor.benchmark.capacity import capacity
from meg_editor.benchmark.paper_tables import run_tables
from meg_editor.collection.collect import collect
from meg_editor.data.cases import Dataset, MultiHopCase, Probe
from meg_editor.data.splits import split_cases
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import edit_cases
from meg_editor.evaluation.metrics import Pair
from meg_editor.lm.answers import greedy_answers
from meg_editor.lm.neuron import NeuronSpec
from meg_editor.lm.neuron_hook import NeuronHook
from meg_editor.lm.reference import resolve_model_name
from meg_editor.requests.request import EditRequest
from meg_editor.routing.encoder import TextEncoder

HPARAMS = MeGHyperParams.preset(
    "default",
    device="cpu",
    generator="bank",
    gate_threshold=0.8,
    gate_state_weight=0.5,
    encoder_steps=30,
)
BOTH = [MeGHyperParams.preset(name) for name in ("default", "paper")]


def named(hparams: MeGHyperParams) -> dict[int, Ablation]:
    return {ablation.table: ablation for ablation in ablations(hparams)}


@pytest.mark.parametrize("hparams", BOTH, ids=lambda h: h.gate)
def test_variants_change_what_the_table_is_about_and_nothing_else(hparams: MeGHyperParams) -> None:
    without = {"gate", "gate_threshold"} if hparams.gate == "verified" else {"gate_threshold"}
    about = {
        4: {"encoder_tuning"},
        5: without,
        6: without,
        7: {"generator"},
        8: {"sampling_steps"},
        15: {"generator_zero_augmentation"},
        16: {"gate_threshold"},
    }
    tables = named(hparams)
    assert set(tables) == set(about)
    for table, ablation in tables.items():
        for changes in ablation.variants.values():
            assert set(changes) <= about[table]
            settings = variant(hparams, changes).hparams.to_dict()
            changed = {k for k, v in hparams.to_dict().items() if settings[k] != v}
            assert changed <= about[table]


def test_equal_settings_are_run_once_whatever_the_table() -> None:
    paper = MeGHyperParams.preset("paper")
    tables = named(paper)
    names = {
        variant(paper, tables[table].variants[name]).name
        for table, name in ((4, "infonce"), (5, "with gate"), (7, "dit"), (8, "50 steps"))
    }
    assert names == {"meg"}
    assert variant(paper, tables[7].variants["mlp"]).name == "meg generator=mlp"


def cell(**values: float) -> Any:
    """What a finding reads of a cell with these numbers, each ± 3."""
    names = {"r": "reliability", "g": "generality", "l": "locality"}
    pairs = {name: Pair(values.get(short, 0.0), 0.0) for short, name in names.items()}
    score = values.get("s", 0.0)
    intervals = {f"{name}.ag": (pair.ag - 3, pair.ag + 3) for name, pair in pairs.items()}
    intervals["score"] = (score - 3, score + 3)
    return SimpleNamespace(score=score, intervals=intervals, metric=pairs.__getitem__)


@pytest.mark.parametrize(
    ("higher", "lower", "at_most", "verdict"),
    [
        (80, 70, None, "as in the paper (+10.0 ± 4.2)"),
        (70, 80, None, "AGAINST the paper (-10.0 ± 4.2)"),
        (74, 70, None, "within chance here (+4.0 ± 4.2)"),
        (60, 70, 5.0, "as in the paper (-10.0 ± 4.2)"),
        (72, 70, 5.0, "within chance here (+2.0 ± 4.2)"),
        (80, 70, 5.0, "AGAINST the paper (+10.0 ± 4.2)"),
    ],
)
def test_verdicts_follow_the_numbers_and_their_intervals(
    higher: float, lower: float, at_most: float | None, verdict: str
) -> None:
    finding = Finding("", Entry("a", "score"), Entry("b", "generality", edits=0), at_most)
    cells = {("a", 8): cell(s=higher), ("b", 4): cell(g=lower)}
    assert finding.verdict(cells, [4, 8]) == verdict


def test_one_number_of_edits_is_not_compared_with_itself() -> None:
    finding = Finding("", Entry("a", "score", edits=0), Entry("a", "score"), max_gap=5.0)
    cells = {("a", 8): cell(score=50.0)}
    assert finding.verdict(cells, [8]) == "not measured, at one number of edits"


def test_findings_read_their_own_entries() -> None:
    """Cells built so that every finding of the paper holds by 10 points."""
    expected: dict[int, dict[tuple[str, int], dict[str, float]]] = {
        4: {("frozen", 8): {"g": 50}, ("mse", 8): {"g": 60}, ("infonce", 8): {"g": 70}},
        5: {("with gate", 8): {"g": 60, "l": 90}, ("without gate", 8): {"g": 70, "l": 80}},
        7: {("mlp", 8): {"g": 50, "r": 80}, ("dit", 8): {"g": 60, "r": 90}},
        15: {("without", 8): {"g": 70, "l": 80}, ("with DA", 8): {"g": 60, "l": 90}},
    }
    for table, entries in expected.items():
        cells = {at: cell(**values) for at, values in entries.items()}
        for finding in named(BOTH[1])[table].findings:
            assert finding.verdict(cells, [8]) == "as in the paper (+10.0 ± 4.2)"
    loose, tight = cell(g=80, l=50), cell(g=70, l=60)
    for hparams, (loosest, tightest) in zip(BOTH, (("0.05", "0.9"), ("1", "0.05")), strict=True):
        cells = {(loosest, 8): loose, (tightest, 8): tight}
        for finding in named(hparams)[16].findings:
            assert finding.verdict(cells, [8]) == "as in the paper (+10.0 ± 4.2)"


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return load_model(HPARAMS)


def encode(texts: Any) -> torch.Tensor:
    name = resolve_model_name(HPARAMS.encoder_name)
    return TextEncoder.from_pretrained(name).encode(texts)


def test_tables_are_run_and_written(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    cases = edit_cases(load_world(), 60, seed=4)
    split = split_cases(cases)
    benchmark = Benchmark("reference", split, (), (6, 12), hparams=HPARAMS, timed=2)
    lines: list[str] = []
    sections = run_tables(
        benchmark,
        *loaded,
        tmp_path,
        only=(5, 6, 16),
        plots=True,
        command="meg-editor tables",
        report=lines.append,
    )
    assert [section.title.partition(":")[0] for section in sections] == [
        "Table 5",
        "Table 6",
        "Table 16",
    ]
    text = (tmp_path / "tables.md").read_text("utf-8")
    assert "| without gate | 100.0 |" in text and "6 edits" in text
    report = json.loads((tmp_path / "tables.json").read_text("utf-8"))
    assert report["command"] == "meg-editor tables" and report["machine"]["cores"] > 0
    gates = report["tables"]["Table 5: gate"]
    opened, closed = gates["without gate, 12 edits"], gates["with gate, 12 edits"]
    assert opened["gate"]["true_negatives"] == 0 < closed["gate"]["true_negatives"]
    assert opened["locality"]["ag"] <= closed["locality"]["ag"]
    assert f"the gate raises Locality: {sections[0].findings[0].partition(': ')[2]}" in text
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {"thresholds.png", "gate-scores.png"}


def test_chains_are_evaluated_when_every_fact_of_them_is_edited(
    loaded: tuple[Any, Any], tmp_path: Path
) -> None:
    cases = edit_cases(load_world(), 60, seed=4)
    prompts = [case.request.prompt for case in split_cases(cases).edited]
    target = {case.request.prompt: case.request.target_new for case in cases}
    chains = tuple(
        MultiHopCase(
            tuple(pair), (pair[1],), (target[pair[1]],), tuple(Probe(p, (target[p],)) for p in pair)
        )
        for pair in (prompts[:2], prompts[2:4])
    )
    mquake = Dataset("mquake", tuple(cases), chains)
    split = split_cases(cases)
    benchmark = Benchmark("reference", split, (), (12,), hparams=HPARAMS, timed=2)
    (section,) = run_tables(
        benchmark, *loaded, tmp_path, mquake=mquake, only=(18,), report=lambda _: None
    )
    hundred = {"edit_wise": 100.0, "instance_wise": 100.0, "multi_hop": 100.0}
    assert section.data["meg"] == {"chains": 2, **hundred}
    assert section.data["unedited"] == {"chains": 2, **dict.fromkeys(hundred, 0.0)}
    assert section.findings[0].endswith("as in the paper (+100.0)")


def test_capacity_is_what_the_fitted_neurons_answer(loaded: tuple[Any, Any]) -> None:
    facts = [case.request for case in edit_cases(load_world(), 5, seed=8)]
    too_long = EditRequest("Tell me a story.", "word " * 500)
    result = capacity(*loaded, [*facts, too_long], HPARAMS, encode)
    assert result.facts == len(facts)  # the story fits no context
    spec = NeuronSpec.from_model(loaded[0], HPARAMS.layer)
    neurons = collect(*loaded, spec, facts, HPARAMS).neurons
    with NeuronHook(loaded[0], spec) as hook, hook.attached(neurons):
        answers = greedy_answers(*loaded, [fact.prompt for fact in facts], 16)
    right = [a == fact.target_new for a, fact in zip(answers, facts, strict=True)]
    assert result.reproduced == 100 * sum(right) / len(right) == 100
    assert result.fine_tuning_accuracy == 100 and result.similarity == pytest.approx(100, abs=0.01)
    hard = dataclasses.replace(HPARAMS, collection_steps=1, collection_lr=0.1)
    assert capacity(*loaded, facts, hard, encode).fine_tuning_accuracy < 100
    with pytest.raises(ValueError, match="no prompt with its target fits"):
        capacity(*loaded, [too_long], HPARAMS, encode)


def test_tables_are_written_one_by_one(
    loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has been measured is not lost with what fails after it."""

    def fails(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("meg_editor.benchmark.paper_tables._multi_hop", fails)
    split = split_cases(edit_cases(load_world(), 40, seed=4))
    benchmark = Benchmark("reference", split, (), (6,), hparams=HPARAMS, timed=2)
    chains = Dataset("mquake", ())
    with pytest.raises(RuntimeError, match="out of memory"):
        run_tables(benchmark, *loaded, tmp_path, mquake=chains, only=(6, 18), report=lambda _: None)
    assert "Table 6" in (tmp_path / "tables.md").read_text("utf-8")
