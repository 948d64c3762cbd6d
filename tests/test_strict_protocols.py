"""Strict protocols: edits one after another, teacher-forced metrics, answers without a cut."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from meg_editor import EditRequest, MeGHyperParams, load_model
from meg_editor.baselines import AlphaEditHyperParams, MEMITHyperParams, NeuralDBHyperParams
from meg_editor.baselines.alphaedit import apply_alphaedit_to_model
from meg_editor.baselines.core.contexts import context_prefixes
from meg_editor.baselines.ft import FTHyperParams, apply_ft_to_model
from meg_editor.baselines.horen import HoReNHyperParams
from meg_editor.baselines.malmen import MALMENHyperParams
from meg_editor.baselines.neuraldb import KeyValueMemory
from meg_editor.baselines.registry import BASELINES
from meg_editor.baselines.retrieval import RetrievalHyperParams
from meg_editor.baselines.ultraedit import UltraEditHyperParams, apply_ultraedit_to_model
from meg_editor.benchmark import Benchmark, Method, diagnostics, edit_set, edited, run_benchmark
from meg_editor.benchmark.methods import package_digest
from meg_editor.benchmark.metric_meta import metric_meta
from meg_editor.benchmark.report import report_text
from meg_editor.benchmark.search import SearchMaterial, search
from meg_editor.benchmark.sequential import SequentialError, carried, sequential
from meg_editor.benchmark.weights import WeightSnapshot
from meg_editor.cli.parser import build_parser
from meg_editor.data.cases import EvaluationCase, MultiHopCase, Probe
from meg_editor.data.prompt_forms import PromptForm
from meg_editor.data.splits import Split
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import edit_cases
from meg_editor.evaluation import Question, questions_of
from meg_editor.evaluation.evaluate import forced_logits
from meg_editor.evaluation.forced import forced_scores, likelihoods
from meg_editor.evaluation.natural import NATURAL_TOKENS, natural_answers, natural_scores
from meg_editor.fitting.apply import apply_meg_to_model
from meg_editor.integrations.easyedit import methods
from meg_editor.lm.answers import greedy_answers
from meg_editor.lm.fingerprint import fingerprint
from meg_editor.requests.prompts import PromptReader
from meg_editor.runtime.artifacts import ArtifactStore, digest

ENCODER = "meg_editor:bert-reference"
DOWN = "model.layers.1.mlp.down_proj.weight"
TEXTS = ["Lima is in Peru", "Emma was written by Jane Austen"]
LOCATE = {"layers": [1], "v_num_grad_steps": 3, "context_prefixes": 1}


@pytest.fixture(scope="module")
def loaded() -> Iterator[tuple[Any, Any]]:
    model, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
    before = fingerprint(model)
    yield model, tokenizer
    assert fingerprint(model) == before


@pytest.fixture(scope="module")
def cases() -> list[EvaluationCase]:
    return edit_cases(load_world(), 5, seed=3)


def rows(cases: list[EvaluationCase]) -> list[dict[str, Any]]:
    requests = [case.request for case in cases]
    return [
        {"prompt": r.prompt, "target_new": r.target_new, "subject": r.subject} for r in requests
    ]


def method(name: str, hparams: Any) -> Method:
    return Method(name, BASELINES[name].apply, hparams)


# ---------------------------------------------------------------- one after another


def test_sequential_fine_tuning_is_a_loop_by_hand(loaded: Any, cases: Any) -> None:
    model, tokenizer = loaded
    hparams = FTHyperParams(layers=[1], num_steps=2, tuned="down", optimizer="sgd", lr=0.1)
    snapshot = WeightSnapshot(model)
    for row in rows(cases):
        apply_ft_to_model(model, tokenizer, [row], hparams)
    by_hand = model.get_parameter(DOWN).detach().clone()
    snapshot.restore()
    with edited(sequential(method("ft", hparams), 1), *loaded, cases):
        assert torch.equal(model.get_parameter(DOWN), by_hand)
    with edited(method("ft", hparams), *loaded, cases):  # a batch is something else
        assert not torch.equal(model.get_parameter(DOWN), by_hand)


@pytest.mark.parametrize("chunk", [1, 2])
def test_alphaedit_and_ultraedit_carry_what_their_authors_carry(
    loaded: Any, cases: Any, chunk: int
) -> None:
    model, tokenizer = loaded
    alpha = AlphaEditHyperParams(**LOCATE, nullspace_threshold=2.0)
    ultra = UltraEditHyperParams(layers=[1], lr=1e-3)
    prefixes = context_prefixes(model, tokenizer, 1, alpha.seed)
    kept: dict[str, Any] = {"texts": TEXTS, "prefixes": prefixes, "earlier": {}}
    ways = [
        ("alphaedit", alpha, apply_alphaedit_to_model, kept),
        ("ultraedit", ultra, apply_ultraedit_to_model, {"statistics": {}}),
    ]
    for name, hparams, apply, state in ways:
        snapshot = WeightSnapshot(model)
        for start in range(0, len(cases), chunk):
            apply(model, tokenizer, rows(cases)[start : start + chunk], hparams, **state)
        by_hand = model.get_parameter(DOWN).detach().clone()
        assert snapshot.restore()
        with edited(sequential(method(name, hparams), chunk), *loaded, cases, texts=TEXTS):
            assert torch.equal(model.get_parameter(DOWN), by_hand)
        for start in range(0, len(cases), chunk):  # without it the result is another one
            state = {k: {} if k in ("earlier", "statistics") else v for k, v in state.items()}
            apply(model, tokenizer, rows(cases)[start : start + chunk], hparams, **state)
        assert not torch.equal(model.get_parameter(DOWN), by_hand)
        snapshot.restore()


def test_covariances_and_hypernetworks_are_those_of_the_unedited_model(
    loaded: Any, cases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: list[str] = []
    real = ArtifactStore.run

    def run(self: Any, name: str, inputs: Any, compute: Any) -> Any:
        stages.append(name)
        return real(self, name, inputs, compute)

    monkeypatch.setattr(ArtifactStore, "run", run)
    model, tokenizer = loaded
    memit = MEMITHyperParams(**LOCATE, mom2_update_weight=20)
    store, prefixes = ArtifactStore(), context_prefixes(model, tokenizer, 1, memit.seed)
    options = {"texts": TEXTS, "store": store}
    with edited(sequential(method("memit", memit), 1), *loaded, cases, **options):
        assert stages == ["covariance"]
    with edited(method("memit", memit), *loaded, cases[:1], **options, prefixes=prefixes):
        first = model.get_parameter(DOWN).detach().clone()
    with edited(sequential(method("memit", memit), 1), *loaded, cases[:1], **options):
        assert torch.equal(model.get_parameter(DOWN), first)
    assert set(stages) == {"covariance"}
    pseudo = [
        EditRequest("The capital of Peru is", "Oslo", "Peru", ("Peru's capital is",), ("Peru is",)),
        EditRequest("Emma was written by", "Joyce", "Emma", ("Who wrote Emma?",), ("Emma is",)),
    ]
    malmen = MALMENHyperParams(layers=[2], max_iters=2, rank=16, n_blocks=1)
    stages.clear()
    with edited(sequential(method("malmen", malmen), 2), *loaded, cases, pseudo=pseudo):
        assert stages == ["malmen"]


def test_easyedit_keeps_the_contexts_of_the_unedited_model(
    loaded: Any, cases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by itself: it samples them once."""
    cached: list[Any] = []

    def main(model: Any, *_: Any, **__: Any) -> None:
        cached.append(main_module.CONTEXT_TEMPLATES_CACHE)
        model.get_parameter(DOWN).data.zero_()

    main_module = SimpleNamespace(apply_memit_to_model=main, COV_CACHE={})
    monkeypatch.setattr(methods, "import_easyedit", lambda: SimpleNamespace(__name__="theirs"))
    importing = SimpleNamespace(import_module=lambda name: main_module)
    monkeypatch.setattr(methods, "importlib", importing)
    monkeypatch.setattr(methods, "_settings", lambda *_: None)
    memit = MEMITHyperParams(**{**LOCATE, "context_prefixes": 3})
    one = Method("easyedit:MEMIT", methods.easyedit_method("memit"), memit)
    with edited(sequential(one, 2), *loaded, cases, texts=TEXTS):
        assert len(cached) == 3 and len(cached[0][1]) == 3
    assert cached[0] == cached[1] == cached[2]


