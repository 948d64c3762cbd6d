"""The benchmark: fair, resumable, open to methods of others."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import meg_editor
from meg_editor import MeGHyperParams, load_model
from meg_editor.benchmark import Benchmark, Method, edited, resolve_method, run_benchmark
from meg_editor.benchmark.cell import Cell, json_types, read_cells
from meg_editor.benchmark.methods import package_digest
from meg_editor.benchmark.pool import only_wrong
from meg_editor.benchmark.tables import markdown
from meg_editor.benchmark.weights import WeightSnapshot
from meg_editor.cli.main import main
from meg_editor.data.cases import EvaluationCase
from meg_editor.data.relations import Relations
from meg_editor.data.splits import Split
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import edit_cases
from meg_editor.evaluation import questions_of
from meg_editor.evaluation.cost import latency, peak_memory, reset_peak_memory
from meg_editor.lm.answers import greedy_answers
from meg_editor.lm.fingerprint import fingerprint
from meg_editor.requests.prompts import PromptReader
from meg_editor.requests.request import EditRequest
from meg_editor.runtime.artifacts import ArtifactStore

HEAD = "model.norm.weight"


@pytest.fixture(scope="module")
def hparams() -> MeGHyperParams:
    """The default but for what takes long: what is tested here is not how well it edits."""
    return MeGHyperParams.preset(
        "default", device="cpu", generator="bank", gate_threshold=0.8, encoder_steps=30
    )


@pytest.fixture(scope="module")
def loaded(hparams: MeGHyperParams) -> Iterator[tuple[Any, Any]]:
    model, tokenizer = load_model(hparams)
    before = fingerprint(model)
    yield model, tokenizer
    assert fingerprint(model) == before  # whatever the tests did


@pytest.fixture(scope="module")
def cases() -> list[EvaluationCase]:
    return edit_cases(load_world(), 12, seed=3)


def noisy(model: Any, tok: Any, requests: Any, hparams: Any, **kwargs: Any) -> Any:
    """Breaks the model, and tells what it was."""
    weight = model.get_parameter(HEAD)
    old = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(-1)
    return model, {HEAD: old} if hparams != "forgetful" else {}


def test_a_method_gets_the_edits_and_nothing_that_judges_them(
    loaded: tuple[Any, Any], cases: list[EvaluationCase]
) -> None:
    seen: dict[str, Any] = {}

    def spy(model: Any, tok: Any, requests: Any, hparams: Any, **kwargs: Any) -> Any:
        seen.update(requests=requests, hparams=hparams, **kwargs)
        return model, {}

    with edited(Method("spy", spy, {"a": 1}), *loaded, cases, seed=5) as model:
        assert model is loaded[0]
    assert [set(request) for request in seen["requests"]] == [
        {"prompt", "target_new", "subject", "ground_truth"}
    ] * len(cases)
    assert (seen["hparams"], seen["copy"], seen["seed"]) == ({"a": 1}, False, 5)
    shown = json.dumps(seen["requests"])
    assert not any(text in shown for case in cases for text in case.paraphrases)


def test_weights_are_restored_bit_for_bit(
    loaded: tuple[Any, Any], cases: list[EvaluationCase]
) -> None:
    before = fingerprint(loaded[0])
    with edited(Method("noisy", noisy), *loaded, cases):
        assert [n for n, v in fingerprint(loaded[0]).items() if v != before[n]] == [HEAD]
    assert fingerprint(loaded[0]) == before
    with pytest.raises(ZeroDivisionError), edited(Method("noisy", noisy), *loaded, cases):
        1 / 0  # noqa: B018
    assert fingerprint(loaded[0]) == before


def failing(model: Any, tok: Any, requests: Any, hparams: Any, **kwargs: Any) -> Any:
    """Changes two weights, asks for gradients and fails half-way."""
    for name in (HEAD, "model.layers.0.mlp.down_proj.weight"):
        weight = model.get_parameter(name).requires_grad_(True)
        with torch.no_grad():
            weight.add_(1)
    raise FloatingPointError("half-way")


def test_weights_are_restored_where_apply_fails_half_way(
    loaded: tuple[Any, Any], cases: list[EvaluationCase]
) -> None:
    before = fingerprint(loaded[0])
    with (
        pytest.raises(FloatingPointError, match="half-way"),
        edited(Method("failing", failing), *loaded, cases),
    ):
        raise AssertionError("not reached")
    assert fingerprint(loaded[0]) == before
    assert not any(parameter.requires_grad for parameter in loaded[0].parameters())


def test_a_snapshot_sees_and_restores_every_bit(tiny_llama: Any) -> None:
    snapshot, before = WeightSnapshot(tiny_llama), fingerprint(tiny_llama)
    name, weight = next(iter(tiny_llama.named_parameters()))
    with torch.no_grad():
        weight[1, 0], weight[1, 1] = weight[1, 1].clone(), weight[1, 0].clone()  # the same sum
    assert fingerprint(tiny_llama) != before and snapshot.changed() == [name]
    assert snapshot.restore() == [name] and snapshot.changed() == []
    assert fingerprint(tiny_llama) == before


def test_weights_which_are_not_handed_back_are_noticed(
    loaded: tuple[Any, Any], cases: list[EvaluationCase]
) -> None:
    old = loaded[0].get_parameter(HEAD).detach().clone()
    with (
        pytest.raises(RuntimeError, match=f"noisy left 1 weights .* such as {HEAD}"),
        edited(Method("noisy", noisy, "forgetful"), *loaded, cases),
    ):
        pass
    assert torch.equal(loaded[0].get_parameter(HEAD), old)


def test_mode_and_hooks_of_one_method_do_not_reach_the_next(
    loaded: tuple[Any, Any], cases: list[EvaluationCase]
) -> None:
    """A model left in training mode answered with dropout, in that cell and all later ones."""
    model = loaded[0]
    head = model.get_submodule("lm_head")
    mine = head.register_forward_hook(lambda *_: None)
    hooks = dict(head._forward_hooks)

    def careless(model: Any, tok: Any, requests: Any, hparams: Any, **kwargs: Any) -> Any:
        head.register_forward_hook(lambda *_: torch.zeros(1))
        head.register_forward_pre_hook(lambda *_: None)
        return model.train(), {}

    with edited(Method("careless", careless), *loaded, cases) as result:
        assert not any(module.training for module in result.modules())
        assert len(head._forward_hooks) == 2  # it edits by hooks
    assert head._forward_hooks == hooks and not head._forward_pre_hooks
    mine.remove()
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("given", [None, "model", ("model", "weights"), ("model",)])
def test_what_apply_has_to_return_is_said(
    loaded: tuple[Any, Any], cases: list[EvaluationCase], given: Any
) -> None:
    method = Method("mine", lambda *_, **__: given)
    with (
        pytest.raises(TypeError, match="mine: expected apply to return the edited model.*got"),
        edited(method, *loaded, cases),
    ):
        pass


def test_methods_are_found_by_name_and_in_files(tmp_path: Path, hparams: MeGHyperParams) -> None:
    paper = MeGHyperParams.preset("paper")
    assert resolve_method("meg-paper", hparams, paper).hparams == paper
    assert resolve_method("meg-mlp", hparams, paper).hparams.generator == "mlp"
    path = tmp_path / "own.py"
    path.write_text("hparams = 3\ndef apply_to_model(model, *_, **__):\n    return model, {}\n")
    method = resolve_method(f"mine={path}", hparams, paper)
    assert (method.name, method.hparams, method.apply(1)) == ("mine", 3, (1, {}))
    path.write_text("")
    for name, message in (
        ("rome", "expected all, unedited, meg, .* got 'rome'"),
        (f"mine={path}", "has no function apply_to_model"),
        ("mine=nowhere.py", "there is no file nowhere.py"),
    ):
        with pytest.raises(ValueError, match=message):
            resolve_method(name, hparams, paper)


def test_the_documented_example_is_a_method(
    loaded: tuple[Any, Any], cases: list[EvaluationCase], hparams: MeGHyperParams
) -> None:
    path = Path(__file__).parents[1] / "examples" / "own_method.py"
    method = resolve_method(f"ft={path}", hparams, hparams)
    before = fingerprint(loaded[0])
    with edited(method, *loaded, cases) as tuned:
        after = fingerprint(tuned)
        changed = [name for name in before if after[name] != before[name]]
        answers = greedy_answers(tuned, loaded[1], [c.request.prompt for c in cases], 12)
    assert {name.rpartition(".")[0].rpartition(".")[0] for name in changed} == {
        "model.layers.0.mlp"
    }
    correct = [a == c.request.target_new for a, c in zip(answers, cases, strict=True)]
    assert sum(correct) >= 0.9 * len(cases)


def test_facts_which_the_model_knows_that_way_are_not_edited(
    loaded: tuple[Any, Any], cases: list[EvaluationCase], hparams: MeGHyperParams
) -> None:
    known = [
        dataclasses.replace(c, request=dataclasses.replace(c.request, target_new=f"{c.truth}."))
        for c in cases[:3]
    ]
    assert only_wrong([*known, *cases], *loaded, hparams) == cases


def test_which_facts_a_model_knows_depends_on_where_its_answers_end(
    loaded: tuple[Any, Any], cases: list[EvaluationCase], hparams: MeGHyperParams, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path)
    model, tokenizer = loaded
    true = [dataclasses.replace(case.request, target_new=case.truth or "") for case in cases]
    known = [dataclasses.replace(c, request=r) for c, r in zip(cases, true, strict=True)]
    assert only_wrong(known, model, tokenizer, hparams, store) == []
    other = copy.deepcopy(tokenizer)
    other.eos_token = tokenizer.convert_ids_to_tokens(9)
    ends = copy.copy(model)
    ends.generation_config = copy.deepcopy(model.generation_config)
    ends.generation_config.eos_token_id = other.eos_token_id
    assert only_wrong(known, ends, other, hparams, store) != []


def test_a_run_that_goes_on_asks_for_no_fact_anew(
    loaded: tuple[Any, Any],
    cases: list[EvaluationCase],
    hparams: MeGHyperParams,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = ArtifactStore(tmp_path)
    assert only_wrong(cases, *loaded, hparams, store) == cases
    template = hparams.changed(prompt_template="Q: {}")
    monkeypatch.setattr("meg_editor.benchmark.pool.batched_answers", None)
    assert only_wrong(cases, *loaded, hparams, ArtifactStore(tmp_path)) == cases
    with pytest.raises(TypeError):
        only_wrong(cases, *loaded, template, store)


@pytest.fixture(scope="module")
def benchmark(cases: list[EvaluationCase], hparams: MeGHyperParams) -> Benchmark:
    world = load_world()
    other = tuple(edit_cases(world, 40, seed=9))
    methods = [
        Method("unedited", lambda model, *_, **__: (model, {})),
        resolve_method("meg", hparams, hparams),
        Method("noisy", noisy),
    ]
    split = Split(tuple(cases), other[:20], other[20:])
    return Benchmark("reference", split, methods, (8,), 2, hparams=hparams, timed=2)


@pytest.fixture(scope="module")
def cells(
    benchmark: Benchmark, loaded: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Cell], Path]:
    out = tmp_path_factory.mktemp("benchmark")
    return run_benchmark(benchmark, *loaded, out, report=lambda _: None), out


def test_every_method_answers_the_same_questions(cells: Any) -> None:
    result = {(cell.method, cell.seed): cell for cell in cells[0]}
    assert set(result) == {(m, s) for m in ("unedited", "meg", "noisy") for s in (0, 1)}
    for seed in (0, 1):
        unedited, meg, broken = (result[name, seed] for name in ("unedited", "meg", "noisy"))
        assert unedited.reliability.ag == 0 and unedited.locality.ag == 100
        assert meg.reliability.ag == 100 and meg.oracle_generality > 80
        assert meg.intervals["reliability.ag"] == (100, 100)
        assert broken.locality.ag < 50 and broken.score == 0
        assert set(unedited.retained_by_kind.values()) == {100.0}
        assert max(broken.retained_by_kind.values()) < 50
        assert meg.bytes_per_edit > 0 == broken.bytes_per_edit
        assert meg.near_duplicates.contradictory <= meg.near_duplicates.pairs
        assert sum(meg.gate_scores.reliability) == 8 and unedited.gate_scores is None
        assert meg.gate_scores.measure == "probability"
        assert meg.gate_scores.threshold == pytest.approx(0.8)  # and not 0.82, of the index
        # Where a question names the target, even the unedited model may repeat it.
        traps = unedited.trapped_by_kind
        assert set(traps) == {"counter-asked", "negated", "same subject"}
        assert traps["negated"] == traps["same subject"] == 0
        assert meg.trapped_by_kind["negated"] == 0  # the verifier reads the word that differs
        assert meg.trapped_by_kind["same subject"] < 100
        assert unedited.perplexity <= meg.perplexity < broken.perplexity
        assert unedited.fluency > 0 and meg.long_answers is None and meg.multi_hop is None
        assert meg.settings["generator"] == "bank" and "api_key" not in meg.settings
        for cell in (unedited, meg, broken):
            assert cell.latency["edited"].p95 >= cell.latency["edited"].p50 > 0


def test_a_rerun_measures_nothing_again(
    cells: Any, benchmark: Benchmark, loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr("meg_editor.benchmark.measure.edited", never)
    again = dataclasses.replace(benchmark)
    assert run_benchmark(again, *loaded, cells[1], report=lambda _: None) == cells[0]
    other = dataclasses.replace(again, edits=(7,))
    with pytest.raises(AssertionError, match="measured again"):
        run_benchmark(other, *loaded, cells[1], report=lambda _: None)


def own_method(path: Path, scale: float) -> Method:
    path.write_text(
        "def apply_to_model(model, tok, requests, hparams, **kwargs):\n"
        f"    weight = model.get_parameter({HEAD!r})\n"
        "    old = weight.detach().clone()\n"
        f"    weight.data.mul_({scale})\n"
        f"    return model, {{{HEAD!r}: old}}\n"
    )
    preset = MeGHyperParams.preset("default", device="cpu")
    return resolve_method(f"mine={path}", preset, preset)


def test_an_edited_method_is_measured_anew(
    benchmark: Benchmark, loaded: tuple[Any, Any], tmp_path: Path
) -> None:
    """An own_method.py with the same name and settings but other code."""
    path, cells = tmp_path / "own.py", []
    for scale in (1.0, -1.0, 1.0):
        one = dataclasses.replace(benchmark, methods=[own_method(path, scale)], seeds=1)
        cells += run_benchmark(one, *loaded, tmp_path, report=lambda _: None)
    same, broken, again = cells
    assert same.locality.ag == 100 > broken.locality.ag
    assert same.key == again.key != broken.key


def test_another_model_of_the_same_name_is_measured_anew(
    benchmark: Benchmark, loaded: tuple[Any, Any], tmp_path: Path
) -> None:
    one = dataclasses.replace(benchmark, methods=benchmark.methods[:1], seeds=1)
    (before,) = run_benchmark(one, *loaded, tmp_path, report=lambda _: None)
    weight = loaded[0].get_parameter(HEAD)
    snapshot = WeightSnapshot(loaded[0])
    with torch.no_grad():
        weight.mul_(1.5)
    try:
        (after,) = run_benchmark(one, *loaded, tmp_path, report=lambda _: None)
    finally:
        assert snapshot.restore() == [HEAD]
    assert before.key != after.key and before.perplexity != after.perplexity


RESULTS = sorted((Path(__file__).parents[1] / "examples" / "results").glob("*/*/report.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: "-".join(path.parts[-3:-1]))
def test_saved_reports_are_read_and_written_as_they_are(path: Path) -> None:
    stored = json.loads(path.read_text("utf-8"))["cells"]
    cells = read_cells(path)
    assert len(cells) == len(stored) > 0 and "| Method |" in markdown(cells)
    for cell, values in zip(cells, stored, strict=True):
        values["already_correct"] = values.pop("already_answered", values.get("already_correct"))
        written = cell.to_dict()
        assert all(written.get(name) == value for name, value in values.items())
        assert Cell.from_dict(written) == cell


def test_a_cell_names_what_is_missing_or_unknown(cells: Any) -> None:
    values = cells[0][0].to_dict()
    with pytest.raises(ValueError, match=r"missing \['score'\], unknown \['scores'\]"):
        Cell.from_dict({("scores" if k == "score" else k): v for k, v in values.items()})
    with pytest.raises(ValueError, match="expected the report.json of a benchmark"):
        read_cells(Path(__file__).with_name("nowhere.json"))


def test_a_sample_of_the_edits_is_evaluated_while_all_are_applied(
    cells: Any,
    benchmark: Benchmark,
    loaded: tuple[Any, Any],
    hparams: MeGHyperParams,
    tmp_path: Path,
) -> None:
    reader = PromptReader(loaded[1], hparams.prompt_template)
    edits = benchmark.split.edited[:8]
    every = questions_of(*loaded, edits, reader, traps=Relations(edits))
    some = questions_of(*loaded, edits, reader, traps=Relations(edits), only={1, 6})
    assert some == [q for q in every if q.edit in {1, 6}] and {q.edit for q in some} == {1, 6}

    few = dataclasses.replace(benchmark, max_asked=3, seeds=1, methods=benchmark.methods[1:2])
    (cell,) = run_benchmark(few, *loaded, tmp_path, report=lambda _: None)
    assert cell.gate_scores and cell.gate
    assert (cell.edits, cell.asked, sum(cell.gate_scores.reliability)) == (8, 3, 3)
    assert cell.reliability.ag == 100 and cell.gate.misrouted == 0
    assert "8 edits, 3 of them asked, 1 seed (percent)" in markdown([cell])
    whole = next(c for c in cells[0] if (c.method, c.seed) == ("meg", 0))
    assert whole.asked == 8 and whole.key != cell.key
    many = dataclasses.replace(few, max_asked=99)
    (cell,) = run_benchmark(many, *loaded, tmp_path, report=lambda _: None)
    assert cell.key == whole.key and "of them asked" not in markdown([cell])
    with pytest.raises(ValueError, match="at least 1 edit to ask about, got 0"):
        run_benchmark(dataclasses.replace(few, max_asked=0), *loaded, tmp_path)


def test_one_trap_asks_something_else_about_the_subject_and_never_another_edit(
    loaded: tuple[Any, Any], hparams: MeGHyperParams
) -> None:
    templates = ["{} was born in", "{} works as", "The wife of {} is"]

    def fact(template: str, subject: str) -> EvaluationCase:
        return EvaluationCase(EditRequest(template.format(subject), " x", subject))

    def trap_prompts(cases: Sequence[EvaluationCase]) -> dict[int, str]:
        relations = Relations([fact(template, "Bo") for template in templates])
        reader = PromptReader(loaded[1], hparams.prompt_template)
        result = questions_of(*loaded, cases, reader, traps=relations)
        traps = [q for q in result if q.kind == "trap:same subject"]
        assert all(q.answers == ("x",) for q in traps)
        return {q.edit: q.prompt for q in traps}

    alone = trap_prompts([fact(templates[0], "Ann"), fact(templates[1], "Al")])
    assert alone[0] in {"Ann works as", "The wife of Ann is"}
    assert alone[1] in {"Al was born in", "The wife of Al is"}
    both = trap_prompts([fact(templates[0], "Ann"), fact(templates[1], "Ann")])
    assert set(both.values()) <= {"The wife of Ann is"}
    assert not trap_prompts([fact(template, "Ann") for template in templates])


def test_what_a_data_set_does_not_ask_is_null() -> None:
    assert json_types({"a": [float("nan"), 1.0], "b": ("x", None)}) == {
        "a": [None, 1.0],
        "b": ["x", None],
    }


def test_tables_give_mean_and_spread(cells: Any) -> None:
    text = markdown(cells[0])
    row = next(line for line in text.splitlines() if line.startswith("| meg |"))
    assert row.split("|")[2].strip() == "100.0 ± 0.0"
    assert "| unedited | 0.0 ± 0.0 |" in text and "Oracle gen" in text and "tokens/s" in text


def test_the_overview_puts_the_best_at_the_most_edits_first(cells: Any) -> None:
    def cell(method: str, edits: int, score: float) -> Cell:
        return dataclasses.replace(cells[0][0], method=method, edits=edits, score=score)

    more = [cell("a", 1024, 70.0), cell("b", 64, 90.0), cell("a", 64, 99.0), cell("b", 1024, 80.0)]
    more += [cell("a", 1024, 72.0), cell("c", 64, 75.0), cell("d", 64, float("nan"))]
    lines = markdown(more).splitlines()
    assert lines[0] == "### reference, Score over the number of edits (percent)"
    assert lines[2:8] == [
        "| Method | 64 | 1,024 |",
        "|---|--:|--:|",
        "| b | 90.0 | 80.0 |",
        "| c | 75.0 | - |",
        "| a | 99.0 | 71.0 ± 1.4 |",
        "",
    ]
    assert "over the number of edits" not in markdown(cells[0])


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset here"
)
def test_the_peak_of_memory_is_of_what_ran_since_its_reset() -> None:
    """Rows of a table do not depend on what was measured before them."""
    big = 400_000_000
    torch.ones(big // 4)
    reset_peak_memory("cpu")
    before = peak_memory("cpu")
    torch.ones(big // 8)
    after = peak_memory("cpu")
    assert big / 4 < after - before < big * 3 / 4
    reset_peak_memory("cpu")
    assert peak_memory("cpu") < after - big / 4
    # Small blocks stay with the process when they are freed, under one that is in use.
    torch.ones(2**20)  # freed: blocks of its size are no mappings of their own from now on
    blocks = [torch.ones(2**18) for _ in range(128)]
    last = torch.ones(2**18)
    del blocks
    reset_peak_memory("cpu")
    assert peak_memory("cpu") < before + last.nbytes + big / 4


def test_the_digest_of_the_package_is_of_what_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("routing", "cli"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "code.py").write_text("1", "utf-8")
    monkeypatch.setattr(meg_editor, "__file__", str(tmp_path / "__init__.py"))
    first = package_digest()
    (tmp_path / "cli" / "code.py").write_text("2", "utf-8")
    assert package_digest() == first
    (tmp_path / "routing" / "weights.safetensors").write_bytes(b"3")
    assert package_digest() != first


def test_latency_counts_the_tokens_it_asks_for(loaded: tuple[Any, Any], monkeypatch: Any) -> None:
    """And transformers has no warning for them, as where two shortest lengths are given."""
    model, tokenizer = loaded
    lengths = []
    said: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    monkeypatch.setattr(handler, "emit", said.append)
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [handler])
    real = model.generate

    def generate(**kwargs: Any) -> Any:
        lengths.append(real(**kwargs).shape[1] - kwargs["input_ids"].shape[1])

    monkeypatch.setattr(model, "generate", generate)
    result = latency(model, tokenizer, ["Where was she born?", "He"], new_tokens=6, warm_up=1)
    assert lengths == [6, 6, 6] and result.tokens_per_second > 0
    assert not said


def test_the_command_writes_a_report(tmp_path: Path, capsys: Any) -> None:
    """Eight made-up facts in EasyEdit's schema, on the reference model."""
    rows = [
        {
            "prompt": case.request.prompt,
            "target_new": case.request.target_new,
            "subject": case.request.subject,
            "rephrase_prompt": case.paraphrases[0],
            "locality_prompt": case.locality["unrelated"][0].prompt,
        }
        for case in edit_cases(load_world(), 60, seed=4)
    ]
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(rows), "utf-8")
    command = ["benchmark", "--data", "wikibigedit", "--path", str(path), "--edits", "8"]
    command += ["--methods", "unedited,meg-bank", "--seeds", "1", "--device", "cpu"]
    command += ["--set", "gate_threshold=0.8", "--set", "encoder_steps=30"]
    command += ["--out", str(tmp_path / "out")]
    assert main(command) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert [cell["method"] for cell in report["cells"]] == ["unedited", "meg-bank"]
    assert report["cells"][1]["reliability"]["ag"] == 100
    assert (tmp_path / "out" / "report.md").read_text("utf-8") in capsys.readouterr().out
    assert main([*command[:2], "nothing", *command[3:]]) == 2
    assert "--data: expected one of reference, counterfact" in capsys.readouterr().err
