"""What one method does, or a data set lacks, does not change the numbers of another."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from meg_editor import EditRequest, MeGHyperParams, load_model
from meg_editor.baselines.registry import BASELINES
from meg_editor.benchmark import Benchmark, Cell, Method, edited, run_benchmark
from meg_editor.benchmark.ablations import Entry, Finding
from meg_editor.benchmark.definition import FittingFacts
from meg_editor.benchmark.method_spec import MethodSpec
from meg_editor.benchmark.report import write_report
from meg_editor.benchmark.search import SearchMaterial, Trial, best_of, recorded, search
from meg_editor.benchmark.tables import markdown
from meg_editor.data.cases import EvaluationCase, MultiHopCase, Probe
from meg_editor.data.splits import Split
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import edit_cases
from meg_editor.evaluation import Question, evaluate, questions_of
from meg_editor.evaluation.forced import forced_scores
from meg_editor.evaluation.long_answers import token_recall, tokens
from meg_editor.evaluation.metrics import GateMatrix, exact, harmonic_mean, mentions
from meg_editor.evaluation.multi_hop import chains_of
from meg_editor.lm.fingerprint import fingerprint
from meg_editor.requests.prompts import PromptReader

TEMPLATE = "Q: {}\nA:"
ENCODER = "meg_editor:bert-reference"
DOWN = "model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def hparams() -> MeGHyperParams:
    return MeGHyperParams.preset("default", device="cpu")


@pytest.fixture(scope="module")
def loaded(hparams: MeGHyperParams) -> Iterator[tuple[Any, Any]]:
    model, tokenizer = load_model(hparams)
    before = fingerprint(model)
    yield model, tokenizer
    assert fingerprint(model) == before


@pytest.fixture(scope="module")
def cases() -> list[EvaluationCase]:
    return edit_cases(load_world(), 4, seed=3)


def unedited(model: Any, *_: Any, **__: Any) -> Any:
    return model, {}


def benchmark_of(cases: list[EvaluationCase], *methods: Method, **options: Any) -> Benchmark:
    none = FittingFacts([], [], [])
    options = {"edits": (len(cases),), "seeds": 1, "timed": 1, "whole_pool": True} | options
    return Benchmark("mini", Split(tuple(cases), (), ()), methods, facts=none, **options)


def run(benchmark: Benchmark, loaded: Any, out: Path) -> tuple[list[Cell], list[str]]:
    lines: list[str] = []
    return run_benchmark(benchmark, *loaded, out, lines.append), lines


# ---------------------------------------------------------------- a method that fails


def test_a_method_that_fails_does_not_cost_the_others_their_cells(
    loaded: Any, cases: list[EvaluationCase], tmp_path: Path
) -> None:
    def diverging(*_: Any, **__: Any) -> Any:
        raise FloatingPointError("the update is not finite")

    methods = [Method("diverging", diverging), Method("unedited", unedited)]
    cells, lines = run(benchmark_of(cases, *methods), loaded, tmp_path)
    assert [cell.method for cell in cells] == ["unedited"]
    assert "left out: diverging: FloatingPointError: the update is not finite" in lines


def test_numbers_of_edits_that_there_are_not_fail_before_any_cell(
    loaded: Any, cases: list[EvaluationCase], tmp_path: Path
) -> None:
    benchmark = benchmark_of(cases, Method("unedited", unedited), edits=(2, 99))
    with pytest.raises(ValueError, match="expected 1 to 4 .* got 99"):
        run(benchmark, loaded, tmp_path)
    assert not (tmp_path / "cells").exists()


def test_facts_of_a_cell_do_not_depend_on_other_numbers_of_edits(
    loaded: Any, tmp_path: Path
) -> None:
    """Of a large data set 64 edits with 1,024 beside them were other facts than 64 alone."""
    many = [EvaluationCase(EditRequest(f"Town {n} is in", "Peru", f"Town {n}")) for n in range(600)]
    asked: dict[tuple[int, ...], list[list[str]]] = {}
    for edits in ((2,), (2, 40, 2)):
        asked[edits] = []

        def spy(model: Any, _: Any, requests: Any, *__: Any, **___: Any) -> Any:
            asked[edits].append([request["prompt"] for request in requests])  # noqa: B023
            return model, {}

        options = {"edits": edits, "whole_pool": False}
        cells, _ = run(benchmark_of(many, Method("spy", spy), **options), loaded, tmp_path)
        assert [cell.edits for cell in cells] == list(dict.fromkeys(edits))
        (tmp_path / "cells").rename(tmp_path / f"cells of {len(edits)}")
    assert asked[2,][0] == asked[2, 40, 2][0] and len(asked[2, 40, 2]) == 2


def test_two_edits_of_a_prompt_and_two_methods_of_a_name_are_refused(
    loaded: Any, cases: list[EvaluationCase], tmp_path: Path
) -> None:
    twice = [cases[0], *cases]
    with pytest.raises(ValueError, match=f"different prompts, got {cases[0].request.key!r} twice"):
        run(benchmark_of(twice, Method("unedited", unedited)), loaded, tmp_path)
    with pytest.raises(ValueError, match="methods: expected different names, got 'mine' twice"):
        benchmark_of(cases, Method("mine", unedited), Method("mine", lambda m, **_: (m, {})))
    with pytest.raises(ValueError, match=r"got 'memit' and 'memit=x.yaml' for memit"):
        MethodSpec.parse_list("memit,ft,memit=x.yaml")
    assert len(MethodSpec.parse_list("memit,memit")) == 1


# ---------------------------------------------------------------- what it leaves behind


def test_adapters_and_patched_forwards_do_not_reach_the_next_method(
    loaded: Any, cases: list[EvaluationCase], tmp_path: Path
) -> None:
    def patching(model: Any, *_: Any, **__: Any) -> Any:
        real = model.lm_head.forward
        model.lm_head.forward = lambda x: -real(x)
        model.model.layers[0].mlp = torch.nn.Sequential(model.model.layers[0].mlp, torch.nn.Tanh())
        return model, {}

    model = loaded[0]
    block = model.model.layers[0].mlp
    methods = [Method("patching", patching), Method("unedited", unedited)]
    cells, _ = run(benchmark_of(cases, *methods), loaded, tmp_path)
    assert cells[0].locality.ag < 50 and cells[1].locality.ag == 100
    assert model.model.layers[0].mlp is block and "forward" not in vars(model.lm_head)


@pytest.mark.parametrize("wrong", ["name", "shape"])
def test_old_values_that_fit_no_weight_are_named_and_the_model_is_restored(
    loaded: Any, cases: list[EvaluationCase], wrong: str
) -> None:
    def zeroing(model: Any, *_: Any, **__: Any) -> Any:
        weight = model.get_parameter(f"{DOWN}.weight")
        old = weight.detach().clone()
        weight.data.zero_()
        return model, {DOWN: old} if wrong == "name" else {f"{DOWN}.weight": old[:1]}

    before = fingerprint(loaded[0])
    with (
        pytest.raises(RuntimeError, match=rf"left 1 weights .* got \['{DOWN}"),
        edited(Method("zeroing", zeroing), *loaded, cases),
    ):
        pass
    assert fingerprint(loaded[0]) == before


# ---------------------------------------------------------------- the same prompts for all


def test_every_method_is_asked_in_the_template_of_the_benchmark(
    loaded: Any, cases: list[EvaluationCase], hparams: MeGHyperParams, tmp_path: Path
) -> None:
    path = tmp_path / "retrieval.yaml"
    path.write_text(f"encoder_name: {ENCODER}\nthreshold: 2.0\n")  # which no query reaches
    asked = hparams.changed(prompt_template=TEMPLATE)
    paper = MeGHyperParams.preset("paper")
    specs = MethodSpec.parse_list(f"unedited,retrieval={path},meg-paper")
    methods = [spec.resolve(asked, paper) for spec in specs]
    assert [m.hparams.prompt_template for m in methods[1:]] == [TEMPLATE, TEMPLATE]
    benchmark = benchmark_of(cases, *methods[:2], hparams=asked)
    (before, after), _ = run(benchmark, loaded, tmp_path)
    assert (after.locality, after.forced, after.trapped_by_kind) == (
        before.locality,
        before.forced,
        before.trapped_by_kind,
    )
    assert (after.perplexity, after.fluency) == pytest.approx((before.perplexity, before.fluency))


def test_seconds_are_of_the_whole_edit_for_every_method(
    loaded: Any, cases: list[EvaluationCase], tmp_path: Path
) -> None:
    """And not of the stages alone for those that have some."""
    (cell,), _ = run(benchmark_of(cases, Method("unedited", unedited)), loaded, tmp_path)
    staged = dataclasses.replace(
        cell, method="meg", seconds_total=12.0, seconds={"collection": 4.0}
    )
    lines = markdown([staged]).splitlines()
    head = next(line for line in lines if "s in all" in line)
    row = lines[lines.index(head) + 2]
    values = dict(zip(head.split("|"), row.split("|"), strict=True))
    assert (values[" s in all "], values[" ms/edit "]) == (" 12 ", " 3000 ")


# ---------------------------------------------------------------- searches


def test_a_search_starts_anew_with_other_fitting_facts(
    loaded: Any, cases: list[EvaluationCase], tmp_path: Path
) -> None:
    said: list[str] = []
    ft = BASELINES["ft"]
    few = dataclasses.replace(ft, space=lambda layers: {"layers": ([2],), "num_steps": (1,)})
    for facts in ([], [], [EditRequest("The capital of Peru is", "Oslo", "Peru")]):
        material = SearchMaterial(*loaded, cases, (), {}, {"pseudo": facts})
        search("ft", few, material, 1, tmp_path, said.append)
    assert len(said) == 2  # the second one resumed


def test_a_search_without_locality_is_read_back_as_it_was(
    loaded: Any, cases: list[EvaluationCase], tmp_path: Path
) -> None:
    settings = {"layers": [2], "lr": 0.25, "num_steps": 30}
    none = math.nan
    trials = [
        Trial({**settings, "lr": 0.5}, none, [90.0, 90.0, 40.0, 40.0, none, none], 1.0),
        Trial(settings, none, [90.0, 90.0, 80.0, 80.0, none, none], 1.0),
    ]
    (cell,), _ = run(benchmark_of(cases, Method("unedited", unedited)), loaded, tmp_path)
    write_report([cell], tmp_path, {"ft": trials})
    read = recorded(tmp_path / "report.json", ["ft"])["ft"]
    for one in (trials, read):
        assert best_of("ft", BASELINES["ft"], one, {}).to_dict()["lr"] == 0.25
    assert math.isnan(read[0].score or 0) and math.isnan(read[0].metrics[4])


def test_a_finding_on_questions_that_were_not_asked_is_not_measured(
    loaded: Any, cases: list[EvaluationCase], tmp_path: Path
) -> None:
    bare = [dataclasses.replace(case, locality={}) for case in cases]
    (cell,), _ = run(benchmark_of(bare, Method("unedited", unedited)), loaded, tmp_path)
    assert math.isnan(cell.locality.ag) and math.isnan(cell.score)
    one = Entry("here", "locality")
    verdict = Finding("the gate raises Locality", one, one).verdict({("here", 4): cell}, [4])
    assert verdict.startswith("not measured")


# ---------------------------------------------------------------- metrics


def test_a_score_lacks_what_was_not_asked() -> None:
    assert math.isnan(harmonic_mean([0.0, math.nan])) and harmonic_mean([0.0, 9.0]) == 0


def test_kinds_that_begin_alike_are_counted_apart(loaded: Any) -> None:
    edit = EditRequest("The capital of France is", "Lima", "France")
    locality = {
        "hop": (Probe("The capital of Italy is"),),
        "hop2": (Probe("The capital of Spain is"), Probe("The capital of Peru is")),
    }
    case = EvaluationCase(edit, locality=locality)
    questions = [
        dataclasses.replace(q, target="nonsense", tokens=()) if q.kind == "locality:hop2" else q
        for q in questions_of(*loaded, [case], PromptReader(loaded[1]))
    ]
    by_kind = evaluate(*loaded, [case], questions=questions).locality_by_kind
    assert (by_kind["hop"].ag, by_kind["hop2"].ag) == (100, 0)


def test_saying_the_target_everywhere_is_not_specific(loaded: Any) -> None:
    """CounterFact's attribute prompts have the edit's target as their true answer."""
    case = EvaluationCase(EditRequest("The capital of France is", "Rome", "France"), truth="Paris")
    attribute = Question("The capital of Italy is", "Rome", "locality:attribute", 0, ("Rome",))
    neighbour = Question("The capital of Spain is", "Oslo", "locality:neighbour", 0, ("Oslo",))
    both = forced_scores(*loaded, [case], [attribute, neighbour]).token_accuracy
    assert both == forced_scores(*loaded, [case], [neighbour]).token_accuracy
    assert both["specificity"] < 100  # it says Madrid
    assert forced_scores(*loaded, [case], [attribute]).token_accuracy == {}


def test_words_of_scripts_without_blanks() -> None:
    assert mentions("首都は東京です", "東京") == mentions("首都はLimaです", "Lima") == 1
    assert mentions("首都は大阪です", "東京") == mentions("Limassol", "Lima") == 0
    assert tokens("北京 is in 中国") == ["北", "京", "is", "in", "中", "国"]
    assert token_recall("首都是北京。", "北京") == 1 and token_recall("上海", "北京") == 0


def test_targets_without_words_have_to_be_said() -> None:
    assert token_recall("It costs 5 €.", "€") == 1 and token_recall("It costs $5.", "€") == 0
    assert token_recall("anything", "") == 1


@pytest.fixture
def cell(loaded: Any, cases: list[EvaluationCase], tmp_path: Path) -> Cell:
    (cell,), _ = run(benchmark_of(cases, Method("unedited", unedited)), loaded, tmp_path)
    return cell


def test_a_report_of_a_destroyed_model_is_written_and_read(cell: Cell) -> None:
    """Two infinite perplexities ended the report, one made no JSON."""
    destroyed = [dataclasses.replace(cell, perplexity=math.inf, seed=seed) for seed in (0, 1)]
    assert "inf |" in markdown(destroyed)
    text = json.dumps(destroyed[0].to_dict(), allow_nan=False)
    assert Cell.from_dict(json.loads(text)).perplexity == math.inf


def test_shares_of_nothing_asked_are_not_measured(cell: Cell) -> None:
    text = markdown([dataclasses.replace(cell, gate=GateMatrix(3, 0, 0, 0, 0))])
    rows = [line.split("|") for line in text.splitlines() if line.startswith("|")]
    (head,) = (row for row in rows if any("Accepted others" in title for title in row))
    values = rows[rows.index(head) + 2]
    assert values[next(n for n, t in enumerate(head) if "Accepted others" in t)].strip() == "-"


def test_composed_and_decomposed_accents_are_one_answer() -> None:
    assert exact(["Caf\u00e9"], ["Cafe\u0301."]) == [1.0]


def test_chains_that_another_edit_contradicts_are_not_asked() -> None:
    def chain(prompt: str, hop: str, *answers: str) -> MultiHopCase:
        return MultiHopCase((prompt,), ("?",), answers, (Probe(hop, answers),))

    cases = [
        EvaluationCase(EditRequest("The head of Peru is", "Ada", "Peru")),
        EvaluationCase(
            EditRequest("The head of Chile is", "Bo", "Chile"), paraphrases=("Who heads Chile?",)
        ),
    ]
    stands = chain("The head of Peru is", "The head of Peru is", "Ada", "Ada L.")
    other = chain("The head of Peru is", "The home of Ada is", "Oslo")
    contradicted = chain("The head of Peru is", "Who heads Chile?", "Carl")
    incomplete = chain("The head of Laos is", "The head of Peru is", "Ada")
    assert chains_of(cases, [stands, other, contradicted, incomplete]) == [stands, other]