def test_where_order_does_not_matter_one_after_another_is_all_at_once(
    loaded: Any, cases: Any
) -> None:
    prompts = [case.request.prompt for case in cases] + [t for c in cases for t in c.paraphrases]
    meg = MeGHyperParams.preset(
        "default", device="cpu", generator="bank", gate_threshold=0.8, encoder_steps=5
    )
    ways = [
        Method("meg", apply_meg_to_model, meg),
        method("retrieval", RetrievalHyperParams(encoder_name=ENCODER, threshold=0.6)),
        method("neuraldb", NeuralDBHyperParams(**LOCATE)),
    ]
    for one in ways:
        with edited(one, *loaded, cases, seed=0) as batch, torch.no_grad():
            expected = greedy_answers(batch, loaded[1], prompts, 8)
            known = batch
        for chunk in (1, 2, 99):
            with edited(sequential(one, chunk), *loaded, cases, seed=0) as model, torch.no_grad():
                assert greedy_answers(model, loaded[1], prompts, 8) == expected, one.name
                if hasattr(known, "edits"):
                    prompts_of = [[edit.prompt for edit in m.edits] for m in (known, model)]
                    assert prompts_of[0] == prompts_of[1] == [c.request.prompt for c in cases]
                if one.name == "neuraldb":
                    ours, theirs = (
                        next(m for m in each.modules() if isinstance(m, KeyValueMemory))
                        for each in (model, known)
                    )
                    torch.testing.assert_close(ours.keys, theirs.keys)
                    assert ours.residuals.shape == theirs.residuals.shape == (5, 256)


