"""Facts in prompt forms: files of forms, rendered prompts, right decisions and answers, reports."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from meg_editor import EditRequest, load_model
from meg_editor.baselines.core.decision import Decision
from meg_editor.baselines.horen import HoReNHyperParams, apply_horen_to_model
from meg_editor.baselines.retrieval import RetrievalHyperParams, apply_retrieval_to_model
from meg_editor.baselines.scen import SCENHyperParams, apply_scen_to_model
from meg_editor.benchmark import Benchmark, Method, run_benchmark
from meg_editor.benchmark.cell import Cell
from meg_editor.benchmark.report import write_report
from meg_editor.cli.demo import run_demo
from meg_editor.cli.main import main
from meg_editor.config.hparams import MeGHyperParams
from meg_editor.data.cases import EvaluationCase, Probe
from meg_editor.data.loaders.forms import load_forms
from meg_editor.data.prompt_forms import PromptForm
from meg_editor.data.splits import Split
from meg_editor.data.world.facts import load_world
from meg_editor.data.world.requests import edit_cases
from meg_editor.evaluation.forms import (
    FormPrompt,
    FormScores,
    evaluate_forms,
    form_prompts,
    form_texts,
    rendered,
    sampled_facts,
)
from meg_editor.evaluation.metrics import mentions
from meg_editor.lm.answers import greedy_answers
from meg_editor.model.routed_model import RoutedModel
from meg_editor.requests.request import RequestError

CHATML = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}"
    "{{ raise_exception('no tools') }}{% endif %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEXTS = {
    "p": "The capital of France is",
    "q": "What is the capital of France?",
    "s": "France",
    "other": "Who wrote Emma?",
    "a": "Lima",
    "b": "Paris",
}


def form(template: str, *turns: tuple[str, str], mode: Any = "gen") -> PromptForm:
    return PromptForm("form", "kind", "edit", template, turns, mode)


# ----------------------------------------------------------------------------------- rendering


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("{p}", "The capital of France is"),
        ("  {q}\n", "  What is the capital of France?\n"),
        ("{q!noq}, {s}?", "What is the capital of France, France?"),
        ("{q!u}", "WHAT IS THE CAPITAL OF FRANCE?"),
        ("Hey, {q!l}", "Hey, what is the capital of france?"),
        ("{p!dots}", "The capital of France is ..."),
        ("{p!not}", "The capital of France is not"),
        ("{q} Never mind. {other}", "What is the capital of France? Never mind. Who wrote Emma?"),
        ("Not {b} but {a}: {p}", "Not Paris but Lima: The capital of France is"),
        ('{q}\n\nJSON: {"answer": 1}', 'What is the capital of France?\n\nJSON: {"answer": 1}'),
    ],
)
def test_templates_are_filled(template: str, prompt: str, tiny_tokenizer: Any) -> None:
    assert rendered(form(template), TEXTS, tiny_tokenizer) == prompt


ASK = ("user", "{q}")
CHATS = [
    (
        form("", ASK),
        "<|user|>What is the capital of France?<|end|><|assistant|>",
        "User: What is the capital of France?\nAssistant:",
    ),
    (
        form("", ASK, mode="nogen"),
        "<|user|>What is the capital of France?<|end|>",
        "User: What is the capital of France?",
    ),
    (
        form("", ("system", "Be terse."), ("user", "{p}")),
        "<|system|>Be terse.<|end|><|user|>The capital of France is<|end|><|assistant|>",
        "System: Be terse.\nUser: The capital of France is\nAssistant:",
    ),
    (
        form("", ASK, ("assistant", "The answer is"), mode="continue"),
        "<|user|>What is the capital of France?<|end|><|assistant|>The answer is",
        "User: What is the capital of France?\nAssistant: The answer is",
    ),
    (
        form("", ASK, ("assistant", "No idea."), ("user", "{other}")),
        "<|user|>What is the capital of France?<|end|><|assistant|>No idea.<|end|>"
        "<|user|>Who wrote Emma?<|end|><|assistant|>",
        "User: What is the capital of France?\nAssistant: No idea.\nUser: Who wrote Emma?\n"
        "Assistant:",
    ),
]


@pytest.mark.parametrize(("chat", "in_template", "plain"), CHATS)
def test_chats_are_in_the_template_of_the_model_without_bos_or_plain(
    chat: PromptForm, in_template: str, plain: str, tiny_tokenizer: Any
) -> None:
    assert rendered(chat, TEXTS, tiny_tokenizer) == plain
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = CHATML
    assert rendered(chat, TEXTS, tokenizer) == in_template


def test_what_a_fact_or_a_chat_template_lacks_is_left_out(tiny_tokenizer: Any) -> None:
    assert rendered(form("{other} {p}"), {"p": "x"}, tiny_tokenizer) is None
    assert rendered(form("{q!not}"), {"q": "Who wrote Emma?"}, tiny_tokenizer) is None
    assert rendered(form("", ("user", "{q!not}")), {"q": "Who wrote it?"}, tiny_tokenizer) is None
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = CHATML
    assert rendered(form("", ("tool", "4"), ASK), TEXTS, tokenizer) is None


def case(prompt: str, target: str = "Lima", **fields: Any) -> EvaluationCase:
    return EvaluationCase(EditRequest(prompt, target, fields.pop("subject", None)), **fields)


def test_the_texts_of_facts() -> None:
    zsre = case("Who wrote Emma?", subject="Emma", truth="Jane Austen")
    assert form_texts(zsre) == {
        "q": "Who wrote Emma?",
        "s": "Emma",
        "a": "Lima",
        "b": "Jane Austen",
    }
    assert form_texts(case("Emma is by")) == {"p": "Emma is by", "a": "Lima"}
    probes = {"x": (Probe("Ulysses is by"),), "y": (Probe("Who wrote It?"), Probe("Who ran?"))}
    both = case("Who wrote Emma?", statement="Emma is by", question="By whom?", locality=probes)
    texts = form_texts(both)
    assert (texts["p"], texts["q"]) == ("Emma is by", "Who wrote Emma?")
    assert texts["other"] in ("Who wrote It?", "Who ran?")
    assert form_texts(both)["other"] == texts["other"]  # the same in every run
    assert form_texts(both, {"who wrote it"})["other"] == "Who ran?"


def test_facts_of_the_world_have_both_a_statement_and_a_question() -> None:
    for fact in edit_cases(load_world(), 60, seed=2):
        texts = form_texts(fact)
        assert texts["q"].endswith("?") and not texts["p"].endswith("?")
        assert fact.request.prompt in (texts["p"], texts["q"])
        assert "statement" not in repr(fact)  # finished cells of a benchmark stay valid


def test_the_sample_of_facts_is_fixed() -> None:
    some = sampled_facts(set(range(500)), seed=1)
    assert len(set(some)) == 64 and some == sorted(some) == sampled_facts(range(500), seed=1)
    assert some != sampled_facts(range(500), seed=2)
    assert sampled_facts({5, 3}) == [3, 5] and sampled_facts([]) == []


# ------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize(
    ("answer", "target", "right"),
    [
        ("Lima", "Lima", 1),
        ("The capital is LIMA, I think", "Lima.", 1),
        ("Limassol", "Lima", 0),
        ("C++ it is", "C++", 1),
        ("New\nYork", "New York", 1),
        ("13", "3", 0),
        ("", "Lima", 0),
    ],
)
def test_an_answer_is_right_with_the_target_in_it(answer: str, target: str, right: int) -> None:
    assert mentions(answer, target) == right


class Fake:
    """Routes by given decisions."""

    def __init__(self, edits: dict[str, int]) -> None:
        self.edits = edits

    def route(self, texts: Sequence[str]) -> list[Decision]:
        return [Decision(text in self.edits, self.edits.get(text, 0), 0.5) for text in texts]


def test_decisions_and_answers_are_counted_by_kind(
    tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [
        FormPrompt("a", "plain", 0, True, "Lima"),  # routed to edit 0, answered
        FormPrompt("b", "plain", 1, True, "tea"),  # routed to another edit, answered otherwise
        FormPrompt("c", "plain", 2, True, "Oslo"),  # not routed, answered
        FormPrompt("d", "mention", 0, False, "old"),  # not routed, unchanged
        FormPrompt("e", "mention", 1, False, "old"),  # routed, changed
        FormPrompt("f", "mention", 2, False, "old"),  # not routed, changed
        FormPrompt("g", "mention", 2, False, "old"),  # not routed, unchanged
    ]
    said = dict(
        zip("abcdefg", ("Lima", "teas", "In Oslo", "old", "x", "older", "old"), strict=True)
    )
    limits: list[tuple[list[str], int]] = []

    def answers(model: Any, tokenizer: Any, texts: list[str], length: int) -> list[str]:
        limits.append((texts, length))
        return [said[text] for text in texts]

    monkeypatch.setattr("meg_editor.evaluation.forms.batched_answers", answers)
    model: Any = Fake({"a": 0, "b": 0, "e": 1})
    scores = evaluate_forms(model, tiny_tokenizer, prompts)
    assert scores.decisions == {"plain": pytest.approx(100 / 3), "mention": 75.0}
    assert scores.answers == {"plain": pytest.approx(200 / 3), "mention": 50.0}
    assert limits == [(["a", "b", "c"], 12), (["d", "e", "f", "g"], 12)]
    unrouted: Any = object()
    assert evaluate_forms(unrouted, tiny_tokenizer, prompts).decisions is None
    long = [FormPrompt("a", "plain", 0, True, "x" * 40)]
    evaluate_forms(unrouted, tiny_tokenizer, long)
    assert limits[-2][1] > 12
    assert scores.to_dict() == {"forms": scores.decisions, "forms_answers": scores.answers}


def test_prompts_know_their_edit_and_the_unedited_answer(
    tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    forms = [
        PromptForm("1", "plain", "edit", "{p}"),
        PromptForm("2", "mention", "none", "Rewrite: {p}"),
        PromptForm("3", "plain", "edit", "{q}"),
    ]
    facts = [case("Emma is by", "Joyce"), case("Ulysses is by", "Austen"), case("Who ran?", "Bo")]
    prompts = form_prompts(tiny_llama, tiny_tokenizer, facts, forms, only={1, 2})
    texts = ["Rewrite: Ulysses is by"]
    (unedited,) = greedy_answers(tiny_llama, tiny_tokenizer, texts, 12)
    assert prompts == [
        FormPrompt("Ulysses is by", "plain", 1, True, "Austen"),
        FormPrompt("Rewrite: Ulysses is by", "mention", 1, False, unedited),
        FormPrompt("Who ran?", "plain", 2, True, "Bo"),
    ]
    scores = evaluate_forms(tiny_llama, tiny_tokenizer, prompts)
    assert scores == FormScores(None, {"plain": 0.0, "mention": 100.0})


def test_rivals_which_decide_tell_what_they_decided() -> None:
    model, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
    edits = [fact.request for fact in edit_cases(load_world(), 8, seed=1)]
    prompts = [edit.prompt for edit in edits]
    queries = [*prompts, "The opposite of hot is", "Water"]

    horen, _ = apply_horen_to_model(model, tokenizer, edits, HoReNHyperParams(layers=[2]))
    decisions = horen.route(queries)
    assert [row.edit for row in decisions if row.is_edit][:8] == list(range(8))
    before = greedy_answers(model, tokenizer, queries, 6)
    after = greedy_answers(horen, tokenizer, queries, 6)
    for row, old, new in zip(decisions, before, after, strict=True):
        assert row.is_edit or old == new

    hparams = RetrievalHyperParams(encoder_name="meg_editor:bert-reference", threshold=0.95)
    retrieval, _ = apply_retrieval_to_model(model, tokenizer, edits, hparams)
    decisions = retrieval.route(queries)
    assert [row.edit for row in decisions[:8]] == list(range(8))
    assert [row.is_edit for row in decisions] == [text != "" for text in retrieval.decide(queries)]

    scen, _ = apply_scen_to_model(model, tokenizer, edits, SCENHyperParams(layers=[2]))
    decisions, experts = scen.route(queries), scen.decide(queries)
    assert [row.is_edit for row in decisions] == experts.any(-1).tolist()
    for row, expert in zip(decisions, experts, strict=True):
        assert not row.is_edit or expert.equal(scen.experts[row.edit])


def test_horen_acts_at_the_end_of_a_prompt_whatever_stands_around_the_question() -> None:
    model, tokenizer = load_model(MeGHyperParams.preset("default", device="cpu"))
    edit = edit_cases(load_world(), 1, seed=1)[0].request
    hparams = HoReNHyperParams(layers=[2], hopfield_key_match_threshold=-1)
    horen, _ = apply_horen_to_model(model, tokenizer, [edit], hparams)
    lengths: list[list[int]] = []
    real = horen._apply_decision

    def apply(decision: Any) -> Any:
        lengths.append(decision.tolist())
        return real(decision)

    horen._apply_decision = apply
    prompts = [f"User: {edit.prompt}\nAssistant:", edit.prompt]
    greedy_answers(horen, tokenizer, prompts, 4)
    assert lengths == [[len(row) for row in tokenizer(prompts)["input_ids"]]]


# --------------------------------------------------------------------------------------- files

GOOD = {"id": "a", "split": "shared", "kind": "plain", "expect": "edit", "template": "{q}\n"}


def chat(turns: Any, mode: Any = "gen") -> dict[str, Any]:
    return {**GOOD, "template": "", "chat": {"turns": turns, "mode": mode}}


def test_forms_are_read(tmp_path: Path) -> None:
    path = tmp_path / "forms.json"
    path.write_text(json.dumps([GOOD, chat([["user", "{q}"]], "nogen")]), "utf-8")
    assert load_forms(path) == [
        PromptForm("a", "plain", "edit", "{q}\n"),
        PromptForm("a", "plain", "edit", "", (("user", "{q}"),), "nogen"),
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("[{", r"forms.json, line 1, column 3: not JSON"),
        ("{}", r"forms.json: expected a list of forms, got \{\}"),
        ([], r"expected a list of forms, got \[\]"),
        ([GOOD, 3], r"forms.json, entry 2: expected an object with fields, got 3"),
        (
            [{**GOOD, "expect": "yes"}],
            r"entry 1: field 'expect': expected one of edit, none.*'yes'",
        ),
        ([{**GOOD, "kind": None}], r"entry 1: field 'kind': expected text, got NoneType"),
        ([{"id": "a"}], r"entry 1: field 'kind' is missing \(found 'id'\)"),
        ([{**GOOD, "template": " "}], r"entry 1: field 'template': expected text"),
        ([GOOD, {**GOOD, "template": "{z}"}], r"entry 2: field 'template': .* \{p\}.*'\{z\}'"),
        ([{**GOOD, "template": "{t} {q}"}], r"fields \{p\}, \{q\}, .* got str \('\{t\}'\)"),
        ([{**GOOD, "template": "{q!up}"}], r"variants !u, !l, !noq, !dots, !not, .*'\{q!up\}'"),
        ([{**GOOD, "template": "{ q }"}], r"field 'template': .* got str \('\{ q \}'\)"),
        ([chat([["user", "{z}"]])], r"entry 1, chat: field 'turns': expected fields .*'\{z\}'"),
        ([chat([["user", "{q}"]], "end")], r"field 'mode': expected one of gen, nogen, continue"),
        ([chat([["user"]])], r"'turns': expected a list such as \[\[\"user\", \"\{q\}\"\]\]"),
        ([chat([])], r"field 'turns': expected a list"),
        ([chat([["user", "x"]], "continue")], r"expected an assistant's turn at the end"),
        ([{**GOOD, "chat": 3}], r"field 'chat': expected an object, got int \(3\)"),
    ],
)
def test_errors_say_what_was_expected_what_came_and_where(
    rows: Any, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "forms.json"
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows), "utf-8")
    with pytest.raises(RequestError, match=message):
        load_forms(path)


def test_a_file_which_is_none_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file: expected a JSON list of forms"):
        load_forms(tmp_path / "nowhere.json")
    with pytest.raises(IsADirectoryError, match="expected a file of forms"):
        load_forms(tmp_path)
    path = tmp_path / "forms.json"
    path.write_bytes(b"[\xff]")
    with pytest.raises(RequestError, match=r"forms.json: not UTF-8.*save the file as UTF-8"):
        load_forms(path)


# ------------------------------------------------------------------------------------ benchmark


class ByPrompt(RoutedModel):
    """Takes a text that begins with an edited prompt for that edit; answers are unchanged."""

    prompts: tuple[str, ...] = ()

    def route(self, texts: Sequence[str]) -> list[Decision]:
        found = [[i for i, p in enumerate(self.prompts) if text.startswith(p)] for text in texts]
        return [Decision(bool(rows), (rows or [0])[0], 1.0) for rows in found]

    def decide(self, queries: Sequence[str]) -> None:
        return None

    def _apply_decision(self, decision: Any) -> Any:
        return nullcontext()


def by_prompt(model: Any, tok: Any, requests: Any, hparams: Any, **kwargs: Any) -> Any:
    routed = ByPrompt(model, tok)
    routed.prompts = tuple(request["prompt"] for request in requests)
    return routed, {}


@pytest.fixture(scope="module")
def facts() -> tuple[EvaluationCase, ...]:
    rows = [("Atlantis", "tea"), ("Borduria", "ore"), ("Cimmeria", "salt")]
    return tuple(
        case(
            f"The capital of {place} is",
            target,
            subject=place,
            paraphrases=(f"Say: the capital of {place} is",),
            locality={"other": (Probe("Who wrote the book?"),)},
        )
        for place, target in rows
    )


FORMS = (
    PromptForm("1", "plain", "edit", "{p}"),
    PromptForm("2", "prefix", "edit", "Complete: {p}"),
    PromptForm("3", "mention", "none", "{p} Never mind. {other}"),
    PromptForm("4", "mention", "none", "Rewrite: {p}"),
    PromptForm("5", "question", "edit", "{q}"),  # which no fact has
)


@pytest.fixture
def benchmark(facts: tuple[EvaluationCase, ...]) -> Benchmark:
    methods = [Method("unedited", lambda model, *_, **__: (model, {})), Method("routed", by_prompt)]
    return Benchmark(
        "tiny", Split(facts, facts, facts), methods, (3,), 2, whole_pool=True, forms=FORMS, timed=1
    )


def test_a_benchmark_asks_in_forms_and_reports_them(
    benchmark: Benchmark, tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    cells = run_benchmark(benchmark, tiny_llama, tiny_tokenizer, tmp_path, report=lambda _: None)
    unedited, routed = (next(c for c in cells if c.method == m) for m in ("unedited", "routed"))
    answers = {"plain": 0.0, "prefix": 0.0, "mention": 100.0}
    assert unedited.forms is None and unedited.forms_answers == answers
    assert routed.forms == {"plain": 100.0, "prefix": 0.0, "mention": 50.0}
    assert routed.forms_answers == answers
    assert "forms" not in unedited.to_dict() and Cell.from_dict(routed.to_dict()) == routed

    write_report(cells, tmp_path)
    methods = json.loads((tmp_path / "report.json").read_text("utf-8"))["methods"]
    assert methods == {
        "unedited": {"forms": None, "forms_answers": answers},
        "routed": {"forms": routed.forms, "forms_answers": answers},
    }
    text = (tmp_path / "report.md").read_text("utf-8")
    decisions, _, rest = text.partition("right decisions, 3 edits\n\n")[2].partition("\n\n")
    assert decisions.splitlines() == [
        "| Method | plain | prefix | mention |",
        "|---|--:|--:|--:|",
        "| unedited | - | - | - |",
        "| routed | 100.0 ± 0.0 | 0.0 ± 0.0 | 50.0 ± 0.0 |",
    ]
    head, _, row, *_ = rest.partition("right answers, 3 edits\n\n")[2].splitlines()
    assert head.startswith(
        "| Method | plain | prefix | mention | Trapped, counter-asked | Trapped,"
    )
    assert row.startswith("| unedited | 0.0 ± 0.0 | 0.0 ± 0.0 | 100.0 ± 0.0 | ")


def test_without_forms_nothing_changes_and_other_forms_are_measured_anew(
    benchmark: Benchmark, tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    def cell(**changes: Any) -> Cell:
        one = dataclasses.replace(benchmark, seeds=1, methods=benchmark.methods[:1], **changes)
        (result,) = run_benchmark(one, tiny_llama, tiny_tokenizer, tmp_path, report=lambda _: None)
        return result

    every, fewer, none = cell(), cell(forms=FORMS[:2]), cell(forms=())
    assert len({every.key, fewer.key, none.key}) == 3
    assert fewer.forms_answers == {"plain": 0.0, "prefix": 0.0} and none.forms_answers is None
    write_report([none], tmp_path)
    assert "methods" not in json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert "Prompt forms" not in (tmp_path / "report.md").read_text("utf-8")


def test_the_commands_take_a_file_of_forms(tmp_path: Path, capsys: Any) -> None:
    facts = edit_cases(load_world(), 40, seed=4)
    rows = [
        {
            "prompt": fact.request.prompt,
            "target_new": fact.request.target_new,
            "subject": fact.request.subject,
            "rephrase_prompt": fact.paraphrases[0],
            "locality_prompt": fact.locality["unrelated"][0].prompt,
        }
        for fact in facts
    ]
    path, forms, out = (tmp_path / name for name in ("facts.json", "forms.json", "out"))
    path.write_text(json.dumps(rows), "utf-8")
    forms.write_text(json.dumps([GOOD, {**GOOD, "kind": "mention", "expect": "no"}]), "utf-8")
    command = ["benchmark", "--data", "wikibigedit", "--path", str(path), "--edits", "4"]
    command += ["--methods", "unedited", "--seeds", "1", "--device", "cpu"]
    command += ["--forms", str(forms), "--out", str(out)]
    assert main(command) == 2
    assert "forms.json, entry 2: field 'expect'" in capsys.readouterr().err
    assert not out.exists()  # before anything is done
    mention = {**GOOD, "kind": "mention", "expect": "none", "template": "Write about {s}."}
    forms.write_text(json.dumps([GOOD, mention]), "utf-8")
    assert main(command) == 0
    report = json.loads((out / "report.json").read_text("utf-8"))
    assert report["methods"]["unedited"]["forms_answers"]["mention"] == 100.0
    assert "right answers, 4 edits" in capsys.readouterr().out
    assert main(["demo", "--forms", str(tmp_path / "no.json"), "--out", str(out)]) == 2
    assert main(["demo", "--model", "x", "--forms", str(forms), "--out", str(out)]) == 2
    assert "leave it out beside --model" in capsys.readouterr().err


def test_the_demo_asks_in_forms_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = MeGHyperParams.preset

    def quick(name: str, **changes: Any) -> MeGHyperParams:
        return real(name, **changes, encoder_steps=0, gate_threshold=0.8, generator="bank")

    monkeypatch.setattr(MeGHyperParams, "preset", quick)
    forms = tmp_path / "forms.json"
    rows = [
        {**GOOD, "template": "{p}"},
        {**GOOD, "expect": "none", "kind": "bare", "template": "Hi"},
    ]
    forms.write_text(json.dumps(rows), "utf-8")
    demo = run_demo(4, 0, tmp_path, ("default",), "cpu", lambda _: None, forms)
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))["methods"]
    assert report["unedited"]["forms"] is None
    assert report["unedited"]["forms_answers"] == {"plain": 0.0, "bare": 100.0}
    assert report["meg-default"]["forms"] == {"plain": 100.0, "bare": 100.0}
    assert report["meg-default"]["forms_answers"] == {"plain": 100.0, "bare": 100.0}
    assert demo.report.methods["meg-default"].forms
    # A first run warns of nothing.
    assert not [record for record in caplog.records if record.name.startswith("meg_editor")]
