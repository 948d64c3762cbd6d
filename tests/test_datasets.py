"""Loaders against records written by hand, and against the published files where they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from published import published

from meg_editor.data.cases import Dataset, EvaluationCase, Probe
from meg_editor.data.loaders.counterfact import load_counterfact
from meg_editor.data.loaders.datasets import DATASETS
from meg_editor.data.loaders.easyedit_schema import load_wikibigedit
from meg_editor.data.loaders.knowedit import load_knowedit
from meg_editor.data.loaders.mquake import load_mquake
from meg_editor.data.loaders.unke import load_unke
from meg_editor.data.loaders.zsre import load_zsre
from meg_editor.requests.request import EditRequest, RequestError

Writer = Callable[..., Path]


@pytest.fixture()
def written(tmp_path: Path) -> Writer:
    """Writes records to a JSON file."""

    def write(*records: dict[str, Any]) -> Path:
        path = tmp_path / "data.json"
        path.write_text(json.dumps(records, ensure_ascii=False), "utf-8")
        return path

    return write


ROME = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "The twin city of {} is",
        "relation_id": "P190",
        "target_new": {"str": "Oslo", "id": "Q1"},
        "target_true": {"str": "Lyon ", "id": "Q2"},
        "subject": "Aleppo",
    },
    "paraphrase_prompts": ["He left early.\nThe twin of Aleppo is", "  "],
    "neighborhood_prompts": ["The twin city of Beirut is"],
    "attribute_prompts": ["The twin city of Sofia is"],
}
FLAT = {
    "prompt": "The twin city of Aleppo is",
    "target_new": "Oslo",
    "subject": "Aleppo",
    "ground_truth": "Lyon",
    "rephrase_prompt": "Aleppo is twinned with",
    "locality_prompt": "The twin city of Beirut is",
    "locality_ground_truth": "Lyon",
}
ZSRE = {
    "subject": "Aleppo",
    "src": "What is  the twin of Aleppo?",
    "rephrase": "- Which twin does Aleppo have.",
    "alt": " Oslo",
    "answers": ["Lyon", "Lyons"],
    "loc": "nq question: who sang it",
    "loc_ans": "Ella",
}


def test_counterfact_in_both_schemas_is_the_same_edit(written: Writer) -> None:
    (rome,) = load_counterfact(written(ROME)).cases
    (flat,) = load_counterfact(written(FLAT)).cases
    assert (
        rome.request == flat.request == EditRequest("The twin city of Aleppo is", "Oslo", "Aleppo")
    )
    assert rome.truth == flat.truth == "Lyon"
    assert rome.paraphrases == ("He left early.\nThe twin of Aleppo is",)
    assert flat.paraphrases == ("Aleppo is twinned with",)
    neighbour = (Probe("The twin city of Beirut is", ("Lyon",)),)
    assert rome.locality == {
        "neighbour": neighbour,
        "attribute": (Probe("The twin city of Sofia is", ("Oslo",)),),
    }
    assert flat.locality == {"neighbour": neighbour}


def test_generation_prompts_of_counterfact_are_no_paraphrases(written: Writer) -> None:
    kinds = ("paraphrase", "generation", "paraphrase_or_unknown")
    cases = load_counterfact(written(*({**ROME, "rephrase_kind": kind} for kind in kinds))).cases
    assert [len(case.paraphrases) for case in cases] == [1, 0, 0]


def test_zsre_edits_towards_the_alternative_answer(written: Writer) -> None:
    path = written(ZSRE)
    (true,), (made_up,) = load_zsre(path).cases, load_zsre(path, "alt").cases
    assert (true.request.target_new, true.truth) == ("Lyon", None)
    assert (made_up.request.target_new, made_up.truth) == ("Oslo", "Lyon")
    for case in (true, made_up):
        assert case.request.prompt == "What is the twin of Aleppo?"
        assert case.paraphrases == ("Which twin does Aleppo have?",)
        assert case.locality == {"open_question": (Probe("who sang it?", ("Ella",)),)}
    with pytest.raises(ValueError, match="'answers' or 'alt', got 'new'"):
        load_zsre(path, "new")  # type: ignore[arg-type]


def test_zsre_leaves_out_alternatives_which_are_none(written: Writer) -> None:
    path = written({**ZSRE, "alt": ""}, {**ZSRE, "alt": " Lyons"}, ZSRE)
    assert len(load_zsre(path, "alt").cases) == 1 and len(load_zsre(path).cases) == 3


def test_portability_of_the_counterfactual_answer_is_not_tested_on_the_true_one(
    written: Writer,
) -> None:
    hop = {"Recalled Relation": "", "New Question": "Which fjord?", "New Answer": "Oslofjord"}
    path = written({**ZSRE, "portability": hop})
    assert load_zsre(path).cases[0].portability == {}
    probe = Probe("Which fjord?", ("Oslofjord",))
    assert load_zsre(path, "alt").cases[0].portability == {"one_hop": (probe,)}


def test_mquake_edits_are_shared_by_chains(written: Writer) -> None:
    rewrite = {**ROME["requested_rewrite"], "question": "What is Aleppo's twin?"}  # type: ignore[dict-item]
    record = {
        "requested_rewrite": [rewrite],
        "questions": ["Where is the twin of Aleppo?"] * 3,
        "new_answer": "Norway",
        "new_answer_alias": ["Norge", "Norway"],
        "new_single_hops": [
            {"question": "What is Aleppo's twin?", "answer": "Oslo", "answer_alias": []},
            {"question": "Where is Oslo?", "answer": "Norway", "answer_alias": ["Norge"]},
        ],
    }
    result = load_mquake(written(record, record))
    (case,) = result.cases
    assert case.paraphrases == ("What is Aleppo's twin?",)
    assert len(result.multi_hop) == 2
    for chain in result.multi_hop:
        assert chain.edits == (case.request.prompt,)
        assert chain.answers == ("Norway", "Norge")
        assert [hop.answers for hop in chain.hops] == [("Oslo",), ("Norway", "Norge")]
        assert chain.steps == ()
    hops = record["new_single_hops"]
    hops[0]["cloze"], hops[1]["cloze"] = "Aleppo is twinned with", "Oslo is in"  # type: ignore[index]
    (chain,) = load_mquake(written(record)).multi_hop
    assert [step.prompt for step in chain.steps] == ["Aleppo is twinned with", "Oslo is in"]
    assert chain.steps[1].answers == ("Norway", "Norge")


def test_unke_asks_for_details(written: Writer) -> None:
    record = {
        "question": "Who is she?",
        "para_question": "Who might she be?",
        "answer": "A long story. She sings.",
        "sub_question": ["What does she do?"],
        "sub_answer": ["She sings."],
    }
    (case,) = load_unke(written(record)).cases
    assert case.request == EditRequest("Who is she?", "A long story. She sings.")
    assert case.portability == {"detail": (Probe("What does she do?", ("She sings.",)),)}
    with pytest.raises(RequestError, match=r"entry 1: field 'sub_answer': expected 1 texts as in"):
        load_unke(written({**record, "sub_answer": []}))
    uneven = {**record, "sub_question": ["a?", "", "c?"], "sub_answer": ["A", "B", ""]}
    (case,) = load_unke(written(uneven)).cases
    assert case.portability == {"detail": (Probe("a?", ("A",)),)}  # "c?" got "B"


def test_wikibigedit_as_released(written: Writer) -> None:
    record = {
        "tag": "new",
        "subject": "Aleppo",
        "update": "What is the twin city of Aleppo?",
        "ans": "Oslo",
        "rephrase": "Which city is Aleppo's twin?",
        "personas": "Tell a traveller: Aleppo's twin?",
        "mhop": "Where is the twin of Aleppo?",
        "mhop_ans": "Norway",
        "loc": "What is the twin city of Beirut?",
        "loc_ans": "Lyon",
    }
    (case,) = load_wikibigedit(written(record)).cases
    assert case.request == EditRequest("What is the twin city of Aleppo?", "Oslo", "Aleppo")
    assert case.paraphrases == ("Which city is Aleppo's twin?",) and case.truth is None
    assert case.locality == {"neighbour": (Probe("What is the twin city of Beirut?", ("Lyon",)),)}
    assert case.portability == {
        "persona": (Probe("Tell a traveller: Aleppo's twin?", ("Oslo",)),),
        "multi_hop": (Probe("Where is the twin of Aleppo?", ("Norway",)),),
    }
    (bare,) = load_wikibigedit(written({**record, "personas": None, "mhop_ans": None})).cases
    assert bare.portability == {}


def test_a_comma_which_was_forgotten_is_noticed() -> None:
    """A text alone was taken for the texts that are its letters."""
    edit = EditRequest("The twin city of Aleppo is ", " Oslo")
    assert (edit.prompt, edit.target_new) == ("The twin city of Aleppo is", "Oslo")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"paraphrases": "Is it twinned?"}, "paraphrases: expected a tuple of texts, got 'Is"),
        ({"paraphrases": ("",)}, r"paraphrases\[0\]: expected text, got ''"),
        ({"locality": None}, r"locality: expected \{kind: \(Probe"),
        ({"locality": {"near": ("Beirut's twin is",)}}, "locality: expected"),
    ]
    for fields, message in wrong:
        with pytest.raises(ValueError, match=message):
            EvaluationCase(edit, **fields)
    with pytest.raises(ValueError, match="answers: expected a tuple of texts, got 'Lyon'"):
        Probe("Beirut's twin is", "Lyon")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="field 'target_new' is empty"):
        EvaluationCase(EditRequest("Aleppo's twin is", " "))


@pytest.mark.parametrize("truth", ["Lyon", ["Lyon"], [["Lyon", "Lyons"], ["Lyon"]]])
def test_knowedit_takes_every_shape_of_a_truth(written: Writer, truth: Any) -> None:
    record = {
        "subject": "Aleppo",
        "prompt": "The twin city of Aleppo is",
        "target_new": "Oslo",
        "ground_truth": ["Lyon"],
        "rephrase_prompt": "Aleppo is twinned with",
        "locality": {"Forgetfulness": [{"prompt": "Its river is", "ground_truth": truth}]},
        "portability": {},
    }
    (case,) = load_knowedit(written(record)).cases
    expected = ("Lyon", "Lyons") if isinstance(truth[0], list) else ("Lyon",)
    assert case.locality == {"Forgetfulness": (Probe("Its river is", expected),)}
    assert case.paraphrases == ("Aleppo is twinned with",) and case.portability == {}


@pytest.mark.parametrize(
    ("load", "record", "message"),
    [
        (load_zsre, {**ZSRE, "src": None}, "field 'src': expected text, got NoneType"),
        (load_zsre, {**ZSRE, "answers": []}, "field 'answers': expected at least one answer"),
        (load_zsre, {**ZSRE, "answers": [3]}, "field 'answers': expected a list of texts"),
        (
            load_counterfact,
            {**ROME, "requested_rewrite": {}},
            "entry 1, requested_rewrite: field 'subject' is missing",
        ),
        (load_counterfact, {**FLAT, "target_new": " "}, "field 'target_new': expected"),
        (load_mquake, {"requested_rewrite": 3}, "'requested_rewrite': expected a list of objects"),
        (load_knowedit, {"prompt": "x"}, "field 'target_new' is missing"),
    ],
)
def test_a_bad_record_names_file_entry_and_field(
    written: Writer, load: Callable[[Path], Dataset], record: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError) as caught:
        load(written(record))
    assert str(caught.value).startswith("data.json, entry 1") and message in str(caught.value)


@pytest.mark.parametrize(
    "record",
    [{"src": ["x" * 9999] * 999}, {"src": {"a\n": 1}}, {f"{i}\n" * 99: i for i in range(99)}],
)
def test_a_bad_record_gives_a_short_line(written: Writer, record: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        load_zsre(written(record))
    assert len(str(caught.value)) < 500 and str(caught.value).isprintable()


def test_a_file_which_is_not_there_is_named(tmp_path: Path) -> None:
    for load in DATASETS.values():
        with pytest.raises(FileNotFoundError, match="nowhere.json"):
            load(tmp_path / "nowhere.json")


FILES = [
    ("counterfact", "counterfact.json", 19919),
    ("counterfact", "counterfact_easyedit.json", 19919),
    ("zsre", "zsre_mend_eval.json", 1852),
    ("zsre", "zsre_mend_train_10k.json", 9950),
    ("mquake", "mquake_cf_3k.json", None),
    ("unke", "unke.json", 1000),
    ("knowedit", "knowedit_zsre_test.json", 805),
    ("knowedit", "knowedit_wiki_counterfact_test.json", 839),
    ("wikibigedit", "wikibigedit_3k.json", 3000),
]


@pytest.mark.parametrize(("name", "file", "count"), FILES, ids=[file for _, file, _ in FILES])
def test_the_published_files_load_whole(name: str, file: str, count: int | None) -> None:
    cases = DATASETS[name](published(file)).cases
    assert count is None or len(cases) == count

    def texts(case: EvaluationCase) -> list[str]:
        probes = [
            p for kinds in (case.locality, case.portability) for k in kinds.values() for p in k
        ]
        answers = [answer for probe in probes for answer in probe.answers]
        request = case.request
        prompts = [
            request.prompt,
            request.target_new,
            *case.paraphrases,
            *(p.prompt for p in probes),
        ]
        return prompts + answers

    for case in cases:
        assert all(text and text == text.strip() for text in texts(case))
        assert "{}" not in case.request.prompt
        assert case.request.rephrases == case.request.locality_prompts == ()


def test_counterfacts_schemas_agree_on_the_published_edits() -> None:
    rome = load_counterfact(published("counterfact.json")).cases
    flat = load_counterfact(published("counterfact_easyedit.json")).cases
    assert [case.request for case in rome] == [case.request for case in flat]
    assert sum(bool(case.paraphrases) for case in rome) == 1632


def test_every_hop_of_mquake_that_is_edited_has_its_edit() -> None:
    result = load_mquake(published("mquake_cf_3k.json"))
    targets = {case.request.prompt: case.request.target_new for case in result.cases}
    assert len(result.multi_hop) == 843
    for chain in result.multi_hop:
        assert 1 <= len(chain.edits) <= 4 and len(chain.questions) == 3
        answers = {answer for hop in chain.hops for answer in hop.answers}
        assert all(targets[prompt] in answers for prompt in chain.edits)
        assert set(chain.edits) <= {step.prompt for step in chain.steps}