def test_horen_has_a_key_and_a_value_per_edit(loaded: Any, cases: Any) -> None:
    hparams = HoReNHyperParams(layers=[2], n_iter=3)
    with edited(method("horen", hparams), *loaded, cases) as batch:
        keys = batch.keys
    with edited(sequential(method("horen", hparams), 2), *loaded, cases) as model:
        torch.testing.assert_close(model.keys, keys)
        assert len(model.values) == len(cases)
        decisions = model.route([case.request.prompt for case in cases])
        assert [one.edit for one in decisions] == [0, 1, 2, 3, 4]


def wrapping(model: Any, tok: Any, requests: Any, hparams: Any, **kwargs: Any) -> Any:
    kwargs.get("calls", []).append(len(requests))
    return nn.Sequential(model), {}


def test_a_chunk_that_fails_leaves_the_model_as_it_was(loaded: Any, cases: Any) -> None:
    calls: list[int] = []

    def failing(model: Any, tok: Any, requests: Any, hparams: Any, **kwargs: Any) -> Any:
        calls.append(len(requests))
        old = model.get_parameter(DOWN).detach().clone()
        model.get_parameter(DOWN).data.zero_()
        if len(calls) == 2:
            raise RuntimeError("the second one")
        return model, {DOWN: old}

    before = fingerprint(loaded[0])
    one = sequential(Method("failing", failing), 2)
    with pytest.raises(RuntimeError, match="the second one"), edited(one, *loaded, cases):
        pass
    assert calls == [2, 2] and fingerprint(loaded[0]) == before


def test_edits_arrive_in_the_order_of_the_file(loaded: Any, tmp_path: Path) -> None:
    """As in NAS; all at once they are in the order of the sample."""
    cases = edit_cases(load_world(), 30, seed=1)
    file = [case.request.prompt for case in cases]
    orders: list[list[str]] = []

    def record(model: Any, tok: Any, requests: Any, hparams: Any, **kwargs: Any) -> Any:
        orders[-1] += [request["prompt"] for request in requests]
        return model, {}

    for chunk in (None, 2):
        orders.append([])
        methods = [Method("record", record)]
        split = Split(tuple(cases), (), ())
        benchmark = Benchmark(
            "x", split, methods, (9,), 1, whole_pool=True, timed=1, sequential=chunk
        )
        run_benchmark(benchmark, *loaded, tmp_path, report=lambda _: None)
    sampled, arrived = orders
    assert set(sampled) == set(arrived) and len(arrived) == 9
    assert arrived == sorted(arrived, key=file.index) != sampled


@pytest.mark.parametrize("chunk", [0, -1])
def test_chunks_of_nothing_are_refused(loaded: Any, cases: Any, tmp_path: Path, chunk: int) -> None:
    """And not measured as a batch."""
    unedited = Method("unedited", lambda model, *_, **__: (model, {}))
    split = Split(tuple(cases), (), ())
    benchmark = Benchmark("x", split, [unedited], (5,), 1, whole_pool=True, sequential=chunk)
    with pytest.raises(ValueError, match=f"at least 1 edit, got {chunk}"):
        run_benchmark(benchmark, *loaded, tmp_path, report=lambda _: None)
    material = SearchMaterial(*loaded, cases, (), {}, {}, chunk)
    with pytest.raises(ValueError, match=f"at least 1 edit, got {chunk}"):
        search("ft", BASELINES["ft"], material, 1, tmp_path, report=lambda _: None)


def test_a_method_that_cannot_is_left_out_and_no_batch_is_measured_instead(
    loaded: Any, cases: Any, tmp_path: Path
) -> None:
    split = Split(tuple(cases), (), ())
    unable = Method("unable", wrapping)
    for chunk, expected in ((2, [2]), (99, [5])):  # at once, and however few chunks there are
        calls: list[int] = []
        with pytest.raises(SequentialError, match="unable: --sequential expected a method that wr"):
            sequential(unable, chunk).apply(*loaded, rows(cases), None, calls=calls)
        assert calls == expected
    lines: list[str] = []
    unedited = Method("unedited", lambda model, *_, **__: (model, {}))
    benchmark = Benchmark(
        "reference",
        split,
        [unable, unedited],
        (4,),
        1,
        whole_pool=True,
        sequential=2,
        natural=True,
        timed=1,
    )
    (cell,) = run_benchmark(benchmark, *loaded, tmp_path, report=lines.append)
    assert any(line.startswith("left out: unable") for line in lines)
    assert [path.name for path in (tmp_path / "cells").iterdir()] == [
        "reference-unedited-4-0-sequential-2-natural.json"
    ]
    assert cell.sequential == {"chunk": 2, "carried": "the model it left behind"}
    assert cell.natural and cell.natural["locality"]["exact"] == 100
    assert cell.forced and cell.forced["token_accuracy"]["efficacy"] < 50
    assert (cell.questions or {})["reliability"] == 4 and cell.max_tokens == 12
    meta = metric_meta([cell])
    assert meta["natural.exact"]["max_tokens"] == NATURAL_TOKENS
    assert meta["forced.token_accuracy"]["n"]["4"] == sum(
        n for kind, n in (cell.questions or {}).items() if kind[:4] in ("reli", "gene", "loca")
    )
    compared = (cell.questions or {})["with old answer"]
    assert meta["forced.success"]["n"]["4"] == compared <= 4 + 3 * 4
    text = report_text([cell])
    assert "edits one after another, 2 at a time" in text.casefold()
    assert "| Gen TF | Gen worst | Loc AG |" in text
    assert "| Token accuracy, efficacy |" in text and "Reliability, exact" in text
    assert carried(Method("easyedit:ALPHAEDIT", wrapping, AlphaEditHyperParams())).endswith("anew")


def test_every_protocol_and_setting_gives_a_cell_a_key_of_its_own(
    loaded: Any, cases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside what every cell depends on, the whole package among it."""
    seen: list[Any] = []
    monkeypatch.setattr(edit_set, "digest", lambda parts: seen.append(parts) or digest(parts))
    unedited = Method("unedited", lambda model, *_, **__: (model, {}))
    other = dataclasses.replace(unedited, hparams={"lr": 1})
    plain = Benchmark("reference", Split(tuple(cases), (), ()), [unedited], (5,), 1)
    before = edit_set.Before(loaded[0])

    def key(method: Method = unedited, edits: Any = cases, seed: int = 0, **flags: Any) -> str:
        benchmark = dataclasses.replace(plain, **flags)
        return edit_set.EditSet(benchmark, *loaded, list(edits), seed, before).key(method)

    keys = [
        key(),
        key(other),
        key(edits=cases[1:]),
        key(seed=1),
        *(key(**flags) for flags in ({"sequential": 1}, {"sequential": 2}, {"natural": True})),
        key(max_asked=2),
        key(timed=1),
        key(hparams=dataclasses.replace(plain.hparams, prompt_template="Q: {}")),
        key(hparams=dataclasses.replace(plain.hparams, encoder_name="another")),
        key(forms=[PromptForm("word", "suffix", "edit", "{q} In a word.")]),
    ]
    assert len(set(keys)) == len(keys) and key() == keys[0]
    name, options = str(loaded[0].name_or_path), {"pseudo": [], "calibration": [], "texts": []}
    for part in (name, 0, options, None, unedited.code, package_digest(), before.fingerprint):
        assert part in seen[0]
    assert [parts[9] for parts in seen[4:7]] == ["-sequential-1", "-sequential-2", "-natural"]


def test_a_cell_knows_where_answers_end_if_not_where_the_models_config_says(
    loaded: Any, cases: Any
) -> None:
    unedited = Method("unedited", lambda model, *_, **__: (model, {}))
    benchmark = Benchmark("reference", Split(tuple(cases), (), ()), [unedited], (5,), 1)
    model, tokenizer = loaded
    other = copy.deepcopy(tokenizer)
    other.eos_token = tokenizer.convert_ids_to_tokens(9)
    before = edit_set.Before(model)
    sets = [
        edit_set.EditSet(benchmark, model, each, list(cases), 0, before)
        for each in (tokenizer, copy.deepcopy(tokenizer), other)
    ]
    first, same, elsewhere = (run.key(unedited) for run in sets)
    assert first == same != elsewhere


def test_a_prompt_template_is_put_around_the_questions_of_every_method(
    loaded: Any, cases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Methods that change weights have no reader of their own."""
    asked: list[str] = []
    real = diagnostics.batched_answers

    def record(model: Any, tok: Any, prompts: Any, *rest: Any) -> Any:
        asked.extend(prompts)
        return real(model, tok, prompts, *rest)

    monkeypatch.setattr(diagnostics, "batched_answers", record)
    unedited = Method("unedited", lambda model, *_, **__: (model, {}))
    chain = MultiHopCase(
        (cases[0].request.prompt,), ("Who is it?",), ("x",), (Probe("Who?", ("y",)),)
    )
    keys = set()
    for template in ("{}", "Q: {} A:"):
        benchmark = Benchmark(
            "reference",
            Split(tuple(cases), (), ()),
            [unedited],
            (5,),
            1,
            hparams=MeGHyperParams(prompt_template=template),
            multi_hop=[chain],
            whole_pool=True,
            sequential=5,
            natural=True,
            timed=1,
        )
        (cell,) = run_benchmark(benchmark, *loaded, tmp_path / "out", report=lambda _: None)
        assert cell.locality.ag == cell.locality.tf == 100
        assert cell.natural and cell.natural["locality"]["exact"] == 100
        assert template.replace("{}", "Who is it?") in asked
        keys.add(cell.key)
    assert len(keys) == 2
    material = SearchMaterial(*loaded, cases, (), {"prompt_template": "Q: {}"}, {})
    assert material.reader.wrap("a") == "Q: a"
    prompts, targets = [case.request.prompt for case in cases], ["Lima"] * len(cases)
    around = likelihoods(*loaded, prompts, targets, PromptReader(loaded[1], "Q: {} A:"))
    wrapped = [f"Q: {prompt} A:" for prompt in prompts]
    assert around == likelihoods(*loaded, wrapped, targets, PromptReader(loaded[1]))


def test_only_what_is_judged_is_asked_without_a_limit(
    loaded: Any, cases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def record(model: Any, tok: Any, prompts: Any, reader: Any, limit: int) -> Any:
        asked.append((len(prompts), limit))
        return natural_answers(model, tok, prompts, reader, limit)

    monkeypatch.setattr(edit_set, "natural_answers", record)
    unedited = Method("unedited", lambda model, *_, **__: (model, {}))
    split = Split(tuple(cases), (), ())
    benchmark = Benchmark("reference", split, [unedited], (5,), 1, natural=True, timed=1)
    (cell,) = run_benchmark(
        dataclasses.replace(benchmark, whole_pool=True), *loaded, tmp_path, report=lambda _: None
    )
    numbers = cell.questions or {}
    numbers.pop("with old answer")  # of these
    judged = sum(n for kind, n in numbers.items() if not kind.startswith(("trap", "portability")))
    assert sum(numbers.values()) > judged and asked == [(judged, NATURAL_TOKENS)] * 2
    # A longer target has to fit.
    edit = EditRequest("The capital of France is", "Lima" + 59 * " Lima", "France")
    before = edit_set.Before(loaded[0])
    long = edit_set.EditSet(benchmark, *loaded, [EvaluationCase(edit)], 0, before)
    long.natural_answers(loaded[0])
    assert asked[-1] == (1, 61)
    long_cell = dataclasses.replace(cell, max_tokens=61)
    assert metric_meta([long_cell])["natural.exact"]["max_tokens"] == 61


def test_the_flags_are_read() -> None:
    words = ["benchmark", "--data", "zsre", "--out", "o"]
    options = build_parser().parse_args([*words, "--sequential", "--judge", "natural"])
    assert (options.sequential, options.judge) == (1, "natural")
    options = build_parser().parse_args([*words, "--sequential", "100"])
    assert (options.sequential, options.judge) == (100, "exact")
    assert build_parser().parse_args(words).sequential is None


def test_settings_are_chosen_under_the_protocol_they_are_judged_by(
    loaded: Any, cases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def count(model: Any, tok: Any, requests: Any, hparams: Any, **kwargs: Any) -> Any:
        calls.append(len(requests))
        return model, {}

    counted = dataclasses.replace(BASELINES["ft"], apply=count)
    asked = questions_of(*loaded, cases, PromptReader(loaded[1]))
    for chunk, expected in ((2, [2, 2, 1]), (None, [5])):
        calls.clear()
        material = SearchMaterial(*loaded, cases, asked, {}, {}, chunk)
        search("ft", counted, material, 1, tmp_path, report=lambda _: None)
        assert calls == expected
    assert sorted(path.name for path in (tmp_path / "search").iterdir()) == [
        "ft-sequential-2.json",
        "ft.json",
    ]
    unable = dataclasses.replace(BASELINES["scen"], apply=wrapping)
    material = SearchMaterial(*loaded, cases, asked, {}, {"calls": (calls := [])}, 2)
    with pytest.raises(SequentialError, match="scen"):
        search("scen", unable, material, 8, tmp_path, report=lambda _: None)
    assert calls == [2]  # other settings would not help


# ---------------------------------------------------------------- teacher forcing


class Bigram(nn.Module):
    """A language model whose logits after a token are a row of a table, (V, V)."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.head = nn.Linear(len(table), len(table), bias=False)
        self.head.weight.data = table.T.contiguous()
        self.config = SimpleNamespace(model_type="bigram", get_text_config=lambda **_: self.config)
        self.device = torch.device("cpu")

    def get_decoder(self) -> Any:
        return lambda input_ids, **_: SimpleNamespace(
            last_hidden_state=nn.functional.one_hot(input_ids, len(self.head.weight)).float()
        )

    def get_output_embeddings(self) -> Any:
        return self.head


def test_token_accuracies_and_successes_are_those_computed_by_hand(loaded: Any) -> None:
    tokenizer = loaded[1]
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(len(tokenizer), len(tokenizer), generator=generator)
    prompt, other, neighbour = (
        "The capital of France is",
        "France's capital:",
        "The capital of Peru is",
    )
    new, old = "San Marino", "Paris"

    def by_hand(text: str, target: str) -> tuple[float, float]:
        start = tokenizer(text)["input_ids"]
        ids = tokenizer(f"{text} {target}")["input_ids"]
        assert ids[: len(start)] == start and len(ids) > len(start)
        right, log_prob = [], []
        for place in range(len(start), len(ids)):
            logits = table[ids[place - 1]].tolist()
            right.append(logits[ids[place]] == max(logits))
            log_prob.append(logits[ids[place]] - math.log(sum(map(math.exp, logits))))
        return sum(right) / len(right), sum(log_prob) / len(log_prob)

    first = tokenizer(f"{prompt} {new}")["input_ids"]
    table[first[-2], first[-1]] = 99.0  # the last token of the target is ranked first: not all are
    model: Any = Bigram(table)
    expected = by_hand(prompt, new)
    assert 0 < expected[0] < 1
    accuracy, log_prob = likelihoods(
        model, tokenizer, [prompt, other], [new, old], PromptReader(tokenizer)
    )
    assert accuracy == pytest.approx([expected[0], by_hand(other, old)[0]])
    assert log_prob == pytest.approx([expected[1], by_hand(other, old)[1]], abs=1e-4)

    case = EvaluationCase(EditRequest(prompt, new, "France"), truth=old)
    asked = [
        Question(prompt, new, "reliability", 0),
        Question(other, new, "generality", 0),
        Question(neighbour, "Oslo", "locality:neighbour", 0, (old,)),
        Question(neighbour, "Lima", "locality:other", 0, ("Lima",)),
        Question(prompt, new, "trap:negated", 0),
    ]
    scores = forced_scores(model, tokenizer, [case], asked)
    specificity = (by_hand(neighbour, old)[0] + by_hand(neighbour, "Lima")[0]) / 2
    assert scores.token_accuracy == pytest.approx(
        {
            "efficacy": 100 * expected[0],
            "generality": 100 * by_hand(other, new)[0],
            "specificity": 100 * specificity,
        }
    )
    assert scores.success == {
        "efficacy": 100.0 * (by_hand(prompt, new)[1] > by_hand(prompt, old)[1]),
        "generality": 100.0 * (by_hand(other, new)[1] > by_hand(other, old)[1]),
        "specificity": 100.0 * (by_hand(neighbour, old)[1] > by_hand(neighbour, new)[1]),
    }
    without = EvaluationCase(EditRequest(prompt, new, "France"))
    assert scores.compared == 3
    assert forced_scores(model, tokenizer, [without], asked).success == {}


def test_an_answer_of_the_unedited_model_counts_by_its_own_tokens(loaded: Any) -> None:
    """Its text may be tokenised otherwise, such as a word without the blank before it."""
    tokenizer = loaded[1]
    prompt = "The capital of France is"
    (last,) = tokenizer(prompt)["input_ids"][-1:]
    word = next(
        token
        for token in range(300, len(tokenizer))
        if (text := tokenizer.decode([token])).isalpha()
        and token not in tokenizer(f"{prompt} {text}")["input_ids"]
    )
    table = torch.zeros(len(tokenizer), len(tokenizer))
    table[last, word] = 1.0
    tokens = (word, tokenizer.eos_token_id)
    asked = [Question(prompt, tokenizer.decode([word]), "locality:x", 0, (), tokens)]
    case = EvaluationCase(EditRequest(prompt, "Lima"))
    model: Any = Bigram(table)
    scores = forced_scores(model, tokenizer, [case], asked)
    assert scores.token_accuracy == {"specificity": 100.0}


def test_a_target_that_is_asked_for_twice_is_run_once(
    loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A neighbour's own answer is the old one too, and an edit's target the new one."""
    edit = EditRequest("The capital of France is", "Lima", "France")
    asked = [
        Question(edit.prompt, "Lima", "reliability", 0),
        Question("The capital of Peru is", "Oslo", "locality:neighbour", 0, ("Paris",)),
    ]
    rows: list[int] = []

    def counted(model: Any, examples: Any) -> Any:
        rows.append(len(examples))
        return forced_logits(model, examples)

    monkeypatch.setattr("meg_editor.evaluation.forced.forced_logits", counted)
    scores = forced_scores(*loaded, [EvaluationCase(edit, truth="Paris")], asked)
    assert scores.compared == 2
    assert sum(rows) == 4  # two prompts, each with the new and the old answer


def test_an_empty_old_answer_is_none(loaded: Any) -> None:
    edit = EditRequest("The capital of France is", "Lima")
    asked = [Question(edit.prompt, "Lima", "reliability", 0)]
    assert forced_scores(*loaded, [EvaluationCase(edit, truth="")], asked).compared == 0


def test_facts_count_alike_however_many_paraphrases_they_have(loaded: Any) -> None:
    edits = [EditRequest("The capital of France is", "Paris"), EditRequest("Emma is by", "Oslo")]
    asked = [Question(edits[0].prompt, "Paris", "generality", 0)]
    asked += [Question(text, "Zzz", "generality", 1) for text in ("Emma is by", "Emma:", "Emma?")]
    scores = forced_scores(*loaded, [EvaluationCase(edit) for edit in edits], asked)
    assert scores.token_accuracy["generality"] == pytest.approx(50, abs=17)


def test_a_memory_answers_under_teacher_forcing_as_it_decides(loaded: Any, cases: Any) -> None:
    """An edit's own target is likelier with it than without it."""
    prompts = [case.request.prompt for case in cases]
    targets = [case.request.target_new for case in cases]
    reader = PromptReader(loaded[1])
    _, before = likelihoods(*loaded, prompts, targets, reader)
    hparams = HoReNHyperParams(layers=[2])
    with edited(sequential(method("horen", hparams), 1), *loaded, cases) as model:
        accuracy, after = likelihoods(model, loaded[1], prompts, targets, reader)
    assert all(b > a for a, b in zip(before, after, strict=True)) and min(accuracy) == 1


# ---------------------------------------------------------------- natural answers


def test_a_natural_answer_is_cut_at_no_target() -> None:
    asked = [
        Question("p", "Lima", "reliability", 0),
        Question("q", "Lima", "reliability", 1),
        Question("r", "Lima in Peru", "generality", 0),
        Question("s", "Oslo", "locality:x", 0),
        Question("t", "Lima", "trap:negated", 0),
    ]
    answers = ["Lima.", "Lima, I think", "Peru", "Oslo", "Rome"]
    assert natural_scores(asked, [q.target for q in asked], answers) == {
        "reliability": {"exact": 50.0, "tokens": 100.0},
        "generality": {"exact": 0.0, "tokens": pytest.approx(100 / 3)},
        "locality": {"exact": 100.0, "tokens": 100.0},
    }


@pytest.mark.parametrize(("answer", "share"), [("", 100.0), ("Lima Lima", 0.0)])
def test_where_nothing_was_answered_nothing_is_to_be(answer: str, share: float) -> None:
    scores = natural_scores([Question("s", "", "locality:x", 0)], [""], [answer])
    assert scores == {"locality": {"exact": share, "tokens": share}}


def test_natural_answers_are_those_of_the_model_alone(loaded: Any, cases: Any) -> None:
    prompts = [case.request.prompt for case in cases]
    reader = PromptReader(loaded[1])
    expected = greedy_answers(*loaded, prompts, NATURAL_TOKENS)
    assert natural_answers(*loaded, prompts, reader) == expected
    hparams = RetrievalHyperParams(encoder_name=ENCODER, threshold=2.0)  # no edit is near enough
    with edited(method("retrieval", hparams), *loaded, cases) as model:
        assert natural_answers(model, loaded[1], prompts, reader) == expected
